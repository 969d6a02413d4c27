"""The house itself: which file may import which, how long a line may be."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("plumbing", "synthetic", "lab")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py"))])

# Each file, or the files of each folder, may import these of ours and nothing else: what stands below it.
# Imports inside a function are free, since they are made when it runs.
MAY_IMPORT = {
    "plumbing": "plumbing",
    "variants": "plumbing.fast",
    "model": "variants plumbing",
    "data": "plumbing",
    "splits": "data plumbing",
    "synthetic": "synthetic data plumbing",
    "synthesize": "synthetic data plumbing",
    "pretrain_jepa": "synthetic.shapes data model plumbing",
    "evaluate": "splits synthetic data model plumbing",
    "controls": "splits model variants plumbing",
    "train": "controls evaluate splits data model variants plumbing",
    "walkthrough": "evaluate synthetic data model variants plumbing",
    "lab": "lab controls train pretrain_jepa evaluate splits synthetic data model variants plumbing",
    "sweep": "lab train evaluate splits data model plumbing",
}


def name_of(path):
    """`plumbing/fast.py` -> plumbing.fast, `model.py` -> model, `lab/__init__.py` -> lab."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in SOURCES}


def statements(node):
    """All statements under a node that run when the file is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield child
            yield from statements(child)


def imports(path):
    """Names of our own files that a file imports when it is imported itself."""
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}  # `from synthetic import hand`
            found |= inside & NAMES or {node.module}
    return found & NAMES


def test_imports_are_found():
    assert {"data", "plumbing.common", "splits"} <= imports(ROOT / "evaluate.py")
    assert "synthetic.hand" in imports(ROOT / "synthetic" / "grasps.py")
    assert "lab.speed" not in imports(ROOT / "train.py")  # inside a function
    assert imports(ROOT / "plumbing" / "common.py") == set()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_imports_only_what_stands_below_it(name):
    path = ROOT / (name.replace(".", "/") + ".py")
    path = path if path.exists() else ROOT / name / "__init__.py"
    allowed = MAY_IMPORT[name.split(".")[0]].split()
    for found in imports(path):
        assert found in allowed or found.split(".")[0] in allowed, f"{name} imports {found}, which stands above it"


def test_no_import_goes_round():
    """Within a folder too: there is an order in which every file needs only earlier ones."""
    graph = {name_of(path): imports(path) - {name_of(path)} for path in SOURCES}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(SOURCES)


def test_the_paper_stands_on_its_own():
    """Who reads the method reads model.py: our own variants know nothing of it, and it knows of no data."""
    assert imports(ROOT / "variants.py") == {"plumbing.fast"}
    below, todo = set(), ["model"]
    while todo:
        new = imports(ROOT / (todo.pop().replace(".", "/") + ".py")) - below
        below |= new
        todo += new
    assert below == {"variants"} | {f"plumbing.{name}" for name in ("checkpoint", "common", "fast")}


def test_lines_end_before_column_120():
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 120
    ]
    assert not long, long
