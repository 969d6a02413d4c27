"""One file per root and number of points with all that was read: clouds, grasps, and an index that says of what."""

import hashlib
import json
from pathlib import Path

import numpy as np

from files.reading import read_npz
from files.writing import atomic

VERSION = 3  # goes up whenever the same file gives another cloud or other grasps than before
INDEXED = ("name", "stamps", "recording_hash", "mesh_hash", "joint_names")
ARRAYS = ("poses", "joints", "scores")


def cache_path(root, num_points, folder):
    """Where the cache of a root and N lies; folder: None for ROOT/.cache."""
    if folder is None:
        return root / ".cache" / f"points-{num_points}.npz"
    tag = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return Path(folder) / f"{root.name}-{tag}-points-{num_points}.npz"


def read_cache(path):
    """Scenes by name from a cache file, as `data.read_scene` makes them; empty where it is missing or of no use."""
    try:
        stored = read_npz(path, "remove it")
        index = json.loads(stored["index"].tobytes())
        if index["version"] != VERSION:
            return {}
        scenes, start = {}, 0
        for entry, cloud in zip(index["scenes"], stored["clouds"], strict=True):
            rows = slice(start, start := start + entry.pop("count"))
            scenes[entry["name"]] = entry | {"cloud": cloud} | {name: stored[name][rows] for name in ARRAYS}
        return scenes
    except Exception:  # missing or broken in whatever way: it is made again
        return {}


def write_cache(path, scenes):
    """Write the scenes to one file, atomically; a folder that cannot be written means no cache, not an error."""
    index = [{name: scene[name] for name in INDEXED} | {"count": len(scene["scores"])} for scene in scenes]
    index = json.dumps({"version": VERSION, "scenes": index}).encode()
    arrays = {name: np.concatenate([scene[name] for scene in scenes]) for name in ARRAYS}
    clouds = np.stack([scene["cloud"] for scene in scenes])
    try:
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, index=np.frombuffer(index, dtype=np.uint8), clouds=clouds, **arrays)
    except OSError:
        pass  # a root that is read-only
