"""files/reading.py: meshes and arrays of other people, read as they are, and nothing else opened."""

import os
import shutil

import numpy as np
import pytest
import trimesh
from conftest import write_root

from cli.errors import UserError
from data import load_dataset
from files.reading import read_mesh


@pytest.mark.parametrize("extension", [".obj", ".stl", ".ply", ".off", ".glb"])
def test_every_format_gives_the_same_surface(tmp_path, extension):
    box = trimesh.util.concatenate(
        [trimesh.creation.box((0.1, 0.2, 0.3)), trimesh.creation.icosphere(1, 0.05).apply_translation((0.5, 0, 0))]
    )
    path = tmp_path / f"mesh{extension}"
    box.export(path)
    vertices, faces = read_mesh(path)
    again = trimesh.Trimesh(vertices, faces, process=False)
    assert again.area == pytest.approx(box.area, rel=1e-5)
    assert np.allclose(again.bounds, box.bounds, atol=1e-6)


def test_materials_and_links_are_not_followed(tmp_path):
    root = write_root(tmp_path / "root", {"03797390": 1})
    scene = root / "03797390" / "object_000" / "scene_0"
    text = (scene / "mesh.obj").read_text(encoding="utf-8")
    os.mkfifo(scene / "trap.mtl")  # opening it would block for ever
    (scene / "mesh.obj").write_text("mtllib trap.mtl\nusemtl a\n" + text, encoding="utf-8")
    assert len(load_dataset(root, 64, quiet=True).scenes) == 1
    outside = tmp_path / "outside.obj"
    shutil.move(scene / "mesh.obj", outside)
    (scene / "mesh.obj").symlink_to(outside)
    with pytest.raises(UserError, match="leads out of"):
        load_dataset(root, 64, quiet=True)
