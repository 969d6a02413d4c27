"""Folders of other people's meshes: none is lost without a line, sizes name their factor, one object is one group.

And links, which are followed in roots of recordings, too.
"""

import json

import numpy as np
import pytest
import trimesh
from conftest import fails, stopped, write_box, write_root

import data
import splits
import synthesize
from benchmark.clouds import folder_clouds
from benchmark.meshes import mesh_objects
from files.reading import read_mesh

BOX = np.array([0.05, 0.06, 0.1])  # m


def write_meshes(folder, names, scale=1):
    """A box of its own size under each name."""
    for i, name in enumerate(names):
        write_box(folder / name, BOX * (1 + 0.01 * i) * scale)
    return folder


def words(folder, out, *flags):
    flags = ("--meshes", folder, "--out", out, "--grasps", 1, "--scenes", 1, "--workers", 1, *flags)
    return [str(word) for word in flags]


def make(folder, out, *flags):
    synthesize.main(words(folder, out, *flags))
    return json.loads((out / "dataset.json").read_text(encoding="utf-8"))


def objects_of(root):
    return sorted(path.parent.relative_to(root).parent.as_posix() for path in root.rglob("recording.npz"))


NAMES = [  # file and the object that it becomes, whatever the order of those that differ by a number
    ("cups/my cup.obj", "cups/my_cup"), ("cups/my(cup).obj", "cups/my_cup"), ("cups/MY_CUP.obj", "cups/MY_CUP"),
    ("cups/my/cup.obj", "cups/my_cup"), ("my_cup.obj", "unsorted/my_cup"), ("cups/my_cup_2.obj", "cups/my_cup_2"),
    ("cups/(.obj", "cups/_"), ("cups/tin.obj", "cups/tin"), ("cups/tin.stl", "cups/tin_stl"),
]  # fmt: skip


def test_every_mesh_becomes_an_object(tmp_path):
    folder = write_meshes(tmp_path / "meshes", [name for name, _ in NAMES if name.endswith(".obj")])
    write_meshes(folder, ["cups/._a.obj", "__MACOSX/cups/a.obj", ".git/c.obj", "out/cups/a/0/mesh.obj"])  # no meshes
    trimesh.creation.box(BOX).export(folder / "cups/tin.stl")
    found = ["/".join(names) for names in mesh_objects(folder, folder / "out")]  # a root's own meshes are not new ones
    assert len({name.lower() for name in found}) == len(NAMES)  # also where the disk knows no capitals
    plain = {name.lower().rstrip("_0123456789") for name in found}
    assert plain == {name.lower().rstrip("_0123456789") for _, name in NAMES}


def test_nothing_usable_is_an_error_that_leaves_nothing(tmp_path, capsys):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj", "cups/b.obj"], scale=100)
    (folder / "cups/a.obj").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    code, err = stopped(synthesize.main, words(folder, tmp_path / "out"))
    assert code == 2 and err.startswith("error: ") and "none of its objects (2) can be used" in err
    out = capsys.readouterr().out
    assert "not used: cups/a: " in out and "Git LFS" in out and "not used: cups/b: longest side 10" in out
    assert not (tmp_path / "out").exists()
    write_meshes(folder, ["cups/a.obj"])  # mended: the same command goes on
    assert make(folder, tmp_path / "out")["objects"] == 1


def test_broken_and_turned_meshes(tmp_path, capsys):
    folder = tmp_path / "meshes"
    (folder / "tins").mkdir(parents=True)
    tin = trimesh.creation.cylinder(0.03, 0.12, sections=24)
    tin.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))  # y up
    rng = np.random.default_rng(0)
    faces = np.where(rng.random((len(tin.faces), 1)) < 0.5, tin.faces, tin.faces[:, ::-1])  # windings of both kinds
    faces = faces[rng.random(len(faces)) > 0.1]  # and holes
    trimesh.Trimesh(tin.vertices, faces, process=False).export(folder / "tins/broken tin.ply")
    (folder / "nonsense.obj").write_text("not a mesh", encoding="utf-8")
    (folder / "linked.obj").symlink_to("linked.obj")
    write_box(folder / "line.obj", (0.1, 0, 0))
    content = make(folder, tmp_path / "out", "--up", "y", "--scenes", 2, "--grasps", 6)
    text = capsys.readouterr().out
    assert "unsorted/line: " in text and "line.obj: the surface area is 0 m²" in text
    assert "unsorted/nonsense: " in text and "unsorted/linked: " in text and "Too many levels" in text
    assert objects_of(tmp_path / "out") == ["tins/broken_tin"] * 2 and content["grasps_kept"] == 6
    vertices, _ = read_mesh(tmp_path / "out/tins/broken_tin/0/mesh.obj")
    np.testing.assert_allclose(np.ptp(vertices, axis=0), (0.06, 0.06, 0.12), atol=2e-3)
    assert abs(vertices[:, 2].min()) < 1e-6


# ---------------------------------------------------------------- sizes


def test_meshes_of_another_size_are_told_what_mends_it(tmp_path, capsys, problems):
    for longest, middle, said in (
        (120, 80, "millimetres? Scale it by 0.001 with --mesh-scale, which is for all; or --rescale mends it"),
        (0.27, 0.1, "usable is 0.05 to 0.25 m and up to 0.15 m; --rescale mends it"),
        (0.2, 0.18, "up to 0.15 m; --rescale mends it"),
        (0.04, 0.03, "up to 0.15 m; --rescale mends it"),
    ):
        write_box(tmp_path / "meshes/a.obj", (longest, middle, middle / 2))
        stopped(synthesize.main, words(tmp_path / "meshes", tmp_path / "out"))
        with problems.of(longest):
            assert said in capsys.readouterr().out
    write_box(tmp_path / "meshes/a.obj", (120, 80, 40))
    stopped(synthesize.main, words(tmp_path / "meshes", tmp_path / "out", "--mesh-scale", 0.1))
    assert "Scale it by 0.001 with" in capsys.readouterr().out  # of the file, not of what 0.1 makes of it


def test_mesh_scale_and_rescale(tmp_path, capsys):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj"], scale=100)
    content = make(folder, tmp_path / "scaled", "--mesh-scale", 0.01)
    assert content["settings"]["mesh-scale"] == 0.01
    np.testing.assert_allclose(np.ptp(read_mesh(tmp_path / "scaled/cups/a/0/mesh.obj")[0], axis=0), BOX, atol=1e-6)
    other = fails(synthesize.main, words(folder, tmp_path / "scaled"), capsys)
    assert "other settings (mesh-scale 0.01 there, None here)" in other
    write_meshes(folder, ["cups/fits.obj"])
    content = make(folder, tmp_path / "rescaled", "--rescale")
    assert content["objects"] == 2
    np.testing.assert_allclose(np.ptp(read_mesh(tmp_path / "rescaled/cups/a/0/mesh.obj")[0], axis=0), BOX / 0.4)


# ---------------------------------------------------------------- one object, several meshes


ONE = [  # the meshes of one object each, without a category before them
    "visual collision", "cup0_visual cup0_collision", "cup0 cup0_collision", "visual_cup0 collision_cup0",
    "cup0-Visual cup0-COLLISION", "cup0_textured cup0_nontextured", "cup_visual_0 cup_collision_0", "cup0.vis cup0.col",
    "tin tin_stl", "cup_lod0 cup_LOD1 cup_lod_2", "cup cup_simplified cup_10k cup-decimated cup_20k_faces",
    "google_16k_textured google_512k_textured poisson_textured tsdf_textured",
    "cup_visual cup_collision_0 cup_collision_31", "cup_cup cup_coacd_cup_piece_1", "cup cup_decimated_0_5",
    "cup_low_poly cup_highpoly cup_model", "obj_000001 obj_000001_eval", "visual hull_00 hull_01",
    "Soda_Orig_tex Soda_25k_tex Soda_800_tex", "a_meshes_poisson a_textured_meshes_optimized_tsdf_textured_mesh",
]  # fmt: skip
OTHERS = [
    "cup0 cup1", "cup_visual_0 cup_visual_1", "visualise collision", "col1 col2", "Cup cup", "cup_ cup",
    "chess_piece_1 chess_piece_2", "model_1 model_2 model_3", "obj_000001 obj_000002", "cup_2 cup_3 cup", "kit kit_b",
]  # fmt: skip


@pytest.mark.parametrize("meshes", ONE + OTHERS)
def test_meshes_of_one_object_are_one_group(meshes):
    names = sorted(f"cups/{name}" for name in meshes.split())
    leader = splits.duplicate_groups(names, map(str, range(len(names))))
    assert leader == (dict.fromkeys(names, names[0]) if meshes in ONE else dict(zip(names, names)))


FOLDERS = [  # files, the folders that are named since what they hold may be one object
    ("can/laser/m.obj can/kinect/m.obj box/laser/m.obj box/kinect/m.obj", "box, can"),
    ("cups/cup0/a.obj cups/cup0/b.obj cups/cup1/a.obj", "cups/cup0"),
    ("cups/cup0/hull_0.obj cups/cup0/hull_1.obj", "cups/cup0"),
    ("cups/0.obj cups/1.obj bowls/0.obj bowls/1.obj", ""), ("cups/a/m.obj cups/b/m.obj bowls/c/m.obj", ""),
    ("visual/a.obj visual/b.obj collision/a.obj collision/b.obj", ""), ("cups/a/visual.obj cups/a/collision.obj", ""),
    ("cups/a.obj cups/b.obj bowls/c.obj", ""), ("cups/a/a.obj cups/a/a_piece_1.obj", ""),
]  # fmt: skip


@pytest.mark.parametrize("files, named", FOLDERS)
def test_folders_that_may_be_one_object_are_named(tmp_path, capsys, files, named):
    folder = write_meshes(tmp_path / "meshes", files.split())
    mesh_objects(folder, tmp_path / "out")
    err = capsys.readouterr().err
    assert err.endswith(f": {named}\n") and err.count("\n") == 1 if named else not err


def test_reconstructions_of_an_object_stay_on_one_side(tmp_path, capsys):
    """YCB's layout, from the meshes to the split."""
    kinds = ("google_16k", "tsdf")
    folder = write_meshes(tmp_path / "in", [f"{i:03d}_can/{kind}/textured.obj" for i in range(3) for kind in kinds])
    make(folder, tmp_path / "out", "--grasps", 4)
    assert "6 meshes of 3 objects by name" in capsys.readouterr().out
    split = splits.make_split(data.load_dataset(tmp_path / "out", 32, quiet=True))
    sides = [{name.split("/")[0] for name in split.suites[suite]} for suite in ("train", "val", "test")]
    assert list(map(len, sides)) == [1, 1, 1] and len(set.union(*sides)) == 3
    assert capsys.readouterr().err.count("6 objects share a mesh, or a name") == 1


# ---------------------------------------------------------------- links


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
        lambda: len(data.load_dataset(top, 32, quiet=True).scenes),
        lambda: len(mesh_objects(top, tmp_path / "out")),
        lambda: len(folder_clouds(top, 32, quiet=True)),
    ):
        assert count() == 2 + (outcome if isinstance(outcome, int) else 0)
        warned = [line for line in capsys.readouterr().err.splitlines() if "links" in line]
        assert not warned if isinstance(outcome, int) else outcome.format(top=top) in warned[0] and len(warned) == 1
