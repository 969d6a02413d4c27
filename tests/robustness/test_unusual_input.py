"""Input that is unusual but right is read as it is; and nothing outside a root is opened."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from conftest import BOX_FACES, Planted, write_root
from rules import corners, glb_bytes, listing, mesh_bytes, rejected, same

import data
import evaluate
import splits
import train
from cli.errors import UserError
from files import cache


def train_on(root, runs, *more):
    """A run of two steps; -> its result."""
    flags = "--preset tiny --steps 2 --no-baseline --quiet --threads 1"
    return train.main(["--data", str(root), "--runs", str(runs), *flags.split(), *map(str, more)])


# ---------------------------------------------------------------- numbers


KINDS = ["float16", "float32", "float64", "longdouble", "int8", "uint8", "int64", ">f4", "<f2"]


@pytest.mark.parametrize("kind", KINDS)
def test_number_types(tmp_path, kind):
    root = write_root(tmp_path / "root", {"a": 1})
    grasps = np.zeros((4, 19))
    grasps[:, 6] = 1
    grasps[:, 7:] = np.arange(4)[:, None]
    path = root / "a" / "object_000" / "scene_0" / "recording.npz"
    np.savez(path, grasps=grasps.astype(kind), scores=np.arange(1, 5).astype(kind))
    loaded = data.load_dataset(root, 32, quiet=True)
    assert loaded.joints[:, 0].tolist() == [1, 2, 3] and loaded.joints.dtype == np.float32
    assert loaded.scores.tolist() == [2, 3, 4]


def test_half_precision_and_almost_unit_quaternions(tmp_path):
    root = write_root(tmp_path / "root", {"a": 1}, grasps=20)
    path = root / "a" / "object_000" / "scene_0" / "recording.npz"
    with np.load(path) as archive:
        grasps = archive["grasps"]
    before = data.load_dataset(root, 32, quiet=True)
    grasps[:, 3:7] *= 1.009
    np.savez(path, grasps=grasps.astype(np.float16), scores=np.full(20, 2, np.int32))
    after = data.load_dataset(root, 32, quiet=True, min_score=2)
    assert np.allclose(np.linalg.norm(after.poses[:, 3:], axis=1), 1, atol=1e-6)
    assert np.allclose(after.poses[before.row], before.poses, atol=2e-3)
    assert np.allclose(after.joints[before.row], before.joints, atol=2e-3)


# ---------------------------------------------------------------- names and folders


def test_names_with_spaces_and_unicode(tmp_path, capsys):
    names = {"tasse à café ☕": 4, "瓶子": 3, "-dash": 3, "a'b\"c": 3, "new\u00a0space": 3}
    root = write_root(tmp_path / "my röot (1)", names)
    result = train_on(root, tmp_path / "rüns", "--name", "mein lauf")
    assert np.isfinite(result["suites"]["val"]["top_logit_rmse"])
    out = tmp_path / "aus gabe.json"
    evaluate.main([str(tmp_path / "rüns" / "mein lauf"), "--json", str(out), "--quiet"])
    assert set(json.loads(out.read_text())["suites"]["val"]["synsets"]) == set(names)
    capsys.readouterr()
    splits.main(["--data", str(root), "--json", str(tmp_path / "split é.json")])
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
def test_a_name_that_is_not_unicode_is_refused(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 1})
    try:
        os.rename(os.fsencode(root / "a"), os.fsencode(root) + b"/\xff")
    except OSError:
        pytest.skip("the file system takes no such names")
    rejected(data.main, [root], ("udcff", "rename"), capsys, root)


def test_negative_exponents_in_a_pose(tiny_run, capsys):
    capsys.readouterr()
    poses, argv = [], [str(tiny_run / "run"), "--mesh", str(tiny_run / "box.obj")]
    for pose in ("-1e-3 -2.5E-2 1e-1 -0 -0.0 -1e-9 -1", "-0.001 -.025 .1 0 0 0 1"):
        evaluate.main([*argv, "--pose", *pose.split()])
        poses.append(json.loads(capsys.readouterr().out)["predictions"][0])
    assert poses[0]["pose"] == pytest.approx([-0.001, -0.025, 0.1, 0, 0, 0, -1], abs=1e-6)
    assert poses[1]["pose"] == [-0.001, -0.025, 0.1, 0, 0, 0, 1]  # the same rotation
    assert poses[0]["hypotheses"][0]["joints"] == pytest.approx(poses[1]["hypotheses"][0]["joints"], abs=1e-5)


def test_one_category_only(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"my-mugs": 5})
    result = train_on(root, tmp_path, "--name", "run", "--budget", 0.01)
    assert result["train_objects"] == 1 and list(result["suites"]) == ["val"]
    split = splits.make_split(data.load_dataset(root, 64, quiet=True))
    sizes = {suite: len(names) for suite, names in split.suites.items()}
    assert sizes == {"train": 3, "val": 1, "test": 1, "test_category": 0}
    flags = f"--suite val test test_category --json {tmp_path}/all.json --quiet"
    evaluate.main([str(tmp_path / "run"), *flags.split()])
    assert set(json.loads((tmp_path / "all.json").read_text())["suites"]) == {"val", "test"}
    rejected(evaluate.main, [tmp_path / "run", "--suite", "test_category"], ("test_category",), capsys)


@pytest.mark.parametrize("each", [1, 2])
def test_few_objects_per_category(tmp_path, each):
    """No category can spare an object for its own val and test: all of them together do."""
    root = write_root(tmp_path / "root", {f"category_{i:02d}": each for i in range(20)})
    loaded = data.load_dataset(root, 64, quiet=True)
    for pack in "AB":
        full, small = (splits.make_split(loaded, pack, budget) for budget in (1.0, 0.01))
        assert [len(full.suites[suite]) for suite in ("val", "test", "train")] == [2 * each, 2 * each, 16 * each]
        assert full.suites["val"] == small.suites["val"] and set(small.suites["train"]) <= set(full.suites["train"])
        few, many = ({name.split("/")[0] for name in split.suites["train"]} for split in (small, full))
        assert few == many
    assert np.isfinite(train_on(root, tmp_path)["suites"]["val"]["top_logit_rmse"])


def test_read_only_roots(tmp_path, three_boxes, capsys):
    root = tmp_path / "root"
    shutil.copytree(three_boxes[0], root)
    (root / ".cache").write_text("a file where the folder would be")
    before = listing(root)
    assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])
    assert same(data.load_dataset(root, 32, quiet=True, cache_dir=root / ".cache" / "x"), three_boxes[1])
    assert np.isfinite(train_on(root, tmp_path)["suites"]["val"]["top_logit_rmse"])
    assert listing(root) == before and capsys.readouterr().err == ""
    if os.geteuid():  # the superuser may write everywhere
        (root / ".cache").unlink()
        root.chmod(0o500)
        assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])
        root.chmod(0o700)


def test_a_broken_cache_is_made_again(three_boxes, tmp_path, planted):
    rng = np.random.default_rng(8)
    root = tmp_path / "root"
    shutil.copytree(three_boxes[0], root)
    data.load_dataset(root, 32, quiet=True)
    path = root / ".cache" / "points-32.npz"
    good = path.read_bytes()
    broken = [good[: int(share * len(good))] for share in rng.uniform(0, 1, 12)]
    for at in rng.integers(0, len(good), 12):
        broken.append(good[:at] + bytes(255 - b for b in good[at : at + 16]) + good[at + 16 :])
    broken += [b"", b"text", pickle.dumps(Planted())]
    for content in broken:
        path.write_bytes(content)
        assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])
    version = cache.VERSION
    shapes = {"clouds": (0, 32, 3), "poses": (0, 7), "joints": (0, 12), "scores": (0,)}
    for index in ([], {}, {"version": 1}, {"version": version, "scenes": 3}, {"version": version, "scenes": [{}]}):
        index = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
        np.savez(path, index=index, **{name: np.zeros(shape) for name, shape in shapes.items()})
        assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])
    np.savez(path, index=np.array([Planted()], dtype=object))
    assert same(data.load_dataset(root, 32, quiet=True), three_boxes[1])


def test_duplicates_give_one_warning(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"a": 6, "b": 4})
    for obj in ("a/object_003", "a/object_004", "b/object_001"):
        shutil.copy(root / "a" / "object_000" / "scene_0" / "mesh.obj", root / obj / "scene_0")
    capsys.readouterr()
    train_on(root, tmp_path)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("warning: ") and "4 objects share a mesh" in err


# ---------------------------------------------------------------- nothing outside the root is opened


def test_no_path_in_a_file_is_followed(tmp_path):
    """Material libraries, textures and external buffers of every format: nothing but the root's files is opened."""
    outside = tmp_path / "outside"
    outside.mkdir()
    points, index = np.asarray(corners(), "<f4").tobytes(), np.asarray(BOX_FACES, "<u4").tobytes()
    (outside / "buffer.bin").write_bytes(points + index)
    for name in ("trap.mtl", "trap.png"):
        os.mkfifo(outside / name)  # opening it would block for ever
    obj = "mtllib {0}/trap.mtl\nusemtl a\n".format(outside).encode() + mesh_bytes(".obj", corners(), BOX_FACES)
    texture = f"ply\ncomment TextureFile {outside}/trap.png\n".encode()
    ply = mesh_bytes(".ply", corners(), BOX_FACES).replace(b"ply\n", texture, 1)
    relative = os.path.relpath(outside, tmp_path / "root" / "a" / "object_000" / "scene_0")
    cases = {
        "mesh.obj": obj, "mesh.ply": ply,
        "absolute/mesh.glb": glb_bytes(corners(), BOX_FACES, f"{outside}/buffer.bin"),
        "url/mesh.glb": glb_bytes(corners(), BOX_FACES, f"file://{outside}/buffer.bin"),
        "relative/mesh.glb": glb_bytes(corners(), BOX_FACES, f"{relative}/buffer.bin"),
    }  # fmt: skip
    for name, content in cases.items():
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        root = write_root(tmp_path / "root", {"a": 1})
        scene = root / "a" / "object_000" / "scene_0"
        (scene / "mesh.obj").unlink()
        (scene / name.split("/")[-1]).write_bytes(content)
        if name.endswith(".glb"):
            with pytest.raises(UserError, match="mesh.glb"):
                data.load_dataset(root, 32, quiet=True)
        else:
            assert len(data.load_dataset(root, 32, quiet=True).scenes) == 1


@pytest.mark.parametrize("level", [0, 1, 2])
def test_linked_folders_that_leave_the_root_are_refused(tmp_path, capsys, level):
    root, outside = write_root(tmp_path / "root", {"a": 2}), write_root(tmp_path / "outside", {"a": 1})
    target = ("a", "a/object_000", "a/object_000/scene_0")[level]
    link = root / ("b", "a/object_009", "a/object_001/scene_9")[level]
    link.symlink_to(outside / target)
    rejected(data.main, [root], ("leads out",), capsys, root)
    link.unlink()
    link.symlink_to(root / target)  # within the root it is fine
    assert len(data.load_dataset(root, 32, quiet=True).scenes) > 2
