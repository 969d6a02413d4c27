"""train.py: a run and its files, stopped and resumed, the settings of checkpoints, what contradicts; adapters."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, files_in, interrupted, outcome, training
from torch.nn.modules.module import register_module_forward_hook

import model
import train
from data import load_dataset
from files.checkpoints import load_run, read_checkpoint
from files.writing import read_json
from splits import make_split


def arguments(box_root, runs, *more):
    rhythm = "--steps 12 --objects-per-batch 4 --grasps-per-object 3 --eval-every 3 --save-every 4".split()
    return training(box_root, runs, *rhythm, *more)


def files_of(run):
    """What must not change between equal runs."""
    return outcome(run / "metrics.csv", run / "result.json", run / "best.pt")


@pytest.fixture(scope="module")
def finished(box_root, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    train.main(arguments(box_root, runs, "--name", "run"))
    return runs / "run"


# ---------------------------------------------------------------- a run and its files
def test_a_run_and_its_files(finished):
    rows, (result,), _ = files_of(finished)
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    val = result["suites"]["val"]
    assert val["top_logit_rmse"] == pytest.approx(min(float(row["val_top_logit_rmse"]) for row in rows), abs=1e-7)
    assert result["training_mean"]["num_grasps"] == val["num_grasps"] and result["train_objects"] == 10
    config = read_json(finished / "config.json")
    assert config["settings"]["steps"] == 12 and config["network"]["width"] == 32 and config["fingerprint"]
    assert load_run(finished).joint_names == [f"joint_{i}" for i in range(12)]
    assert not (finished / "last.pt").exists()


def test_training_learns(box_root, tmp_path):
    """On boxes whose size sets the joints, 60 steps must beat the training mean by far."""
    flags = "--steps 60 --objects-per-batch 10 --lr-backbone 1e-3 --lr-head 3e-3 --k 1 --eval-every 20".split()
    result = train.main(training(box_root, tmp_path, *flags))
    assert result["suites"]["val"]["top_logit_rmse"] < 0.7 * result["training_mean"]["top_logit_rmse"]


def test_same_seed_same_numbers_and_from(finished, tmp_path):
    again = f"--from {finished / 'config.json'} --runs {tmp_path} --no-baseline --no-pictures --quiet"
    train.main(f"{again} --name copy".split())
    assert files_of(tmp_path / "copy") == files_of(finished)
    train.main(f"{again} --name other --seed 1".split())
    assert files_of(tmp_path / "other")[0] != files_of(finished)[0]
    shipped = Path(train.__file__).parent / "results/quickstart/config.json"
    for run in (shipped, shipped.parent):
        assert train.parse(["--from", str(run)]).budget == 0.1


def test_each_cloud_is_encoded_once_per_batch(box_root, tmp_path):
    encoded = []

    def look(module, inputs, _):
        if isinstance(module, model.PointEncoder):
            encoded.append(len(inputs[0]))

    with register_module_forward_hook(look):
        train.main(arguments(box_root, tmp_path, "--steps", 1, "--eval-every", 1))
    validation = len(make_split(load_dataset(box_root, 64, quiet=True)).suites["val"])  # one scene each
    # 4 objects of up to 3 grasps; the evaluation of the step and of the best
    assert encoded == [4, validation, validation]


def test_two_learning_rates_and_their_schedule(box_root, tmp_path):
    args = train.parse(arguments(box_root, tmp_path, "--steps", 24, "--warmup", 0.25))
    network = model.GraspModel(train.resolve_network(args)[0])
    optimizer = train.build_optimizer(network, args)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    encoder_ids = {id(p) for p in network.encoder.parameters()}
    factors = [train.set_learning_rates(optimizer, step, args) for step in range(24)]
    assert factors[:6] == pytest.approx([i / 6 for i in range(1, 7)]) and 0 < factors[-1] < 0.02
    for group in optimizer.param_groups:
        inside = {id(p) for p in group["params"]} <= encoder_ids
        assert group["lr"] == pytest.approx((args.lr_backbone if inside else args.lr_head) * factors[-1])


@pytest.mark.parametrize("pool", model.POOLS)
def test_every_pool_and_loss_trains(box_root, tmp_path, pool, capsys):
    """And the paper's own input; --patches counts for `centers`, too, but not for `surface`."""
    own = "--normalize metric --scale 0.1 --group ball --radius 0.05"
    more = {"mean": "--loss mdn", "max": "--loss hedged", "mean_max": own}
    more = (more | dict.fromkeys(("centers", "surface"), "--patches 5")).get(pool, "")
    result = train.main(arguments(box_root, tmp_path, "--pool", pool, "--steps", 2, "--k", 2, *more.split()))
    val = result["suites"]["val"]
    assert ("no effect of --patches" in capsys.readouterr().err) == (pool == "surface")
    assert np.isfinite(val["top_logit_rmse"]) and np.isfinite(val.get("nll", np.nan)) == ("mdn" in more)


def test_a_backbone_at_rate_zero_stays_to_the_bit(box_root, tmp_path):
    """BatchNorm's statistics included; what trains is all the rest."""
    result = train.main(arguments(box_root, tmp_path, "--name", "run", "--lr-backbone", 0, "--keep-last"))
    network = load_run(tmp_path / "run", "last")
    torch.manual_seed(train.stable_seed("weights", 0))
    fresh = model.GraspModel(network.config).encoder.state_dict()
    assert all(torch.equal(weights, fresh[name]) for name, weights in network.encoder.state_dict().items())
    parameters = {name: p.numel() for name, p in network.named_parameters()}
    rest = [count for name, count in parameters.items() if not name.startswith("encoder.")]
    assert (result["parameters_trained"], result["parameters"]) == (sum(rest), sum(parameters.values()))


# ---------------------------------------------------------------- stopped, resumed, kept


@pytest.mark.slow
def test_baseline_is_trained_once(box_root, tmp_path, capsys):
    """A run without --no-baseline trains `--pool size` beside it, once for all runs on the same data and budget.

    Ctrl-C in the baseline leaves the run as done as it is; the next run goes on with the baseline.
    """
    argv, written = arguments(box_root, tmp_path, "--steps", 2), set()
    argv.remove("--no-baseline")
    assert "the next run" in interrupted(train.main, [*argv, "--name", "stopped"], 3)
    assert "this run, step" in capsys.readouterr().out
    (baseline,) = tmp_path.glob("pose-and-size-*")
    for seed in (0, 1):
        train.main([*argv, "--name", f"run{seed}", "--seed", str(seed)])
        printed = capsys.readouterr().out
        assert "pose and size only" in printed and "s since this command was given" in printed
        written.add((baseline / "result.json").stat().st_mtime_ns)
    assert len(written) == 1 and read_json(baseline / "config.json")["settings"]["pool"] == "size"
    train.main([*argv, "--name", "run2", "--budget", "0.5"])
    assert len(list(tmp_path.glob("pose-and-size-*"))) == 2


def test_a_run_is_refused_where_its_data_has_changed(three_boxes, tmp_path, capsys):
    """A finished one, and one that would be resumed."""
    root = shutil.copytree(three_boxes[0], tmp_path / "root")
    argv = arguments(root, tmp_path, "--steps", 1, "--keep-last", "--name", "run")
    train.main(argv)
    next(root.rglob("mesh.obj")).write_text("v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\n", encoding="utf-8")
    before = files_in(tmp_path / "run")
    assert "has changed since" in fails(train.main, argv, capsys) and files_in(tmp_path / "run") == before
    (tmp_path / "run/result.json").unlink()
    assert "has changed since" in fails(train.main, [*argv, "--resume"], capsys)


def test_pictures_of_another_hand_are_its_curve_and_without_matplotlib_none(box_root, tmp_path, monkeypatch, capsys):
    argv = arguments(box_root, tmp_path, "--name", "run", "--steps", 2)
    argv.remove("--no-pictures")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        train.main(argv)
    said = capsys.readouterr()
    assert "pictures: left out (import of matplotlib" in said.err and ".png" not in said.out
    train.main(argv)  # once it is there
    assert capsys.readouterr().out.splitlines()[-1] == f"saved {tmp_path / 'run' / 'curve.png'}: the learning curve"
    assert [path.name for path in (tmp_path / "run").glob("*.png")] == ["curve.png"]


# ---------------------------------------------------------------- adapters
LORA = ("--lora", 2, "--steps", 8, "--eval-every", 4, "--save-every", 4, "--keep-last")


@pytest.fixture(scope="module")
def adapted(box_root, tmp_path_factory):
    """The folder of a run with adapters of rank 2."""
    runs = tmp_path_factory.mktemp("adapted")
    train.main(training(box_root, runs, *LORA, "--name", "run"))
    return runs / "run"


def test_adapters_train_with_pooling_and_head_alone_and_are_merged_into_the_best_checkpoint(adapted):
    network, last = load_run(adapted), read_checkpoint(adapted / "last.pt")["model"]  # the first strictly, without them
    assert any(".down." in name for name in last) and not any(".down." in name for name in network.state_dict())
    torch.manual_seed(train.stable_seed("weights", 0))
    fresh = model.GraspModel(network.config).state_dict()
    for name in (name for name in fresh if name.startswith("encoder.")):
        adapted = name.replace(".qkv.", ".qkv.layer.").replace(".attn.proj.", ".attn.proj.layer.")
        assert torch.equal(last[adapted], fresh[name]), name  # BatchNorm's statistics included
    assert not torch.equal(last["head.0.weight"], fresh["head.0.weight"])


def test_resumed_training_with_adapters_repeats_the_undisturbed_one(adapted, box_root, tmp_path, capsys):
    interrupted(train.main, training(box_root, tmp_path, *LORA, "--name", "cut"), 6)
    train.main(training(box_root, tmp_path, *LORA, "--name", "cut", "--resume"))
    whole, cut = (read_checkpoint(folder / "last.pt")["model"] for folder in (adapted, tmp_path / "cut"))
    assert all(torch.equal(cut[name], weights) for name, weights in whole.items())
    assert "parameters trained" in capsys.readouterr().out
