"""The house itself: which file may import which, how long a line may be."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cli", "files", "loop", "hand", "benchmark", "pictures", "lab")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))])

# Each file, or the files of each folder, may import these of ours and nothing else: what stands below it.
MAY_IMPORT = {
    "cli": "cli",
    "files": "files cli",
    "files.config": "controls variants model cli",
    "files.checkpoints": "controls variants model loop.fast files cli",
    "model": "",
    "variants": "loop.fast model cli",
    "controls": "variants model cli",
    "data": "hand files cli",
    "hand": "hand files cli",
    "benchmark": "benchmark hand pictures data files cli",
    "benchmark.card": "benchmark hand pictures data files cli",
    "synthesize": "benchmark hand data files cli",
    "splits": "benchmark.shipped data files cli",
    "pictures": "pictures hand files cli",
    "loop": "loop variants model files cli",
    "evaluate": "splits pictures hand benchmark.shipped data model files loop cli",
    "predict": "pictures hand data model files loop cli",
    "pretrain_jepa": "benchmark data model loop files cli",
    "train": "evaluate splits pictures benchmark.shipped data controls variants model loop files cli",
    "walkthrough": "evaluate splits pictures hand benchmark data controls variants model files cli",
    "lab": "lab train pretrain_jepa predict evaluate splits benchmark pictures hand data controls variants model loop "
    "files cli",
    "sweep": "lab train evaluate files loop model cli",
}


def name_of(path):
    """`loop/fast.py` -> loop.fast, `model.py` -> model, `lab/__init__.py` -> lab."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in SOURCES}


@functools.cache
def nodes(path):
    """Every node of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports(path):
    """Names of our own files that a file imports, inside functions too."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}  # `from hand import kinematics`
            found |= inside & NAMES.keys() or {node.module}
    return found & NAMES.keys()


def test_imports_are_found():
    assert {"data", "cli.errors", "splits"} <= imports(NAMES["evaluate"])
    assert "hand.kinematics" in imports(NAMES["hand.closing"])
    assert imports(NAMES["cli.errors"]) == set()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_imports_only_what_stands_below_it(name):
    allowed = MAY_IMPORT.get(name, MAY_IMPORT[name.split(".")[0]]).split()
    for found in imports(NAMES[name]):
        assert found in allowed or found.split(".")[0] in allowed, f"{name} imports {found}, which stands above it"


def test_no_import_goes_round():
    """Within a folder and inside functions too: there is an order in which every file needs only earlier ones."""
    graph = {name: imports(path) - {name} for name, path in NAMES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(SOURCES)


def test_lines_end_before_column_120():
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert not long, long


def test_text_is_read_and_written_in_one_encoding():
    """Windows would take its own: every open() of text, read_text() and write_text() names one."""
    bare = []
    for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]:
        for call in (node for node in nodes(path) if isinstance(node, ast.Call)):
            mode = ast.unparse(call.args[1]) if len(call.args) > 1 else ""
            opens = isinstance(call.func, ast.Name) and call.func.id == "open" and "b" not in mode
            reads = isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text")
            if (opens or reads) and "encoding" not in {keyword.arg for keyword in call.keywords}:
                bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not bare, bare
