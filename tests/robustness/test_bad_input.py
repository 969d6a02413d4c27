"""Flags and files that no command can mean: one clear line, and nothing is written, changed or run; and odd right ones.

A file that a command reads is spoilt in every way that its kind knows (`spoilt`), by one table (`READERS`).
"""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import BOX_FACES, Planted, corners, interrupted, needs_posix, training, write_root
from rules import broken, mesh_bytes, rejected

import data
import evaluate
import predict
import pretrain_jepa
import splits
import synthesize
import train
import walkthrough
from files.checkpoints import read_checkpoint

TINY = "--preset tiny --steps 2 --quiet --threads 1"
POSE = "--pose 0 0 0.2 0 0 0 1"
COMMANDS = {
    "data": data.main, "splits": splits.main, "train": train.main, "pretrain": pretrain_jepa.main,
    "synthesize": synthesize.main, "evaluate": evaluate.main, "predict": predict.main,
    "walkthrough": walkthrough.main,
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tiny_run, box_root, tmp_path_factory):
    """A folder with a good file of every kind that a command reads."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("good") / "good")
    rng = np.random.default_rng(4)
    (folder / "shapes").mkdir()
    for i in range(4):
        np.save(folder / "shapes" / f"{i}.npy", rng.normal(size=(64, 3)) * 0.1)
    np.save(folder / "cloud.npy", rng.normal(size=(80, 3)) * 0.05)
    np.save(folder / "few.npy", rng.normal(size=(3, 3)) * 0.05)
    np.save(folder / "poses.npy", np.array([[0, 0, 0.2, 0, 0, 0, 1.0]] * 3))
    argv = f"--clouds {folder}/shapes --out {folder}/e.pt {TINY} --batch 2"
    interrupted(pretrain_jepa.main, argv.split(), 1)
    evaluate.main([str(folder / "run"), "--quiet", "--save-predictions", str(folder / "predictions.npz")])
    shutil.copytree(folder / "run", folder / "unfinished").joinpath("result.json").unlink()
    return folder


@pytest.fixture
def place(good, box_root, tmp_path):
    """Where a test may spoil what is good, and the words that stand for it in the tables below."""
    folder = shutil.copytree(good, tmp_path / "good")
    (tmp_path / "out").mkdir()
    return {"good": folder, "root": box_root, "out": tmp_path / "out", "top": tmp_path}


def run_case(place, command, words, names, capsys):
    argv = [word.format(**place) for word in words]
    rejected(COMMANDS[command], argv, names, capsys, place["top"])


# ---------------------------------------------------------------- flags


WORDS = {  # command: flags that are fine
    "data": "{root} --cache-dir {out}",
    "splits": "--data {root} --json {out}/split.json",
    "train": f"--data {{root}} --runs {{out}} {TINY}",
    "pretrain": f"--clouds {{good}}/shapes --out {{out}}/e.pt {TINY} --batch 2",
    "synthesize": "--out {out}/root --quiet",
    "evaluate": "",
    "predict": "{good}/run",
    "walkthrough": "",
}
NO_VALUES = {  # kind of flag: what it must refuse
    "share": ("0", "-0.1", "1.0001", "2", "nan", "inf", "-inf", "", "10%", "a", "1e400", "0,1"),
    # of the huge ones a conversion to float, to an index, to a number of threads would break later
    "count": ("0", "-1", "1.5", "x", "nan", "inf", "", "1e9", *("9" * digits for digits in (10, 20, 401))),
    "whole": ("-1", "1.5", "x", "nan", "", "1e9"),
    "amount": ("-1", "-1e-9", "nan", "inf", "x", ""),
    "number": ("nan", "inf", "x", ""),
    "choice": ("other", "C", "AB", ""),
}
FLAGS = {  # command: kind of flag: flags
    "splits": {"share": "budget", "choice": "pack", "number": "min-score"},
    "data": {"count": "points", "number": "min-score"},
    "train": {
        "share": "budget", "whole": "seed", "number": "min-score",
        "count": "k points patches patch-size steps objects-per-batch grasps-per-object eval-every save-every threads",
        "amount": "radius alpha lr-backbone lr-head weight-decay warmup",
        "choice": "pack init preset pool group loss device precision",
    },
    "pretrain": {
        "count": "steps batch points patches patch-size save-every log-every num-clouds threads", "whole": "seed",
        "amount": "lr weight-decay tau", "choice": "preset device precision normalize up",
    },
    "synthesize": {"count": "objects grasps scenes workers", "whole": "seed", "choice": "up"},
}  # fmt: skip
MORE = """
    train       --budge 0.1 => --budge
    train       --points 7 => points
    train       --group ball => radius
    train       --jepa-ckpt x.pt => --jepa-ckpt
    train       --init jepa => --jepa-ckpt
    train       --loss hedged --k 1 => hedged
    train       --resume --overwrite => --overwrite
    train       --runs {good} --name unfinished --keep-last --resume --seed 5 => other settings (seed)
    train       --runs {good} --name unfinished --keep-last => --resume
    train       extra => extra
    train       --from nowhere.json => nowhere.json
    train       --radius 0.3 => --group ball
    train       --scale 0.1 => --normalize metric
    train       --lora 2 --pool surface => --lora: --pool surface has no encoder
    train       --pool size --normalize metric => --normalize
    train       --init jepa --preset tiny => presets with weights
    train       --init jepa --jepa-ckpt {good}/run/best.pt => trained with labels
    train       --init jepa --jepa-ckpt {good}/encoder.pt --patches 4 => encoder.pt: was pretrained with patches 8
    train       --init jepa --jepa-ckpt {good}/encoder.pt --group ball => encoder.pt: was pretrained with group
    train       --init jepa --jepa-ckpt {good}/encoder.pt --preset small => encoder.pt: is not of --preset small
    pretrain    --batch 99 => --batch
    pretrain    --out {good}/e.pt --resume --threads 2 => threads
    pretrain    --out {good}/e.pt => --resume
    pretrain    --out {out}/e.json => ends in .pt
    pretrain    --tau 1.1 => --tau
    pretrain    --num-clouds 9 => --num-clouds goes with --clouds synthetic
    pretrain    --clouds synthetic --skip-bad => --skip-bad
    pretrain    --patches 1 => --patches
    pretrain    --clouds nowhere => nowhere
    synthesize  --meshes {top}/nowhere => nowhere
    synthesize  --up y => --up
    synthesize  --rescale => --rescale
    synthesize  --card {root} --objects 3 => --card
    synthesize  --card {root} --hand hand.json => --card
    evaluate    => RUN
    evaluate    {good}/nowhere => no run
    evaluate    {good}/box.obj => no run
    evaluate    {good}/run --mesh mug.obj --pose 0 0 -1e-1 0 0 0 1 => python predict.py RUN mug.obj --pose
    evaluate    {good}/run --predictions {good}/predictions.npz => RUN
    evaluate    {good}/run --suite none => --suite
    evaluate    {good}/run --data {top}/moved => moved
    evaluate    {good}/run --seed -1 => --seed
    evaluate    --predictions x.npz --suite test => --suite goes with a RUN
    evaluate    {good}/run --closed 10 => --closed goes with --holds
    evaluate    {good}/run --picture {out}/a.jpg => ends in .png
    evaluate    {good}/run --page {out}/a.png => ends in .html
    predict     {good}/box.obj => --pose
    predict     {good}/box.obj --pose 0 0 0.2 0 0 0 1 --poses {good}/poses.npy => --pose
    predict     {good}/nowhere.obj --pose 0 0 0.2 0 0 0 1 => nowhere.obj
    predict     {good}/encoder.pt --pose 0 0 0.2 0 0 0 1 => encoder.pt
    predict     {good}/box.obj --pose 0 0 0.2 0 0 0 => --pose
    predict     {good}/box.obj --pose 0 0 nan 0 0 0 1 => --pose
    predict     {good}/box.obj --pose 0 0 1.2 0 0 0 1 => --pose
    predict     --pose 0 0 0.2 0 0 0 1 => MESH
    predict     {good}/box.obj --pose 0 0 0 0 0 0 2 => norm
    predict     {good}/box.obj --pose 0 -7.5e-1 0 0 1 0 0 => 0.7 m from the mesh
    predict     {good}/few.npy --pose 0 0 0.2 0 0 0 1 => at least
    predict     {good}/few.npy --pose 0 0 0.2 0 0 0 1 --picture x.png => is a cloud
    predict     {good}/box.txt --pose 0 0 0.2 0 0 0 1 => box.txt
    predict     {good}/box.obj --pose 0 0 0.2 0 0 0 1 --picture {out}/a => ends in .png
    predict     {good}/box.obj --pose 0 0 0.2 0 0 0 1 --page {out}/a.htm => ends in .html
    walkthrough {good}/shapes => no run
    walkthrough --out {out}/a.pdf => ends in .png
    walkthrough {good}/run --encoder {good}/encoder.pt => --encoder
    walkthrough --shape mug --mesh a.obj => --mesh
    walkthrough --encoder {good}/encoder.pt --mesh {good}/few.npy => few.npy"""


def flag_cases():
    """(command, flags, what the message names)."""
    for command, kinds in FLAGS.items():
        for kind, flags in kinds.items():
            for flag in flags.split():
                for value in NO_VALUES[kind]:
                    yield command, [f"--{flag}={value}"], f"--{flag}"
    for line in MORE.strip().splitlines():
        words, name = line.split(" => ")
        command, *flags = words.split()
        yield command, flags, name
    if not torch.cuda.is_available():
        for command in ("train", "pretrain"):
            yield command, ["--device", "cuda"], "--device"


def test_bad_flags(place, capsys, problems):
    cases = list(flag_cases())
    assert len(cases) > 300
    for command, flags, name in cases:
        with problems.of(f"{command} {' '.join(flags)}"):
            run_case(place, command, [*WORDS[command].split(), *flags], (name,), capsys)


# ---------------------------------------------------------------- files


def spoilt(path):
    """(id, write(path)) of what may stand in the place of a good file, by its kind."""
    good = path.read_bytes()
    for name, content in broken(good):
        yield name, lambda target, content=content: target.write_bytes(content)
    yield "a folder", lambda target: target.mkdir()
    yield "a dangling link", lambda target: target.symlink_to("nowhere")
    yield "missing", lambda target: None
    if path.suffix == ".pt":
        for name, content in spoilt_checkpoints(read_checkpoint(path)):
            yield name, lambda target, content=content: torch.save(content, target)
    elif path.suffix == ".json":
        lacking = json.dumps({"network": json.loads(good)["network"]})
        for text in ("{", "[]", "3", "null", '"text"', "{}", '{"settings": []}', "\x00", lacking):
            yield f"JSON {text[:20]}", lambda target, text=text: target.write_text(text, encoding="utf-8")
    elif path.suffix == ".npy":
        for name, array in spoilt_arrays(np.load(path)):
            yield name, lambda target, array=array: np.save(open(target, "wb"), array, allow_pickle=True)
        for name, array in (("padded", np.pad(np.load(path), ((0, 6000), (0, 0)))), ("far away", np.load(path) + 4e5)):
            yield name, lambda target, array=array: np.save(open(target, "wb"), array)
        yield "an archive", lambda target: np.savez(open(target, "wb"), a=np.zeros((2, 7)))
    elif path.suffix == ".npz":
        arrays = dict(np.load(path))
        for key in ("joints_pred", "logits", "joints_true"):
            for name, array in (*spoilt_arrays(arrays[key]), ("one less", arrays[key][1:])):
                yield f"{key}: {name}", lambda target, new={key: array}: np.savez(open(target, "wb"), **arrays | new)
        for name, new in {
            "K = 0": {key: arrays[key][:, :0] for key in ("joints_pred", "logits")},
            "J = 0": {key: arrays[key][..., :0] for key in ("joints_pred", "joints_true")},
            "n = 0": {key: arrays[key][:0] for key in ("joints_pred", "logits", "joints_true")},
            "suites that are numbers": {"suite": np.arange(len(arrays["suite"]))},
            "too few suites": {"suite": arrays["suite"][1:]},
        }.items():
            yield name, lambda target, new=new: np.savez(open(target, "wb"), **arrays | new)


def spoilt_checkpoints(good):
    """(id, content) of well-formed files that hold something else than the checkpoint `good`."""
    weights = next(key for key in ("jepa", "encoder", "model") if key in good)
    name = sorted(good[weights])[0]
    variances = {key: -value for key, value in good[weights].items() if key.endswith("running_var")}
    yield "a list", [1, 2]
    yield "a tensor", torch.zeros(3)
    yield "an empty dict", {}
    yield "code beside the weights", {"planted": Planted(), weights: Planted()}
    yield "no weights", {k: v for k, v in good.items() if k != weights}
    for what, value in (
        ("a list", [1]), ("numbers", {k: 1.0 for k in good[weights]}),
        ("too many", good[weights] | {"x": torch.ones(1)}),
        ("not finite", good[weights] | {name: good[weights][name] * math.nan}),
        ("negative variances", good[weights] | variances),
        ("one too few", {k: v for k, v in good[weights].items() if k != name}),
        ("of another shape", good[weights] | {name: torch.zeros(1, 2, 3)}),
    ):  # fmt: skip
        yield f"weights are {what}", good | {weights: value}
    if weights == "model":
        for hand in ([1], "a hand", {"links": []}, {"work_box": None}, {"work_box": [[0, math.nan]] * 3}):
            yield f"hand is {hand}", good | {"hand": hand}
    yield "config is missing", {k: v for k, v in good.items() if k != "config"}
    yield "config is a list", good | {"config": [1]}
    for field, value in (
        ("width", 64), ("depth", 3), ("heads", 5), ("width", 0), ("points", -1), ("points", "many"), ("group", "other"),
        ("patches", 1000), ("pool", 3), ("w1", 8), ("colour", 1),
    ):  # fmt: skip
        yield f"config says {field} {value}", good | {"config": good["config"] | {field: value}}
    for key, value in (
        ("optimizer", {}), ("optimizer", 3), ("progress", {"stage": 1}), ("progress", []), ("settings", 1),
        ("rng", torch.zeros(3)), ("generator", None), ("generator", torch.zeros(3)),
    ):  # fmt: skip
        if key in good:
            yield f"{key} is {value!r:.20}", good | {key: value}


def spoilt_arrays(good):
    """(id, array) of arrays that cannot stand for `good`, floats (n, …)."""
    for value in (np.nan, np.inf, 1e300):
        bad = good.copy().astype(float)
        bad[1] = value
        yield f"a row of {value}", bad
    for what, shape in (("scalar", ()), ("flat", (7,)), ("empty", (0, *good.shape[1:])), ("deeper", (1, *good.shape))):
        yield f"{what}: {shape}", np.zeros(shape)
    yield "a column less", good[..., :-1]
    yield "a column more", np.concatenate([good, good[..., :1]], -1)
    for kind in (object, bool, complex, "U3"):
        yield f"of type {kind}", good.astype(kind)
    yield "planted code", np.array([Planted()], dtype=object)


RESUME = "--name unfinished --keep-last --no-baseline --no-pictures --resume"
HEAD = {"encoder.position.0.weight": 1e38, "head.9.weight": 1e38, "head.9.bias": 1e12}  # tensors, times what
SAID = {  # of checkpoints, beside the file's name
    "weights are not finite": "not finite, ", "weights are negative variances": "negative variances: ",
    "weights are a list": "not a dict of tensors", "weights are numbers": "not a dict of tensors",
    "weights are too many": "leftover keys: x", "weights are one too few": "missing keys: ",
    "weights are of another shape": "shapes contradict", "config says width 64": "shapes contradict",
    "config says colour 1": "unknown fields: colour", "config says group other": "group must be one of",
    "config says patches 1000": "patches must", "hand is [1]": "no description of a hand",
}  # fmt: skip
ALONE = ("config", "missing", "a dangling", "hand")  # settings and data say these; without last.pt: anew
READERS = [  # a file, who reads it, with which words, and which of the above are fine there
    ("encoder.pt", "train", f"{WORDS['train']} --init jepa --jepa-ckpt {{good}}/encoder.pt", ()),
    ("run/best.pt", "evaluate", "{good}/run --json {out}/out.json", ("missing", "a dangling")),  # not yet validated
    ("run/best.pt", "predict", f"{{good}}/run {{good}}/box.obj {POSE}", ("missing", "a dangling")),
    ("run/config.json", "evaluate", "{good}/run --json {out}/out.json", ()),
    ("run/config.json", "train", f"--from {{good}}/run/config.json --runs {{out}} {TINY}", ()),
    ("unfinished/last.pt", "train", f"--data {{root}} --runs {{good}} {TINY} {RESUME}", ALONE),
    ("unfinished/config.json", "train", f"--data {{root}} --runs {{good}} {TINY} {RESUME}", ("missing", "a dangling")),
    ("e.last.pt", "pretrain", f"{WORDS['pretrain']} --out {{good}}/e.pt --resume", ALONE),
    ("shapes/0.npy", "pretrain", WORDS["pretrain"], ("missing", "a folder", "of type <class 'bool'>")),
    ("cloud.npy", "predict", f"{{good}}/run {{good}}/cloud.npy {POSE}", ("of type <class 'bool'>",)),
    ("poses.npy", "predict", "{good}/run {good}/box.obj --poses {good}/poses.npy", ()),
    ("predictions.npz", "evaluate", "--predictions {good}/predictions.npz", ()),
]  # fmt: skip


def reader(file, by, *more):
    """Last checkpoints of 30 kinds are slow."""
    marks = [pytest.mark.slow] if file.endswith("last.pt") else []
    return pytest.param(file, by, *more, marks=marks, id=f"{file}-{by}")


@pytest.mark.parametrize("file, command, words, fine", [reader(*one) for one in READERS])
def test_bad_files(place, planted, capsys, problems, file, command, words, fine):
    path = place["good"] / file
    for name, write in spoilt(path):
        if name.startswith(fine):
            continue
        kept = path.read_bytes()
        path.unlink()
        write(path)
        with problems.of(f"{file} for {command}: {name}"):
            run_case(place, command, words.split(), (path.name, SAID.get(name, "")), capsys)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(kept)


@pytest.mark.parametrize("file, command, words", [
    ("run/best.pt", "evaluate", "{good}/run --json {out}/out.json"),
    ("run/best.pt", "predict", f"{{good}}/run {{good}}/box.obj {POSE} --json {{out}}/out.json"),
    ("run/best.pt", "walkthrough", "{good}/run --out {out}/out.png"),
    ("encoder.pt", "walkthrough", "--encoder {good}/encoder.pt --out {out}/out.png"),
])  # fmt: skip
def test_weights_that_make_no_numbers(place, capsys, problems, file, command, words):
    """Finite, but what comes out of them is not, or as good as: no table, no picture and no JSON is made of it."""
    path = place["good"] / file
    for name, factor in HEAD.items() if "run" in file else [("position.0.weight", 1e38)]:
        content = read_checkpoint(path)
        content[max(content.keys() & {"model", "encoder"})][name] *= factor
        kept = path.read_bytes()
        torch.save(content, path)
        with problems.of(f"{command}: {name} times {factor:g}"):
            run_case(place, command, words.split(), (file.split("/")[0], "predicts numbers that are not"), capsys)
        path.write_bytes(kept)


# ---------------------------------------------------------------- right, and only unusual


def test_names_with_spaces_and_unicode(tmp_path, capsys):
    names = {"tasse à café ☕": 4, "瓶子": 3, "-dash": 3, "a'b\"c": 3, "new\u00a0space": 3}
    root = write_root(tmp_path / "my röot (1)", names)
    train.main(training(root, tmp_path / "rüns", "--steps", 2, "--name", "mein lauf"))
    out = tmp_path / "aus gabe.json"
    evaluate.main([str(tmp_path / "rüns" / "mein lauf"), "--json", str(out), "--quiet"])
    assert set(json.loads(out.read_text(encoding="utf-8"))["suites"]["val"]["synsets"]) == set(names)
    capsys.readouterr()
    splits.main(["--data", str(root), "--json", str(tmp_path / "split é.json")])
    assert capsys.readouterr().err == ""


@needs_posix
def test_a_name_that_is_not_unicode_is_refused(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 1})
    try:
        os.rename(os.fsencode(root / "a"), os.fsencode(root) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes no such names")
    rejected(data.main, [root], ("udcff", "rename"), capsys, root)


@pytest.mark.parametrize("each", [1, 2])
def test_few_objects_per_category(tmp_path, each):
    """No category can spare an object for its own val and test: all of them together do."""
    root = write_root(tmp_path / "root", {f"category_{i:02d}": each for i in range(20)})
    loaded = data.load_dataset(root, 64, quiet=True)
    for pack in "AB":
        full, small = (splits.make_split(loaded, pack, budget) for budget in (1.0, 0.01))
        assert [len(full.suites[suite]) for suite in ("val", "test", "train")] == [2 * each, 2 * each, 16 * each]
        assert full.suites["val"] == small.suites["val"] and set(small.suites["train"]) <= set(full.suites["train"])
        few, many = ({name.split("/")[0] for name in split.suites["train"]} for split in (small, full))
        assert few == many


# ---------------------------------------------------------------- nothing outside of a folder is opened


@needs_posix
def test_no_path_in_a_file_is_followed(tmp_path):
    """Materials and textures that are said to lie elsewhere: nothing but the root's files is opened."""
    outside, root = tmp_path / "outside", write_root(tmp_path / "root", {"a": 1})
    outside.mkdir()
    os.mkfifo(outside / "trap.png")  # opening it would block for ever
    scene = root / "a" / "object_000" / "scene_0"
    text = (scene / "mesh.obj").read_text(encoding="utf-8")
    os.mkfifo(scene / "trap.mtl")
    (scene / "mesh.obj").write_text("mtllib trap.mtl\nusemtl a\n" + text, encoding="utf-8")
    assert len(data.load_dataset(root, 32, quiet=True).scenes) == 1
    (scene / "mesh.obj").unlink()
    texture = f"ply\ncomment TextureFile {outside}/trap.png\n".encode()
    (scene / "mesh.ply").write_bytes(mesh_bytes(".ply", corners(), BOX_FACES).replace(b"ply\n", texture, 1))
    assert len(data.load_dataset(root, 32, quiet=True).scenes) == 1
