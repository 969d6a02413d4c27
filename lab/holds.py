"""How the shares of free and of holding grasps (hand/holds.py) move with the constants of that metric.

python -m lab.holds data/full --runs runs/one runs/other --out results/holds/constants.csv

One row per changed constant and kind of joints, on grasps of the val suite with 95 % intervals over objects. Kinds:
recorded joints, and with noise; joints that know nothing of the object (of another object's grasp, the training mean,
drawn uniformly within the limits); and of each run the top logit, the best of K by squared error, the average of K by
probability, and what the best choice among K could hold.
"""

import numpy as np
from hand.holds import grasp_outcomes, solid_field
from hand.scenes import scene_mesh
from tqdm import tqdm

from benchmark.roots import ensure_root
from cli.errors import UserError, command
from cli.flags import Parser, number
from data import load_dataset
from evaluate import MIN_OBJECTS, open_run, predict_grasps, resample
from files.reading import read_mesh
from files.writing import write_csv
from hand import kinematics
from files.checkpoints import load_run
from splits import make_split

# (constant, value) that differs from hand/holds.py: angles in rad, lengths in m
FIELD_CHANGES = [("density", 2.5e5), ("density", 5e5), ("density", 2e6), ("seed", 1)]
CLOSING_CHANGES = [
    *[("travel", np.radians(degrees)) for degrees in (0, 5, 15, 20, 30, 90)],
    *[("near", near) for near in (0.001, 0.003, 0.004)],
    *[("depth", depth) for depth in (0.0015, 0.006)],
    *[("min_score", score) for score in (0.01, 1, 2, 3)],
]
AS_IS = ("none", 0)
NOISES = (2, 5, 10, 20)  # degrees, standard deviation on every joint


def choose_rows(data, rows, per_scene, seed):
    """At most `per_scene` of the grasps `rows` of every scene, sorted."""
    rng = np.random.default_rng(seed)
    scenes = [rows[data.scene[rows] == scene] for scene in np.unique(data.scene[rows])]
    return np.sort(np.concatenate([rng.permutation(own)[:per_scene] for own in scenes]))


def joints_without_model(data, split, rows, seed):
    """Kind -> joints (n, 1, 12) rad for grasps `rows`, without a model."""
    rng, recorded, train = np.random.default_rng(seed), data.joints[rows], data.joints[split.rows["train"]]
    kinds = {"recorded": recorded}
    for degrees in NOISES:
        noise = rng.normal(0, np.radians(degrees), recorded.shape)
        kinds[f"recorded, noise of {degrees} degrees"] = recorded + noise
    kinds["of another object"] = train[rng.integers(len(train), size=len(rows))]
    kinds["training mean"] = np.repeat(train.mean(0, keepdims=True), len(rows), axis=0)
    kinds["uniform"] = rng.uniform(*kinematics.LIMITS.T, recorded.shape)
    return {kind: joints[:, None] for kind, joints in kinds.items()}


def joints_of_run(folder, data, rows):
    """Kind -> joints (n, 1, 12) rad of a run, and (n, K, 12) of all its hypotheses."""
    own_data, _ = open_run(folder, data.root)
    if own_data.fingerprint != data.fingerprint:
        raise UserError(f"{folder}: has other grasps of {data.root} (--min-score, --skip-bad); leave this run out")
    found = predict_grasps(load_run(folder), own_data, rows, "cpu")
    joints, logits = found["joints_pred"], found["logits"]
    chosen = logits.argmax(1), ((joints - found["joints_true"][:, None]) ** 2).mean(2).argmin(1)
    top, best = (joints[np.arange(len(rows)), k][:, None] for k in chosen)
    if joints.shape[1] == 1:
        return {f"{folder}: the only one": top}
    share = np.exp(logits - logits.max(1, keepdims=True))
    average = (share[..., None] * joints).sum(1, keepdims=True) / share.sum(1)[:, None, None]
    return {
        f"{folder}: top logit": top,
        f"{folder}: best of K by squared error": best,
        f"{folder}: average of K by probability": average,
        f"{folder}: any of K": joints,
    }


def close_all(data, rows, kinds):
    """(constant, value) -> kind -> arrays free and holds (n,); of several joints, whether any is."""
    joints = np.concatenate(list(kinds.values()), axis=1)  # (n, all, 12)
    ends = np.cumsum([own.shape[1] for own in kinds.values()])[:-1]
    found = {}
    for scene in tqdm(np.unique(data.scene[rows]), "closing hands", unit="scene", disable=None):
        mesh, mine = read_mesh(scene_mesh(data, scene)), data.scene[rows] == scene
        field = solid_field(*mesh)
        changes = [(AS_IS, field, {})]
        changes += [((name, value), field, {name: value}) for name, value in CLOSING_CHANGES]
        changes += [((name, value), solid_field(*mesh, **{name: value}), {}) for name, value in FIELD_CHANGES]
        for change, its_field, constants in changes:
            outcomes = grasp_outcomes(its_field, data.poses[rows[mine]], joints[mine], **constants)
            found.setdefault(change, []).append(np.stack((outcomes.free, outcomes.holds)))  # (2, m, all)
    split = {change: np.split(np.concatenate(parts, axis=1), ends, axis=2) for change, parts in found.items()}
    return {change: dict(zip(kinds, [part.any(2) for part in parts])) for change, parts in split.items()}


def interval(values, objects, seed):
    """Share of `values` (n,) with its 95 % interval over `objects` (n,), empty under 8 of them."""
    ids, index = np.unique(objects, return_inverse=True)
    if len(ids) < MIN_OBJECTS:
        return values.mean(), "", ""
    weights = resample(len(ids), seed, 2000)
    means = weights @ np.bincount(index, weights=values) / (weights @ np.bincount(index))
    return values.mean(), *np.percentile(means, (2.5, 97.5))


def table_rows(found, objects, seed):
    """One dict per constant's value and kind of joints."""
    rows = []
    for (constant, value), kinds in found.items():
        for kind, (free, holds) in kinds.items():
            row = {"constant": constant, "value": f"{value:.4g}", "joints": kind}
            for name, values in (("free", free), ("holds", holds)):
                keys = (name, f"{name}_low_95", f"{name}_high_95")
                row |= {key: x if x == "" else round(x, 4) for key, x in zip(keys, interval(values, objects, seed))}
            rows.append(row)
    return rows


@command
def main(argv=None):
    """Write the table and print its rows for the constants as they are."""
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("root", metavar="ROOT", help="dataset of synthesize.py")
    flag("--runs", nargs="*", default=[], metavar="RUN", help="run folders whose predictions are judged too")
    flag("--grasps", type=number(int, 1), default=10, help="grasps of every scene, at most")
    flag("--cache-dir", metavar="DIR", help="where the cache of the dataset lies (default: in ROOT)")
    flag("--seed", type=number(int, 0), default=0, help="seed of the choice of grasps and of noise")
    flag("--out", required=True, metavar="FILE.csv", help="the table")
    args = parser.parse_args(argv)
    data = load_dataset(ensure_root(args.root), 512, cache_dir=args.cache_dir)
    if data.joints.shape[1] != len(kinematics.JOINT_NAMES):
        raise UserError(
            f"{args.root}: has {data.joints.shape[1]} joints; only the hand of hand/kinematics.py is judged"
        )
    split = make_split(data, "A", 0.1)
    rows = choose_rows(data, split.rows["val"], args.grasps, args.seed)
    kinds = joints_without_model(data, split, rows, args.seed)
    for folder in args.runs:
        kinds |= joints_of_run(folder, data, rows)
    objects = data.object_of_grasp[rows]
    table = table_rows(close_all(data, rows, kinds), objects, args.seed)
    write_csv(args.out, table)
    print(f"{len(rows)} grasps of {len(set(objects))} objects; constants as in hand/holds.py:")
    for row in table:
        if row["constant"] == "none":
            print(f"  {row['joints']:<60} free {row['free']:.3f}  holds {row['holds']:.3f}")


if __name__ == "__main__":
    main()
