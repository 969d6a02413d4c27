"""The documents keep their word: every python command in them runs, links lead somewhere, sentences are short.

Commands run in this process, made small by flags appended to them. Of sweeps only one of each kind and set of flags
runs; of the others every flag and value is checked.
"""

import importlib
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import write_box
from official import official_file
from test_dexgraspnet import entries_of, write_object

import data
import sweep
import synthesize
import train
import walkthrough
from hand import kinematics
from hand.closing import START, close_hands
from hand.holds import grasp_outcomes, solid_field

ROOT = Path(__file__).parents[1]
DOCS = {name: (ROOT / name).read_text() for name in ("README.md", "DATA.md", "results/README.md")}
README, REPORT = DOCS["README.md"], DOCS["results/README.md"]
OFFICIAL = "pretrain_pointjepa_epoch=499-step=40500.ckpt"
FENCE = re.compile(r"```(\w*)\n(.*?)```", flags=re.S)
COMMAND = re.compile(r"python (?:\w+\.py|-m \w+\.\w+)[^#\n&`]*")
SLOW = re.compile(r"sweep\.py|lab\.speed|lab\.holds|--card|walkthrough\.py|--picture")  # each has its own


def without_code(text):
    return FENCE.sub("", text)


# ---------------------------------------------------------------- commands


def commands():
    """Every python command in the documents once, in order: lines of bash blocks, and code within the text."""
    found = []
    for text in DOCS.values():
        for language, block in FENCE.findall(text):
            found += COMMAND.findall(block) if language == "bash" else []
        found += [code for code in re.findall(r"`([^`\n]+)`", without_code(text)) if COMMAND.fullmatch(code)]
    return list(dict.fromkeys(command.strip() for command in found))


def split_command(command):
    """ "python train.py --k 1" -> ("train", ["--k", "1"]); "python -m lab.speed train" -> ("lab.speed", ["train"])."""
    words = shlex.split(command)[1:]
    return (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])


SET_HERE = {"--out", "--jobs", "--data", "--seeds", "--steps", "--threads", "--precision"}  # by --smoke, or no matter


def run_here():
    """The commands that run: of sweeps one of each kind and set of flags, of walks one with and one without RUN."""
    first = {}
    for command in commands():
        name, argv = split_command(command)
        flags = frozenset(word for word in argv if word.startswith("--")) - SET_HERE
        like = {"sweep": (name, *argv[:1], flags), "walkthrough": (name, "RUN" in argv, flags)}
        first.setdefault(like.get(name, command), command)
    return set(first.values())


@pytest.fixture(scope="module")
def places(box_root, tiny_run, tmp_path_factory):
    """A folder with what the commands' placeholders stand for, and names -> paths."""
    folder = tmp_path_factory.mktemp("docs")
    hyper = {
        "encoder_heads": 2, "predictor_heads": 2, "tokenizer_num_groups": 8, "tokenizer_group_size": 8,
        "transformation_subsample_points": 64,
    }  # fmt: skip
    sizes = {"width": 32, "w1": 16, "w2": 16, "w3": 32, "predictor_width": 16, "predictor_depth": 1}
    official_file(folder / OFFICIAL, hyper, **sizes)
    (folder / "clouds").mkdir()
    for i in range(4):
        np.save(folder / "clouds" / f"{i}.npy", np.random.default_rng(i).normal(size=(64, 3)))
    (folder / "meshes").mkdir()
    write_box(folder / "meshes" / "box.obj", np.array([0.06, 0.06, 0.12]))
    names = {
        "RUN": tiny_run / "run", "ROOT": box_root, "FOLDER": folder / "clouds", "MESHES": folder / "meshes",
        "mug.obj": tiny_run / "box.obj", "my_encoder.pt": tiny_run / "encoder.pt", OFFICIAL: folder / OFFICIAL,
        "FILE.png": folder / "picture.png",
    }  # fmt: skip
    return folder, names


@pytest.fixture(scope="module")
def generated(places):
    """A tiny generated dataset, for its card and for pictures of its hand."""
    root = places[0] / "synthetic"
    synthesize.main(["--out", str(root), "--objects", "4", "--grasps", "4", "--workers", "1", "--quiet"])
    return root


@pytest.fixture(scope="module")
def hand_run(generated, places):
    """A run on it."""
    flags = "--name hand --preset tiny --steps 2 --quiet --threads 1"
    train.main(["--data", str(generated), "--runs", str(places[0]), *flags.split()])
    return places[0] / "hand"


def small(name, argv, places, box_root, count, request):
    """The arguments of a command with placeholders replaced, and flags appended that make it quick."""
    folder, names = places
    names = names | {word: names["my_encoder.pt"] for word in argv if re.fullmatch(r"runs/.*\.pt", word)}
    out = folder / f"out{count}"
    if "RUN" in argv and (name == "walkthrough" or "--picture" in argv):
        names["RUN"] = request.getfixturevalue("hand_run")
    argv = [str(names.get(word, word)) for word in argv]
    if "--pose" in argv:
        argv[argv.index("--pose") + 1 :] = "0.1 0 -1e-1 0 0 0 1".split()
    if "--json" in argv:
        argv[argv.index("--json") + 1] = str(out) + ".json"
    if name == "train":
        argv += f"--data {box_root} --preset tiny --steps 2 --runs {folder} --name run{count} --quiet".split()
        if "jepa" in argv and "--jepa-ckpt" not in argv:
            argv += ["--jepa-ckpt", str(names["my_encoder.pt"])]
    elif name == "pretrain_jepa":
        argv += f"--clouds {folder}/clouds --preset tiny --steps 2 --batch 2 --out {out}.pt --quiet".split()
    elif name == "splits":
        argv += ["--data", str(box_root)]
    elif name == "walkthrough":
        argv += ["--out", f"{out}.png"]
    elif name == "lab.speed":
        argv += (
            "--preset tiny --steps 2 --batch 2".split() if argv[0] == "pretrain" else "--preset tiny --steps 2".split()
        )
        argv += "--threads 1 --device cpu --precision fp32 --quiet".split()
    elif name == "lab.holds":
        argv = f"{request.getfixturevalue('generated')} --grasps 1 --out {out}.csv".split()
    elif name == "sweep":
        argv += f"--out {out} --smoke --runs {out}_runs --jobs 1 --data {box_root}".split()
        if "--against" in argv:
            argv[argv.index("--against") + 1] = str(out)  # itself
        if "--rates" in argv:
            argv[argv.index("--rates") + 1] = f"{out}_rates"  # or the committed trials would gain rows
    elif name == "synthesize" and "--card" in argv:
        argv[argv.index("--card") + 1] = str(request.getfixturevalue("generated"))
        argv += ["--out", str(out)]
    elif name == "synthesize" and "--import" in argv:
        write_object(folder / "published", "core-mug-1", entries_of(np.random.default_rng(0), 4))
        argv[argv.index("--import") + 2] = str(folder / "published")
        argv += f"--out {out} --quiet".split()
    elif name == "synthesize":
        argv += f"--out {out} --grasps 4 --workers 1 --quiet".split()
        argv += [] if "--meshes" in argv else ["--objects", "2"]
    return argv


def check_flags(name, argv):
    """The command's own parser takes it, and train.py every combination of values that a sweep gives."""
    if name == "walkthrough":
        walkthrough.build_parser().parse_args(argv)
        return
    _, _, given = sweep.parse(argv)
    for values in itertools.product(*(value.split(",") for value in given.values())):
        train.parse(list(itertools.chain(*zip(given, values))))


def marked(count, command):
    """Quick, or slow: what trains a grid, draws or times."""
    slow = SLOW.search(command) and command in run_here()
    return pytest.param(count, command, id=command, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("count, command", [marked(*pair) for pair in enumerate(commands())])
def test_command(count, command, places, box_root, request):
    name, argv = split_command(command)
    if command in run_here():
        importlib.import_module(name).main(small(name, argv, places, box_root, count, request))
    else:
        check_flags(name, argv)


def test_every_script_is_shown():
    scripts = {path.stem for path in ROOT.glob("*.py") if 'if __name__ == "__main__"' in path.read_text()}
    assert {split_command(command)[0] for command in commands()} == scripts | {"lab.speed", "lab.holds"}


def test_ci_runs_the_set_up_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text()
    for line in ("pip install", 'python -m pytest -m "not slow"'):
        assert line in README and line in lines


# ---------------------------------------------------------------- snippets


def snippets(word):
    """The python blocks that hold `word`, as (document, code)."""
    blocks = [
        (doc, code) for doc, text in DOCS.items() for language, code in FENCE.findall(text) if language == "python"
    ]
    return [(doc, code) for doc, code in blocks if word in code]


def test_all_snippets_are_tested():
    total = sum(language == "python" for text in DOCS.values() for language, _ in FENCE.findall(text))
    assert total == len(snippets("np.savez")) + len(snippets("load_run")) == 3


@pytest.mark.parametrize("doc, code", snippets("np.savez"), ids=lambda value: value if value in DOCS else "")
def test_recording_snippet(doc, code, tmp_path):
    """What the lines write, beside a mesh, is a dataset."""
    scene = tmp_path / "ROOT" / "mug" / "my_mug" / "scene_0"
    scene.mkdir(parents=True)
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(5, 4))
    names = {
        "positions": rng.normal(size=(5, 3)) * 0.1, "joints": rng.normal(size=(5, 12)) * 0.1, "scores": np.full(5, 2.0),
        "quaternions": quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True),
        "names": [f"joint_{i}" for i in range(12)],
    }  # fmt: skip
    exec(code.replace('"my_root', f'"{tmp_path}/ROOT'), names)
    write_box(scene / "mesh.obj", np.array([0.1, 0.1, 0.1]))
    read = data.load_dataset(tmp_path / "ROOT", 32, quiet=True)
    assert np.allclose(read.joints, names["joints"], atol=1e-6)


def test_prediction_snippet(tiny_run):
    """The wrist of the example is where a hand that closes its fingers holds the object."""
    ((_, code),) = snippets("load_run")
    names = {}
    exec(code.replace('"RUN"', f'"{tiny_run}/run"'), names)
    assert names["joints"].shape == (1, 5, 12)
    matrix = kinematics.pose_to_matrix(names["pose"].numpy())
    field, start = solid_field(*names["mesh"]), START[:1]
    joints, _, free, _ = close_hands(matrix[:, :3, :3], matrix[:, :3, 3], start, np.array([0]), field)
    assert free.all() and grasp_outcomes(field, names["pose"].numpy(), joints).holds.all()


# ---------------------------------------------------------------- links and names


def anchors(text):
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("doc", DOCS)
def test_links_lead_somewhere(doc):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(DOCS[doc])):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / doc).parent / path if path else ROOT / doc
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def test_names_in_the_table_of_sections_exist():
    table = README[README.index("| paper | code |") :].partition("\n\n")[0]
    names = re.findall(r"`(\w+)\.(\w+)`", table)
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_messages_that_the_readme_explains_exist():
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if "tests" not in path.parts)
    table = README[README.index("| what you see |") :].partition("\n\n")[0]
    for seen in re.findall(r"^\| (`.*`) \|", table, flags=re.M):
        for message in re.findall(r"`([^`]+)`", seen):
            for part in message.split("…"):
                assert part.strip(" ,") in source, message


def test_synsets_in_the_documents_are_the_generators():
    from benchmark.shapes import CATEGORIES

    for synset, (maker, *_) in CATEGORIES.items():
        assert f"{maker.__name__} {synset}" in README
        assert re.search(rf"\| {maker.__name__}( \(held out\))? \| {synset} \|", DOCS["DATA.md"])


def test_the_report_has_a_section_for_every_folder_of_results():
    sections = {}
    for section in re.split(r"^### ", without_code(REPORT), flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        sections |= dict.fromkeys(heading.split(", "), body)
    for folder in sorted(path.name for path in (ROOT / "results").iterdir() if path.is_dir()):
        assert "**Question.**" in sections[folder] and "**Finding.**" in sections[folder], folder


# ---------------------------------------------------------------- length


def paragraphs(text):
    """Paragraphs and list items outside code, tables and headings, each a list of its lines."""
    text = re.sub(r"^(\||#|!\[).*$", "", without_code(text), flags=re.M)
    return [item.strip().split("\n") for item in re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. ))", text) if item.strip()]


@pytest.mark.parametrize("doc", DOCS)
def test_sentences_are_short(doc):
    for lines in paragraphs(DOCS[doc]):
        text = re.sub(r"\]\([^)]*\)", "]", " ".join(lines))
        text = re.sub(r"\b(Sec|Eq|Fig)\. ", r"\1 ", re.sub(r"`[^`]*`", "code", text))
        for sentence in re.split(r"(?<=[.!?])[*)\]]*\s", text):
            assert len(sentence.split()) <= 35, sentence


def test_findings_have_at_most_three_lines():
    findings = [lines for lines in paragraphs(REPORT) if lines[0].startswith("**Finding.**")]
    assert len(findings) > 20
    for lines in findings:
        assert len(lines) <= 3, lines[0]


@pytest.mark.parametrize("doc", DOCS)
def test_lines_are_not_endless(doc):
    for line in DOCS[doc].split("\n"):
        assert len(line) <= 400 or line.startswith("|"), line


def test_the_readme_is_ten_minutes():
    assert len(README.splitlines()) <= 200
