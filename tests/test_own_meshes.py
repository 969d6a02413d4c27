"""Folders of other people's meshes: none is lost without a line, sizes name their factor, one object is one group."""

import collections
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import fails, write_box, write_root

import benchmark.make
import data
import splits
import synthesize
from benchmark import meshes
from benchmark.shapes import LENGTHS, MAX_MIDDLE
from files.frames import SMALL, frame_figures, frame_warnings
from hand import kinematics

BOX = np.array([0.05, 0.06, 0.1])  # m


@pytest.fixture
def quick(monkeypatch):
    """Two grasps for every scene, which cost nothing."""
    grasps = np.zeros((2, 7 + len(kinematics.JOINT_NAMES)), np.float32)
    grasps[:, :7] = (0, 0, 0.2, 0, 0, 0, 1)
    found = grasps, np.full(2, 2, np.float32), collections.Counter(kept=2)
    monkeypatch.setattr(benchmark.make, "synthesize", lambda vertices, faces, wanted, rng: found)


def write_meshes(folder, names, scale=1):
    """A box of its own size under each name."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_box(folder / name, BOX * (1 + 0.01 * i) * scale)
    return folder


def make(folder, out, *flags):
    synthesize.main([str(word) for word in ("--meshes", folder, "--out", out, "--workers", 1, *flags)])
    return json.loads((out / "dataset.json").read_text())


def objects_of(root):
    return sorted(path.parent.relative_to(root).parent.as_posix() for path in root.rglob("recording.npz"))


NAMES = [  # file and the object that it becomes
    ("cups/my cup.obj", "cups/my_cup"), ("cups/my(cup).obj", "cups/my_cup_2"), ("cups/my,cup.obj", "cups/my_cup_3"),
    ("cups/my_cup.obj", "cups/my_cup_4"), ("cups/my/cup.obj", "cups/my_cup_5"), ("cups/MY_CUP.obj", "cups/MY_CUP"),
    ("my_cup.obj", "unsorted/my_cup"), ("unsorted/my_cup.obj", "unsorted/my_cup_2"),
    ("cups/my_cup_2.obj", "cups/my_cup_2_2"), ("cups/(.obj", "cups/_"), ("cups/).obj", "cups/__2"),
]  # fmt: skip


def test_every_mesh_becomes_an_object(tmp_path, quick):
    folder = write_meshes(tmp_path / "meshes", [name for name, _ in NAMES])
    content = make(folder, tmp_path / "out")
    found = objects_of(tmp_path / "out")
    assert content["objects"] == len(found) == len(NAMES)
    assert len({name.lower() for name in found}) == len(NAMES)  # also where the disk knows no capitals
    assert {name.lower().rstrip("_0123456789") for name in found} == {"cups/my_cup", "unsorted/my_cup", "cups/"}


def test_the_same_name_in_two_formats_is_one_object_for_splits():
    found = [(("cups", "a"), "x/cups/a.obj"), (("cups", "a"), "x/cups/a.stl"), (("cups", "a "), "x/cups/a .stl")]
    named = meshes.named_objects([(names, Path(path)) for names, path in found])
    assert [name for _, name in named] == ["a", "a_stl", "a_2"]
    leader = splits.duplicate_groups(["cups/a", "cups/a_stl", "cups/a_2"], ["1", "2", "3"])
    assert leader == {"cups/a": "cups/a", "cups/a_stl": "cups/a", "cups/a_2": "cups/a_2"}


def test_out_and_companions_are_left_out(tmp_path, quick):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj", "cups/b.obj"])
    write_meshes(folder, ["cups/._a.obj", "__MACOSX/cups/a.obj", ".git/c.obj", "out/mesh.obj"])
    (folder / "out/mesh.obj").unlink()
    assert make(folder, folder / "out")["objects"] == 2
    (folder / "out/dataset.json").unlink()
    shutil.move(folder / "out/cups/a/0/mesh.obj", folder / "out/mesh.obj")
    (folder / "out/progress.jsonl").touch()  # unfinished: the search is made again
    assert make(folder, folder / "out")["objects"] == 2


def test_nothing_usable_is_an_error_that_leaves_nothing(tmp_path, quick, capsys):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj", "cups/b.obj"], scale=100)
    (folder / "cups/a.obj").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    argv = ("--meshes", folder, "--out", tmp_path / "out", "--workers", 1)
    with pytest.raises(SystemExit) as stop:
        synthesize.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "none of 2 objects" in err
    assert "not used: cups/a: " in out and "Git LFS" in out and "not used: cups/b: longest side 10" in out
    assert not (tmp_path / "out").exists()
    write_meshes(folder, ["cups/a.obj"])  # mended: the same command goes on
    assert make(folder, tmp_path / "out")["objects"] == 1


# ---------------------------------------------------------------- sizes


def test_the_factor_named_makes_any_size_usable():
    rng = np.random.default_rng(0)
    for longest in 10 ** rng.uniform(-4, 5, 2000):
        middle = longest * rng.uniform(0.05, 1)
        if not meshes.usable_size(middle, longest):
            factor = float(f"{meshes.mending_factor(middle, longest):g}")  # as it is printed
            assert LENGTHS[0] <= longest * factor <= LENGTHS[1] and middle * factor <= MAX_MIDDLE, (middle, longest)
    for unit in (0.001, 0.01, 0.0254):
        assert meshes.mending_factor(0.08 / unit, 0.12 / unit) == unit
    assert meshes.mending_factor(0.008, 0.012) == 10  # centimetres taken for millimetres
    assert 0.9 < meshes.mending_factor(0.1, 0.27) < 1  # a plate, in metres


def test_mesh_scale_mends_what_the_message_says(tmp_path, quick, capsys):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj", "cups/b.obj"], scale=100)
    fails(synthesize.main, ["--meshes", folder, "--out", tmp_path / "out", "--workers", 1], capsys)
    content = make(folder, tmp_path / "out", "--mesh-scale", 0.01)
    assert content["objects"] == 2 and content["settings"]["mesh-scale"] == 0.01 and "rescaled" not in content
    corners = np.array([line.split()[1:] for line in (tmp_path / "out/cups/a/0/mesh.obj").open() if line[0] == "v"])
    np.testing.assert_allclose(np.ptp(corners.astype(float), axis=0), BOX, atol=1e-6)
    other = fails(synthesize.main, ["--meshes", folder, "--out", tmp_path / "out"], capsys)
    assert "other settings (mesh-scale 0.01 there, None here)" in other
    assert "--mesh-scale, --up and --rescale go with --meshes" in fails(
        synthesize.main, ["--out", tmp_path / "x", "--mesh-scale", 2], capsys
    )


def test_rescale_takes_any_unit_and_lists_its_factors(tmp_path, quick, capsys):
    folder = write_meshes(tmp_path / "meshes", ["cups/fits.obj"])
    write_meshes(folder, ["cups/large.obj"], scale=1000)
    write_meshes(folder, ["cups/small.obj"], scale=1e-6)  # vertices are written to a millionth
    (folder / "cups/small.obj").write_text((folder / "cups/fits.obj").read_text().replace("0.", "0.0000000"))
    content = make(folder, tmp_path / "out", "--rescale")
    assert content["objects"] == 3 and set(content["rescaled"]) == {"cups/large", "cups/small"}
    assert np.isclose(content["rescaled"]["cups/large"], 0.0025)  # 100 m are 0.25 m then
    assert "rescaled: cups/large: by 0.0025\n" in capsys.readouterr().out


def test_roots_made_before_the_new_settings_are_the_same(tmp_path, quick):
    folder = write_meshes(tmp_path / "meshes", ["cups/a.obj"])
    content = make(folder, tmp_path / "out")
    known = {"preset", "objects", "grasps", "scenes", "seed", "meshes", "up", "rescale"}
    assert set(content["settings"]) == known  # one more would make older roots "made with other settings"
    assert make(folder, tmp_path / "out", "--mesh-scale", 1) == content


def test_meshes_too_small_for_a_hand_are_warned_of(tmp_path):
    root = write_root(tmp_path / "root", {"1": 3})
    write_box(root / "1/object_001/scene_0/mesh.obj", BOX * 0.9 * SMALL / BOX.max())
    found = data.load_dataset(root, 256, quiet=True)
    lines = frame_warnings(frame_figures(found.clouds, found.poses, found.scene), len(found.scene), root)
    assert any("1 meshes are shorter than 0.02 m" in line for line in lines)


# ---------------------------------------------------------------- one object, several meshes


PAIRS = [
    "visual collision", "cup0_visual cup0_collision", "cup0 cup0_collision", "visual_cup0 collision_cup0",
    "cup0-Visual cup0-COLLISION", "cup0_textured cup0_nontextured", "cup_visual_0 cup_collision_0", "cup0.vis cup0.col",
]  # fmt: skip
OTHERS = ["cup0 cup1", "cup_visual_0 cup_visual_1", "visualise collision", "col1 col2", "Cup cup", "cup_ cup"]


def test_visual_and_collision_mesh_are_one_group():
    for pair in PAIRS + OTHERS:
        names = sorted(f"cups/{name}" for name in pair.split())
        leader = splits.duplicate_groups(names, ["1", "2"])
        assert leader == dict.fromkeys(names, names[0]) if pair in PAIRS else leader == dict(zip(names, names)), pair
    names = ["collision/cup0", "cups/visual", "mugs/collision", "visual/cup0"]
    assert splits.duplicate_groups(names, "1234") == dict(zip(names, [names[0], names[1], names[2], names[0]]))


def test_groups_stay_on_one_side_of_every_split(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"cups": 40})
    for i, path in enumerate(sorted((root / "cups").iterdir())):
        path.rename(path.with_name(f"cup{i // 2}_{'visual' if i % 2 else 'collision'}"))
    found = data.load_dataset(root, 32, quiet=True)
    for pack in "AB":
        for budget in (0.1, 0.5, 1.0):
            split = splits.make_split(found, pack, budget)
            assert len(split.duplicates) == 20
            for names in (split.pool, *split.suites.values()):
                bare = collections.Counter(name.split("_")[0] for name in names)
                assert set(bare.values()) <= {2}
    assert "40 objects share a mesh with another one" in capsys.readouterr().err
