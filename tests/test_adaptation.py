"""--lora in whole trainings: what trains and what is saved."""

import pytest
import torch
from conftest import interrupted, training

import train
from files.checkpoints import load_run, read_checkpoint
from files.writing import read_json
from model import GraspModel


def flags(box_root, runs, *more):
    """Flags of a tiny training."""
    return training(box_root, runs, "--steps", 8, "--eval-every", 4, *more)


LORA = ("--lora", 2, "--save-every", 4, "--keep-last")


@pytest.fixture(scope="module")
def adapted(box_root, tmp_path_factory):
    """The folder of a run with adapters of rank 2."""
    runs = tmp_path_factory.mktemp("adapted")
    train.main(flags(box_root, runs, *LORA, "--name", "run"))
    return runs / "run"


def test_adapters_train_with_pooling_and_head_alone_and_are_merged_into_the_best_checkpoint(adapted):
    model, last = load_run(adapted), read_checkpoint(adapted / "last.pt")["model"]  # the first strictly, without them
    assert any(".down." in name for name in last) and not any(".down." in name for name in model.state_dict())
    torch.manual_seed(train.stable_seed("weights", 0))
    fresh = GraspModel(model.config).state_dict()
    for name in (name for name in fresh if name.startswith("encoder.")):
        adapted = name.replace(".qkv.", ".qkv.layer.").replace(".attn.proj.", ".attn.proj.layer.")
        assert torch.equal(last[adapted], fresh[name]), name  # BatchNorm's statistics included
    assert not torch.equal(last["head.0.weight"], fresh["head.0.weight"])


def test_resumed_training_with_adapters_repeats_the_undisturbed_one(adapted, box_root, tmp_path, capsys):
    interrupted(train.main, flags(box_root, tmp_path, *LORA, "--name", "cut"), 6)
    train.main(flags(box_root, tmp_path, *LORA, "--name", "cut", "--resume"))
    whole, cut = (read_checkpoint(folder / "last.pt")["model"] for folder in (adapted, tmp_path / "cut"))
    assert all(torch.equal(cut[name], weights) for name, weights in whole.items())
    assert "parameters trained" in capsys.readouterr().out


def test_what_a_run_took_is_kept(adapted):
    result, network = read_json(adapted / "result.json"), load_run(adapted)
    head = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("encoder."))
    width, depth = network.config.width, network.config.depth
    adapters = depth * 2 * (width + 3 * width + width + width)  # rank 2: A and B of qkv, then of the projection
    whole = sum(p.numel() for p in network.parameters())
    assert (result["parameters_trained"], result["parameters"]) == (head + adapters, whole + adapters)
    assert 0 < result["ms_per_step"] * result["steps"] / 1000 <= result["seconds"] + 0.1
