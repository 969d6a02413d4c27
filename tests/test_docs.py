"""The documents keep their word: commands and snippets run, made small; links lead somewhere; nothing is too long."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import write_box, write_root
from official import official_file

import data
import model
import train
from benchmark.shapes import CATEGORIES
from hand import kinematics
from hand.closing import close_hands
from hand.described import BENCHMARK
from hand.holds import grasp_outcomes, solid_field

ROOT = Path(__file__).parents[1]
DOCS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "EXERCISES.md", "DATA.md", "results/README.md")
}
README, REPORT = DOCS["README.md"], DOCS["results/README.md"]
OFFICIAL = "pretrain_pointjepa_epoch=499-step=40500.ckpt"
FENCE = re.compile(r"```([^\n]*)\n(.*?)```", flags=re.S)
OF_THEN = "bash ec45174"  # a block of commands that were run at that commit: today's flags may be others
COMMAND = re.compile(r"python (\w+)\.py([^#\n&`]*)")


def commands():
    """Every python command of today, (script, its arguments but --out): of bash blocks, and of code within the text."""
    found = []
    for text in DOCS.values():
        found += [pair for fence, block in FENCE.findall(text) if fence == "bash" for pair in COMMAND.findall(block)]
        codes = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        found += [match.groups() for match in map(COMMAND.fullmatch, codes) if match]
    found = dict.fromkeys((name, re.sub(r"--out \S+", "", arguments).strip()) for name, arguments in found)
    # a pooling of the reader's is tried below, a card in its own test
    return [pair for pair in found if "median" not in pair[1] and "--card" not in pair[1]]


@pytest.fixture(scope="module")
def places(box_root, tiny_run, shapes, tmp_path_factory):
    """What the commands' placeholders stand for: name -> path."""
    folder = tmp_path_factory.mktemp("docs")
    hyper = {"encoder_heads": 2, "predictor_heads": 2, "tokenizer_num_groups": 8, "tokenizer_group_size": 8}
    sizes = {"width": 32, "w1": 16, "w2": 16, "w3": 32, "predictor_width": 16, "predictor_depth": 1}
    official_file(folder / OFFICIAL, hyper | {"transformation_subsample_points": 64}, **sizes)
    write_box(folder / "meshes" / "box.obj", (0.06, 0.06, 0.12))
    names = {
        "ROOT": box_root, "my_root": box_root, "RUN": tiny_run / "run",
        "other_root": write_root(folder / "other", {"1": 3}, seed=5),
        "mug.obj": tiny_run / "box.obj", "MESHES": folder / "meshes", "data/real_meshes/objects": folder / "meshes",
        "my_hand.json": ROOT / "hand/benchmark.json", "my_encoder.pt": tiny_run / "encoder.pt",
        OFFICIAL: folder / OFFICIAL, "FOLDER": shapes,
        "FILE.png": folder / "picture.png", "FILE.html": folder / "page.html",
    }  # fmt: skip
    return {name: str(path) for name, path in names.items()}


def small(name, argv, places, out, request):
    """The arguments of a command with placeholders replaced, and flags appended that make it quick."""
    if "RUN" in argv and (name == "walkthrough" or "--picture" in argv):
        places = places | {"RUN": str(request.getfixturevalue("named_run"))}  # pictures need the hand
    argv = [places.get(word, word) for word in argv]
    root = places["ROOT"]
    if "--pose" in argv:
        argv[argv.index("--pose") + 1 :] = "0 -0.1 0.16 0 1 0 0".split()
    if name == "train" and "jepa" in argv and "--jepa-ckpt" not in argv:
        argv += ["--jepa-ckpt", places["my_encoder.pt"]]
    appended = {
        "train": f"--data {root} --preset tiny --steps 2 --runs {out} --name run --quiet --no-baseline --no-pictures",
        "pretrain_jepa": f"--clouds {places['FOLDER']} --preset tiny --steps 2 --batch 2 --out {out}/e.pt --quiet",
        "splits": f"--data {root}",
        "walkthrough": f"--out {out}/walk.png",
        "sweep": f"--smoke --data {root} --jobs 1 --runs {out}/runs --out {out}/table",
        "synthesize": f"--out {out}/made --grasps 4 --scenes 1 --workers 1 --quiet"
        + " --objects 2" * ("--meshes" not in argv),
    }.get(name, "")
    return argv + appended.split()


def command_case(name, arguments):
    slow = name in ("sweep", "walkthrough") or "--picture" in arguments  # trains a grid or draws
    return pytest.param(name, arguments, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize("name, arguments", [command_case(*pair) for pair in commands()])
def test_command(name, arguments, places, tmp_path, request):
    importlib.import_module(name).main(small(name, shlex.split(arguments), places, tmp_path, request))


def test_every_script_is_shown():
    scripts = {
        path.stem for path in ROOT.glob("*.py") if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    assert scripts == {name for name, _ in commands()}


def test_ci_runs_the_set_up_of_the_readme():
    for line in ("pip install", 'python -m pytest -m "not slow"'):
        assert line in README and line in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


SNIPPETS = [code for text in DOCS.values() for fence, code in FENCE.findall(text) if fence == "python"]
POOLING, PREDICTION, RECORDING = sorted(SNIPPETS, key=lambda code: ("POOLS" not in code, "np.savez" in code))


def test_pooling_of_the_exercise(box_root, tmp_path):
    """The lines, put where they belong, make a flag's value that trains."""
    exec(POOLING, vars(model).copy())
    places = f"--data {box_root} --cache-dir {tmp_path} --runs {tmp_path} --name run --preset tiny --steps 2 --quiet"
    try:
        train.main([*places.split(), "--pool", "median", "--no-baseline", "--threads", "1"])
    finally:
        model.POOLS.pop("median")


def test_recording_snippet(tmp_path):
    """What the lines write, beside a mesh, is a dataset."""
    mesh = tmp_path / "mug" / "my_mug" / "scene_0" / "mesh.obj"
    write_box(mesh, (0.1, 0.1, 0.1))
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(5, 4))
    names = {
        "positions": rng.normal(size=(5, 3)) * 0.1, "joints": rng.normal(size=(5, 12)) * 0.1, "scores": np.full(5, 2.0),
        "quaternions": quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
    }  # fmt: skip
    exec(RECORDING.replace('"my_root', f'"{tmp_path}'), names)
    read = data.load_dataset(tmp_path, 32, quiet=True)
    assert np.allclose(read.joints, names["joints"], atol=1e-6)


def test_prediction_snippet(tiny_run):
    """The wrist of the example is where a hand that closes its fingers holds the object."""
    names = {}
    exec(PREDICTION.replace('"RUN"', f'"{tiny_run}/run"'), names)
    assert names["joints"].shape == (1, 5, 12)
    matrix = kinematics.pose_to_matrix(names["pose"].numpy())
    field, start = solid_field(*names["mesh"]), BENCHMARK.start[:1].astype(np.float32)
    joints, _ = close_hands(matrix, start, np.array([0]), field)
    assert grasp_outcomes(field, names["pose"].numpy(), joints).holds.all()


def anchors(text):
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("doc", DOCS)
def test_links_lead_somewhere(doc):
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", DOCS[doc]))
    for link in [link for link in links if not link.startswith("https://")]:
        path, _, anchor = link.partition("#")
        target = (ROOT / doc).parent / path if path else ROOT / doc
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_names_in_the_table_of_sections_exist():
    table = README[README.index("| paper | code |") :].partition("\n\n")[0]
    for module, name in re.findall(r"`(\w+)\.(\w+)`", table):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_messages_that_the_readme_explains_exist():
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if "tests" not in path.relative_to(ROOT).parts
    )
    table = README[README.index("| what you see |") :].partition("\n\n")[0]
    for seen in re.findall(r"^\| (`.*`) \|", table, flags=re.M):
        for part in "…".join(re.findall(r"`([^`]+)`", seen)).split("…"):
            assert part.strip(" ,") in source, part


def test_categories_in_the_documents_are_the_generators():
    for synset, (maker, *_) in CATEGORIES.items():
        assert re.search(rf"\| {maker.__name__}( \(held out\))? \| {synset} \|", DOCS["DATA.md"])


def test_values_with_commas_are_quoted():
    """Unquoted, they are lists to a shell of Windows."""
    lines = [line for text in DOCS.values() for _, block in FENCE.findall(text) for line in block.splitlines()]
    commands = [line.split("#")[0] for line in lines if line.startswith("python ")]
    assert len(commands) > 30 and not [line for line in commands if re.search(r" --[\w-]+ [^\" ]+,", line)]


def test_the_report_and_the_folders_of_results_are_the_same():
    folders = {path.name for path in (ROOT / "results").iterdir() if path.is_dir()}
    assert set(re.findall(r"\]\(([\w-]+)/", REPORT)) == folders
    blocks = [block for fence, block in FENCE.findall(REPORT) if fence == OF_THEN]
    assert {name for block in blocks for name in re.findall(r"results/([\w-]+)", block)} <= folders | {"lr-grid"}
    assert OF_THEN.split()[1] in FENCE.sub("", REPORT)


def test_a_section_with_commands_has_a_finding():
    for section in re.split(r"^## ", REPORT, flags=re.M):
        assert "**Finding.**" in section or "```" not in section, section


WORDS = {"README.md": 2000, "EXERCISES.md": 1150, "DATA.md": 1400, "results/README.md": 5000}


@pytest.mark.parametrize("doc, most", WORDS.items())
def test_words(doc, most):
    assert len(DOCS[doc].split()) <= most


def test_the_answer_and_its_table_are_short():
    answer = README.partition("**Does pretraining help?**")[2].partition("\n\n")[0]
    results = README.partition("## Results")[2].partition("\n\n")[2].partition("\n\n")[0]
    assert 0 < len(answer.split()) <= 60 and results.split("\n")[0].count("|") == 6  # five columns
