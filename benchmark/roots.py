"""The default root, which is made on first use; and what is said about other ones that are not there."""

from pathlib import Path

from benchmark.progress import DEFAULT_ROOT, LOG, VERSION, command_line, recorded  # noqa: F401
from benchmark.shipped import SETTINGS, unpack
from cli.errors import UserError, refuse
from cli.processes import cores


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default root is made on first use, or finished where that was interrupted."""
    root, default = Path(path), Path(path).as_posix() == DEFAULT_ROOT
    content, unfinished = recorded(root), (root / LOG).exists()
    own = f"{root}: was made with settings of its own, numbers told here are of the benchmark as it ships"
    other = default and content.get("settings", SETTINGS) != SETTINGS
    refuse(other, f"{own}; give it another name, or remove it and run: python synthesize.py")
    if content.get("complete") or root.exists() and not unfinished and any(root.iterdir()):
        return root  # ours, or data of somebody's own
    if default:
        unpack(root, cores(), quiet)
        return root
    refuse(unfinished, f"{root}: is unfinished; make it with: {command_line(root, content.get('settings', {}))}")
    raise UserError(f"{root}: no such root; give the folder in which the data lies now as --data")
