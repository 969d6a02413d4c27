"""Every python command that the README shows is run, made small by flags appended to it."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_box
from test_jepa import official_file

import data
import evaluate
import model
import pretrain_jepa
import splits
import sweep
import synthesize
import train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SCRIPTS = {"data.py": data, "evaluate.py": evaluate, "pretrain_jepa.py": pretrain_jepa, "splits.py": splits, "sweep.py": sweep, "synthesize.py": synthesize, "train.py": train}


def commands():
    """All lines of the README's code blocks that start a script, comments and set-up prefixes cut off."""
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", README, flags=re.S)
    found = re.findall(r"(?:^|&& )(python \w+\.py[^#\n&]*)", "\n".join(blocks), flags=re.M)
    found += re.findall(r"`(python \w+\.py [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.S))
    return sorted({command.strip() for command in found})


@pytest.fixture(scope="module")
def places(box_root, tmp_path_factory):
    """A folder with what the commands' placeholders stand for: an encoder, a run, a mesh."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    config = model.PRESETS["tiny"]
    model.save_checkpoint(folder / "tiny.pt", {"config": vars(config), "encoder": model.PointEncoder(config).state_dict()})
    hyper = {"encoder_heads": 2, "predictor_heads": 2, "tokenizer_num_groups": 8, "tokenizer_group_size": 8, "transformation_subsample_points": 64}
    official_file(folder / "official.ckpt", hyper, width=32, w1=16, w2=16, w3=32, predictor_width=16, predictor_depth=1)
    (folder / "clouds").mkdir()
    for i in range(4):
        np.save(folder / "clouds" / f"{i}.npy", np.random.default_rng(i).normal(size=(64, 3)))
    train.main(f"--data {box_root} --preset tiny --steps 2 --runs {folder} --name run --quiet".split())
    evaluate.main([str(folder / "run"), "--save-predictions", str(folder / "predictions.npz")])
    shutil.copy(box_root / "03797390" / "object_000" / "scene_0" / "mesh.obj", folder / "mug.obj")
    return folder


def small(script, argv, places, box_root, count):
    """The command's arguments with placeholders replaced and flags appended that make it quick."""
    names = {"RUN": places / "run", "ROOT": box_root, "FOLDER": places / "clouds", "mug.obj": places / "mug.obj",
             "my_encoder.pt": places / "tiny.pt", "F.npz": places / "predictions.npz", "FILE.png": places / "picture.png",
             "results/pretraining/patches.png": places / "patches.png", "pretrain_pointjepa_epoch=499-step=40500.ckpt": places / "official.ckpt"}  # fmt: skip
    names |= {word: places / "tiny.pt" for word in argv if re.fullmatch(r"runs/(context|trial|assembly).*\.pt", word)}  # encoders of the table
    argv = [str(names.get(word, word)) for word in argv]
    if "--pose" in argv and "x" in argv:
        argv[argv.index("x") :] = "0.1 0 -1e-1 0 0 0 1".split()
    if script == "train.py":
        argv += f"--data {box_root} --preset tiny --steps 2 --runs {places} --name run{count} --quiet".split()
        argv += ["--jepa-ckpt", str(places / "tiny.pt")] if "jepa" in argv else []
    if script == "sweep.py":
        argv += ["--out", str(places / f"grid{count}"), "--smoke", "--runs", str(places / f"sweep{count}"), "--jobs", "1", "--data", str(box_root)]
        if "--against" in argv:  # with itself
            argv[argv.index("--against") + 1] = str(places / f"grid{count}")
    if script == "pretrain_jepa.py":
        argv += f"--clouds {places / 'clouds'} --preset tiny --steps 2 --batch 2 --out {places}/out{count}.pt --quiet".split()
        argv += ["--encoder", str(places / "tiny.pt")] if "--picture" in argv else []
    if script == "synthesize.py" and "--card" in argv:
        argv[argv.index("--card") + 1] = str(places / "synthetic")
        argv += ["--out", str(places / "card")]
    elif script == "synthesize.py":
        argv += f"--out {places}/root{count} --grasps 4 --workers 1".split()
        argv += [] if "--meshes" in argv else ["--objects", "2"]
        argv = [str(places / "meshes") if word == "MESHES" else word for word in argv]
    if script == "splits.py":
        argv += ["--data", str(box_root)]
    if "--json" in argv:
        argv[argv.index("--json") + 1] = str(places / "out.json")
    return argv


@pytest.fixture(scope="module")
def generated(places, box_root):
    """A tiny generated dataset for --card and a folder of meshes for --meshes."""
    synthesize.main(["--out", str(places / "synthetic"), "--objects", "4", "--grasps", "4", "--workers", "1", "--quiet"])
    (places / "meshes").mkdir()
    mesh = next((places / "synthetic").glob("*/*/*/mesh.obj"))
    shutil.copy(mesh, places / "meshes" / "can.obj")


def marked(count, command):
    """Sweeps, benchmarks and the card have quick tests of their own."""
    marks = pytest.mark.slow if re.search(r"sweep\.py|--benchmark|--card", command) else ()
    return pytest.param(count, command, id=command, marks=marks)


@pytest.mark.parametrize("count, command", [marked(*pair) for pair in enumerate(commands())])
def test_command(count, command, places, generated, box_root):
    script, *argv = shlex.split(command)[1:]
    SCRIPTS[script].main(small(script, argv, places, box_root, count))


def test_readme_shows_commands_for_every_script():
    shown = {shlex.split(command)[1] for command in commands()}
    assert shown == set(SCRIPTS)
    assert "python train.py --budget 0.1 --init jepa" in commands()


def test_ci_runs_the_test_command_of_the_readme():
    line = 'python -m pytest -m "not slow"'
    assert line in README and line in (ROOT / ".ci" / "run").read_text()


def test_recording_snippet(tmp_path):
    """The README's lines that write a recording of one's own, run as they are."""
    snippet = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S) if "recording.npz" in block)
    mesh = tmp_path / "ROOT" / "mug" / "my_mug" / "scene_0"
    mesh.mkdir(parents=True)
    code = snippet.replace('"my_root', f'"{tmp_path}/ROOT')
    rng = np.random.default_rng(0)
    quaternion = rng.normal(size=(5, 4))
    names = {"positions": rng.normal(size=(5, 3)) * 0.1, "joints": rng.normal(size=(5, 12)) * 0.1, "scores": np.full(5, 2.0),
             "quaternions": quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)}  # fmt: skip
    exec(code, names)
    write_box(mesh / "mesh.obj", np.array([0.1, 0.1, 0.1]))
    assert len(data.load_dataset(tmp_path / "ROOT", 32, quiet=True).scene) == 5


def test_every_file_that_the_readme_names_exists():
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
