"""An assay: would better features help, and does pretraining have them? Frozen encoders, all read out alike.

Tokens are standardised, then `hand` pooling and head train on them: one hypothesis, and a mixture of five. Inputs are
whole clouds, or single views of them (lab/views.py). Two oracles show whether a gain could be seen at all.

What a result means, written down before there was one:
    no oracle beats random weights by 3 %: the readout is the limit, and no encoder can show anything here
    geometry leads by 5 %, jepa does not: JEPA's targets drop the metric detail that grasps need
    jepa has half of an oracle's lead with few labels, less with all: the paper's claim holds under partial observation
    jepa leads on views alone: pretraining pays as completion of what is hidden
"""

import dataclasses
import functools
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import train
from cli.errors import refuse
from controls import calibrate
from evaluate import add_holds, predict_grasps, summarize
from files.checkpoints import load_encoder, load_run, shipped_encoder
from files.config import changed
from files.writing import stable_seed
from lab.rows import as_words, command_of, read_rows, split_command
from lab.runner import SMOKE, add_row, check_same_network, choose, expand, open_data, random_encoder, refuse_flags
from lab.tables import markdown, mean_cell, values_of
from lab.views import DENSE, single_views
from loop.flags import HEAD_FIELDS
from loop.machine import set_up_torch
from model import FINE_TUNING, Encoded
from variants import PROBES, surface_features

ARMS = {  # name -> --pool
    "surface": "surface",  # no encoder: distances from the hand to what is seen
    "centers": "centers",  # no features
    "random": "hand",
    "jepa": "hand",  # the shipped one for whole clouds, that of lab/views.py for views
    "labels": "hand",  # oracle: trained with this readout on this input, by all labels of the pool
    "geometry": "hand",  # oracle: trained to tell the distances to the whole surface, without labels
}
GRID = {"--input": "full,view", "--budget": "0.1", "--loss": "wta,mdn"}
HYPOTHESES = {"wta": "1", "mdn": "5"}
FROZEN = {"--lr-backbone": "0"}
ORACLE = {"--pool": "hand", "--k": "1", "--lr-backbone": "1e-4", "--closed": "1"}
VIEWS = Path("runs/views.pt")  # the encoder that `python -m lab.views` makes
COLUMNS = ("top_logit_rmse", "best_of_k_rmse", "coverage_15", "nll", "holds")


# ---------------------------------------------------------------- what is read out
class Assay:
    """A dataset as clouds and as views, and the encoders of both, trained or loaded when a row needs them."""

    def __init__(self, flags, args):
        """flags: of train.py, which all rows share; args: sweep.py's own."""
        self.flags, self.args = flags, args
        settings = train.parse(as_words(flags))
        self.device, (self.config, _) = set_up_torch("cpu", settings.threads), train.resolve_network(settings)
        points = self.config.points
        data, self.split = open_data(flags, max(DENSE, points))
        views = single_views(data.clouds, [stable_seed("view", digest) for digest in data.mesh_hashes], points)
        clouds = {"full": data.clouds[:, :points], "view": views}
        self.data = {kind: dataclasses.replace(data, clouds=own) for kind, own in clouds.items()}

    @functools.cache
    def encoder(self, kind, arm):
        """The `PointEncoder` of an arm for one kind of input; None for an arm without."""
        if ARMS[arm] != "hand":
            return None
        if arm == "random" or (arm == "jepa" and self.args.smoke):
            in_pool = np.isin(self.data[kind].object_of_scene, self.split.pool)
            encoder = load_encoder(random_encoder(self.config, self.args.runs))
            return calibrate(encoder, torch.from_numpy(self.data[kind].clouds[in_pool]))
        if arm != "jepa":
            return load_run(self.train_oracle(kind, arm)).encoder
        return load_encoder(pretrained(kind))

    def train_oracle(self, kind, arm):
        """Folder of the finished run whose encoder an oracle's is."""
        data = self.data[kind]
        if arm == "geometry":
            told = [f"probe {i}" for i in range(len(PROBES))]
            data = dataclasses.replace(data, joints=self.distances(), joint_names=told, hand=None)
        folder = Path(self.args.runs) / f"assay-{arm}-{kind}-{data.fingerprint}"
        words = as_words(self.flags | ORACLE | {"--runs": str(folder.parent), "--name": folder.name})
        settings = train.parse([*words, "--resume", "--quiet"])
        train.train_one(settings, self.device, train.resolve_network(settings)[0], None, data, self.split)
        return folder

    def distances(self):
        """`surface_features` (n, Q) of all grasps in whole clouds: what the geometry oracle is to tell."""
        data = self.data["full"]
        clouds, scene, poses = map(torch.from_numpy, (data.clouds, data.scene, data.poses))
        parts = zip(scene.split(4096), poses.split(4096))
        return torch.cat([surface_features(clouds, *part) for part in tqdm(parts, "measuring", disable=None)]).numpy()

    def drawn_rows(self, budget, seed):
        """(n,) the grasps that train where a share of the pool's objects is drawn by a seed."""
        names = np.random.default_rng(stable_seed("assay", seed)).permutation(self.split.pool)
        chosen = names[: max(1, round(budget * len(names)))]
        rows, data = self.split.rows["train"], self.data["full"]
        return rows[np.isin(data.object_of_grasp[rows], chosen)]

    def measure(self, arm, kind, budget, loss, seed):
        """Train the readout of one row; -> its metrics on val."""
        started, own = time.perf_counter(), {"--pool": ARMS[arm], "--k": HYPOTHESES[loss], "--loss": loss}
        settings = train.parse(as_words(self.flags | own | FROZEN | {"--seed": seed}))
        data, rows, val = self.data[kind], self.drawn_rows(float(budget), seed), self.split.rows["val"]
        encoder, head = self.encoder(kind, arm), {name: getattr(settings, name) for name in HEAD_FIELDS}
        config = changed(encoder.config if encoder else self.config, **FINE_TUNING, **head)
        model = train.build_model(config, encoder, data, rows, settings)
        read_out(model, data, rows, settings)
        predictions = {"": predict_grasps(model, data, val, self.device)}
        results = {"": summarize(predictions[""])}
        if data.hand:
            add_holds(results, predictions, data, val, self.args.closed, quiet=True)
        row = {name: results[""].get(name, "") for name in COLUMNS}
        return row | {"seconds": round(time.perf_counter() - started), "dataset": data.fingerprint}


def pretrained(kind):
    """File of the encoder that was pretrained on one kind of input."""
    missing = kind == "view" and not VIEWS.exists()
    refuse(missing, f"{VIEWS}: is not there; run: python -m lab.views --out {VIEWS}")
    return VIEWS if kind == "view" else shipped_encoder("small")


@torch.no_grad()
def encode_all(model, clouds):
    """`Encoded` clouds (C, N, 3); where there are tokens the encoder's last norm is changed to standardise them."""
    parts = [model.encode(part) for part in torch.from_numpy(clouds).split(64)]
    encoded = Encoded(*map(torch.cat, zip(*parts)))
    if encoded.tokens.numel():
        spread, mean = torch.std_mean(encoded.tokens.flatten(0, 1), 0)
        norm = model.encoder.transformer.norm
        norm.weight.div_(spread)
        norm.bias.sub_(mean).div_(spread)
        encoded = encoded._replace(tokens=(encoded.tokens - mean) / spread)
    return encoded


def read_out(model, data, rows, args):
    """Train pooling and head of a `GraspModel` on grasps `rows`, whose clouds are encoded once for all steps."""
    known = np.unique(data.scene[rows])
    encoded, place = encode_all(model.eval(), data.clouds[known]), torch.zeros(len(data.scenes), dtype=torch.long)
    place[known] = torch.arange(len(known))
    poses, joints = torch.from_numpy(data.poses), torch.from_numpy(data.joints)
    optimizer = train.build_optimizer(model, args)
    train.training_mode(model, args)
    batches = train.training_batches(data, rows, args, 0, "cpu")
    for step in tqdm(range(args.steps), "reading out", unit="step", disable=None):
        scenes, grasps, object_index, _ = next(batches)
        train.set_learning_rates(optimizer, step, args)
        batch = Encoded(*(part[place[scenes]] for part in encoded))
        loss = model.loss(*model.decode(batch, object_index, poses[grasps]), joints[grasps], args.alpha)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()


# ---------------------------------------------------------------- the sweep
def run_assay(names, given, args):
    """Read out what has no row yet; -> all rows. names: of arms, all for none."""
    refuse_flags(given, ("--pool", "--k", "--init", "--lr-backbone", "--preset", "--device"), "assay")
    grid, shared = {flag: given.get(flag, values) for flag, values in GRID.items()}, args.own | given
    shared = {flag: value for flag, value in shared.items() if flag not in GRID} | (SMOKE if args.smoke else {})
    path, arms, assay = args.out / "rows.csv", choose(names, ARMS, "assay"), None
    there = {row["command"] for row in read_rows(path)}
    for own, seed, arm in itertools.product(expand(grid, args.smoke), args.seeds, arms):
        name = command_of(own | shared | {"--seeds": seed}, f"python sweep.py assay {arm}")
        if name not in there:
            assay = assay or Assay(shared, args)
            kind, budget, loss = own.values()
            if arm == "jepa" and not args.smoke:
                check_same_network(shared, pretrained(kind))
            print(name, file=sys.stderr)
            add_row({"command": name} | assay.measure(arm, kind, budget, loss, seed), path, args.runs)
    return read_rows(path)


def assay_text(rows, args):
    """Markdown: every arm on both inputs, by budget."""
    groups = {}  # (budget, input, arm) -> loss -> rows
    for row in rows:
        start, flags = split_command(row["command"])
        place = float(flags["--budget"]), flags["--input"], start.split()[-1]
        groups.setdefault(place, {}).setdefault(flags["--loss"], []).append(row)
    order = list(ARMS)
    lines = []
    for budget, kind, arm in sorted(groups, key=lambda place: (*place[:2], order.index(place[2]))):
        one, mixture = (groups[budget, kind, arm].get(loss, []) for loss in HYPOTHESES)
        better = against(one, groups.get((budget, kind, "random"), {}).get("wta", []))
        cells = [mean_cell(one, "top_logit_rmse"), better, mean_cell(one, "holds")]
        cells += [mean_cell(mixture, name) for name in ("nll", "best_of_k_rmse", "holds")]
        lines.append([f"{budget:g}", kind, arm, max(len(one), len(mixture)), *cells])
    header = ["budget", "input", "arm", "draws", "RMSE, K = 1 (rad)", "better than random, %", "holds"]
    return markdown([*header, "nll, K = 5 (nats per joint)", "best-of-5 (rad)", "holds, top logit"], lines)


def against(rows, others):
    """By how many % rows have a lower RMSE than others, of the means; "" where either is missing."""
    mine, theirs = (values_of(group, "top_logit_rmse") for group in (rows, others))
    return f"{100 * (1 - np.mean(mine) / np.mean(theirs)):z.1f}" if mine and theirs else ""
