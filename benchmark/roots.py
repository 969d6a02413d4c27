"""The default roots, which are made on first use; and what is said about other ones that are not there."""

from pathlib import Path

from benchmark.make import generate
from benchmark.progress import LOG, VERSION, command_line, recorded  # noqa: F401 - VERSION: for whoever reads a root
from cli.errors import UserError
from cli.processes import cores

SIZES = {"mini": (700, 50, 1), "full": (1500, 240, 2)}  # preset -> objects, kept grasps per object, scenes per object
DEFAULT_ROOTS = {"data/synthetic": "mini", "data/full": "full"}


def check_default(root, preset, settings):
    """Stop where a default root was made with other settings than those of its preset; its numbers would differ."""
    if not preset or not settings:
        return
    wanted = dict(zip(("objects", "grasps", "scenes"), SIZES[preset])) | {"preset": preset, "seed": 0, "meshes": None}
    wrong = [f"{key} {settings.get(key)}" for key, value in wanted.items() if settings.get(key) != value]
    if wrong:
        raise UserError(
            f"{root}: was made with {', '.join(wrong)}, which is not its preset {preset}; remove it and run: "
            + command_line(root, {"preset": preset})
        )


def settings_of_preset(name):
    """What `synthesize.py --preset NAME` makes a root from."""
    sizes = dict(zip(("objects", "grasps", "scenes"), SIZES[name]))
    return {"preset": name} | sizes | {"seed": 0, "meshes": None, "up": "z", "rescale": False}


def ensure_root(path, quiet=False):
    """The dataset root `path`; the default roots are made on first use, or finished where they were interrupted."""
    root, preset = Path(path), DEFAULT_ROOTS.get(Path(path).as_posix())
    content, unfinished = recorded(root), (root / LOG).exists()
    check_default(root, preset, content.get("settings", {}))
    if content.get("complete") or root.exists() and not unfinished and any(root.iterdir()):
        return root  # ours, or data of somebody's own
    if preset is None:
        again = command_line(root, {"preset": "mini"} | content.get("settings", {}))
        raise UserError(f"{root}: {'is unfinished' if unfinished else 'no such root'}; make it with: {again}")
    generate(root, settings_of_preset(preset), cores(), quiet)
    return root
