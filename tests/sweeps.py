"""What the tests of sweep.py and lab/ share."""

import sweep


def arguments(box_root, tmp_path, *more, kind="grid"):
    """A smoke sweep over the dataset of boxes, its table in TMP/table and its runs in TMP/runs."""
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    return [str(word) for word in (kind, "--smoke", *places, *more)]


def parsed(*argv):
    """sweep.py's own arguments."""
    args, _, _ = sweep.parse(argv)
    return args
