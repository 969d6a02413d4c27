"""files/reading.py: meshes and arrays of other people, read as they are, and nothing else opened."""

import numpy as np
import pytest
from conftest import write_root

from benchmark.clouds import folder_clouds
from benchmark.meshes import mesh_objects
from data import load_dataset


LINKS = [  # a link in a folder of 2 objects, where it leads, how many meshes it adds or what is said of it
    ("z", "{store}/a", 3), ("z", "{store}/b", 3), ("z", "a", 2), ("a/z", "{store}/a/object_001", 1),
    ("a/object_000/z", "../object_001/scene_0", 1), ("z", "nowhere", "z (No such file"),
    ("a/z", "z", "a/z (Too many levels"), ("z", ".", "z (leads back to {top})"), ("z", "{top}/..", "z (leads back"),
    ("a/object_000/z", "../..", "a/object_000/z (leads back to {top})"),
    ("z", "{store}/c", "z/back (leads back to {top})"),
]  # fmt: skip


@pytest.mark.parametrize("link, target, outcome", LINKS)
def test_links_are_followed_once_or_named(tmp_path, capsys, link, target, outcome):
    """In roots of recordings, folders of meshes and folders of clouds alike."""
    top, store = write_root(tmp_path / "top", {"a": 2}), write_root(tmp_path / "store", {"a": 3, "c": 0})
    (store / "b").symlink_to("a")  # a link to a link
    (store / "c").mkdir()
    (store / "c/back").symlink_to(top)
    (top / link).symlink_to(target.format(top=top, store=store))
    capsys.readouterr()
    for count in (
        lambda: len(load_dataset(top, 32, quiet=True).scenes),
        lambda: len(mesh_objects(top, tmp_path / "out")),
        lambda: len(folder_clouds(top, 32, quiet=True)),
    ):
        assert count() == 2 + (outcome if isinstance(outcome, int) else 0)
        warned = [line for line in capsys.readouterr().err.splitlines() if "links" in line]
        assert not warned if isinstance(outcome, int) else outcome.format(top=top) in warned[0] and len(warned) == 1


def test_linked_files_are_read_wherever_they_lie(tmp_path):
    top, store = write_root(tmp_path / "top", {"a": 1}), write_root(tmp_path / "store", {"a": 2}, seed=1)
    for scene in ("a/object_000/scene_0", "a/object_001/scene_0"):
        (top / scene).mkdir(parents=True, exist_ok=True)
        for name in ("mesh.obj", "recording.npz"):
            (top / scene / name).unlink(missing_ok=True)
            (top / scene / name).symlink_to(store / scene / name)
    assert load_dataset(top, 32, quiet=True).mesh_hashes == load_dataset(store, 32, quiet=True).mesh_hashes
    assert np.array_equal(folder_clouds(top, 32, quiet=True), folder_clouds(store, 32, quiet=True))
