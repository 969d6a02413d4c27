"""Objects, grasps and roots of the open benchmark, against geometry worked out independently."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import trimesh
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

import hand
import synthesize
from common import UserError
from synthesize import main

SYNSETS = [*synthesize.TRAIN_SYNSETS, *synthesize.HELD_OUT_SYNSETS]


def run(*argv):
    main([str(word) for word in argv])


def fails(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def tree(root):
    """Relative path -> bytes of every mesh and recording."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.suffix in (".obj", ".npz")}


# ---------------------------------------------------------------- objects


@pytest.mark.parametrize("synset", [*SYNSETS, synthesize.NO_SYNSET])
def test_objects_are_closed_parts_of_usable_size(synset):
    shapes = []
    for seed in range(6):
        vertices, faces = synthesize.procedural_mesh(synset, np.random.default_rng(seed))
        mesh = trimesh.Trimesh(vertices, faces, process=False)
        assert mesh.is_watertight and mesh.is_winding_consistent
        assert all(part.volume > 0 for part in mesh.split(only_watertight=False))
        sides = np.sort(np.ptp(vertices, axis=0))
        assert 0.03 < sides[2] <= 0.25 and sides[1] <= 0.15 + 1e-9
        assert abs(vertices[:, 2].min()) < 1e-12
        shapes.append(sides / sides[2])
    assert np.ptp(shapes, axis=0)[:2].max() > 0.08  # varied, not one shape scaled


def test_scenes_differ_in_size_rest_and_yaw():
    vertices, _ = synthesize.procedural_mesh("03797390", np.random.default_rng(0))
    rng = np.random.default_rng(1)
    scenes = [synthesize.pose_scene(vertices, rng) for _ in range(12)]
    lengths = [np.linalg.norm(s[0] - s[500]) for s in scenes]
    assert max(lengths) / min(lengths) > 1.1
    assert len({np.ptp(s, axis=0).argmax() for s in scenes}) > 1
    fixed = synthesize.pose_scene(vertices, rng, resize=False)
    assert np.isclose(np.linalg.norm(fixed[0] - fixed[500]), np.linalg.norm(vertices[0] - vertices[500]))


def test_pretraining_clouds_are_seeded_and_never_held_out(monkeypatch):
    cloud = synthesize.pretraining_cloud(0, 5, 256)
    assert cloud.shape == (256, 3) and cloud.dtype == np.float32
    assert np.array_equal(cloud, synthesize.pretraining_cloud(0, 5, 256))
    assert not np.array_equal(cloud, synthesize.pretraining_cloud(1, 5, 256))
    assert not np.array_equal(cloud, synthesize.pretraining_cloud(0, 6, 256))
    turned = synthesize.pretraining_cloud(0, 5, 256, up="y")
    assert np.array_equal(turned[:, 1], cloud[:, 2])
    assert np.allclose(np.linalg.det(np.linalg.lstsq(cloud, turned, rcond=None)[0]), 1, atol=1e-4)  # turned, not mirrored
    drawn, original = [], synthesize.procedural_mesh
    monkeypatch.setattr(synthesize, "procedural_mesh", lambda synset, rng: drawn.append(synset) or original(synset, rng))
    for index in range(150):
        synthesize.pretraining_cloud(0, index, 16)
    assert set(drawn) == set(synthesize.TRAIN_SYNSETS) and len(drawn) == 150
    synthesize.pretraining_cloud(0, 0, 16, synsets=[synthesize.NO_SYNSET])
    assert drawn[-1] == synthesize.NO_SYNSET


# ---------------------------------------------------------------- geometry


def test_distance_field_on_a_sphere():
    mesh = trimesh.creation.icosphere(4, 0.04)
    points, normals = synthesize.surface_normals(mesh.vertices, mesh.faces, 12000, np.random.default_rng(0))
    np.testing.assert_allclose(np.sum(points * normals, axis=1), 0.04, atol=2e-4)
    field = synthesize.DistanceField(points)
    probes = np.random.default_rng(1).uniform(-0.06, 0.06, (4000, 3)).astype(np.float32)
    exact = np.abs(np.linalg.norm(probes, axis=1) - 0.04)
    near = (exact > 0.004) & (exact < 0.016)
    assert np.abs(field(probes)[near] - exact[near]).max() < 0.001
    assert (field(probes) < exact + 0.001)[exact > 0.004].all()  # further away, at most a lower bound: no step may be too long
    assert np.allclose(field(np.full((1, 3), 0.5, dtype=np.float32)), synthesize.REACH)
    shell = probes[near & (np.linalg.norm(probes, axis=1) > 0.04)]
    inward = -shell / np.linalg.norm(shell, axis=1, keepdims=True)
    assert (np.sum(field.direction(shell) * inward, axis=1) > 0.97).all()


def test_closest_points_and_inside_against_a_box():
    box = trimesh.creation.box((0.1, 0.06, 0.04))
    points = np.random.default_rng(0).uniform(-0.08, 0.08, (200, 3))
    half = np.array((0.05, 0.03, 0.02))
    inside = (np.abs(points) < half).all(1)
    triangles = box.vertices[box.faces]
    assert np.array_equal(synthesize.is_inside(points, triangles), inside)
    outside = np.linalg.norm(np.maximum(np.abs(points) - half, 0), axis=1)
    expected = np.where(inside, -(half - np.abs(points)).min(1), outside)
    gaps, nearest = synthesize.sphere_gaps(box.vertices, box.faces, points, np.full(200, 0.01))
    close = np.isfinite(gaps)
    assert inside[close].any() and (expected[~close] > 0.02).all()
    np.testing.assert_allclose(gaps[close], expected[close] - 0.01, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(points - nearest, axis=1)[close], np.abs(expected[close]), atol=1e-9)


def test_mesh_with_a_hole_has_no_inside():
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    gaps, _ = synthesize.sphere_gaps(box.vertices, box.faces[:-1], np.zeros((1, 3)), np.array([0.01]))
    np.testing.assert_allclose(gaps, 0.04)


def test_fingers_stop_at_a_thin_plate():
    """Every finger that meets a 1 mm plate stops on its near side, within the last step."""
    plate = trimesh.creation.box((0.4, 0.4, 0.001))
    points, _ = synthesize.surface_normals(plate.vertices, plate.faces, 40000, np.random.default_rng(0))
    field = synthesize.DistanceField(points)
    count = 60
    rng = np.random.default_rng(2)
    rotation = np.tile(np.diag([1.0, 1, 1]), (count, 1, 1)).astype(np.float32)
    position = np.zeros((count, 3), dtype=np.float32)
    position[:, 1] = -0.15
    position[:, 2] = -rng.uniform(0.06, 0.12, count)  # the plate lies before the palm, which looks along z
    bases, origins = hand.finger_bases(rotation, position)
    q = np.tile(np.radians([-15, 0, 5]), (count, 1)).astype(np.float32)
    mode = np.arange(count) % 3
    closed, gaps = synthesize.close_fingers(q, bases[:, 2], origins[:, 2], mode, field)
    centers = hand.finger_points(closed, bases[:, 2], origins[:, 2])
    assert (gaps.min(0) < 0.002).sum() > 0.9 * count
    assert gaps.min() > -0.0015
    assert (centers[..., 2] < -0.0005).all()
    assert (closed[:, 0] <= hand.LIMITS[0, 1] + 1e-6).all() and (closed[mode == 1, 2] == q[0, 2]).all()


# ---------------------------------------------------------------- score


def random_contacts(rng, count):
    """Contacts of a fist around a blob: points and inward normals (count, 3)."""
    outward = rng.standard_normal((count, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    normals = -outward + 0.3 * rng.standard_normal((count, 3))
    return (0.04 * outward).astype(np.float32), (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)


def hull_of_cones(points, normals, edges=16):
    """Epsilon of polyhedral cones, written out without the functions under test."""
    wrenches = []
    for p, n in zip(points.astype(float), normals.astype(float)):
        a = np.linalg.svd(n[None])[2][1:]
        for angle in 2 * np.pi * np.arange(edges) / edges:
            force = n + 0.8 * (np.cos(angle) * a[0] + np.sin(angle) * a[1])
            wrenches.append([*force, *np.cross(p, force) / 0.06])
    return -ConvexHull(wrenches).equations[:, -1].max()


@pytest.mark.parametrize("count", [16, pytest.param(60, marks=pytest.mark.slow)])
def test_epsilon_follows_the_hull_of_linearised_cones(count):
    rng = np.random.default_rng(0)
    score, exact = [], []
    for _ in range(count):
        points, normals = random_contacts(rng, int(rng.integers(3, 7)))
        mask = np.ones((1, len(points)), dtype=bool)
        score.append(synthesize.epsilon(synthesize.contact_wrenches(points[None], normals[None], np.zeros(3)), mask)[0])
        exact.append(hull_of_cones(points, normals))
        if exact[-1] > 0 and len(exact) <= 8:
            assert np.isclose(exact[-1], synthesize.hull_epsilon(points, normals, np.zeros(3)), atol=0.02)
    score, exact = np.array(score), np.array(exact)
    closed = exact > 0
    assert closed.sum() >= count / 4
    assert (score[closed] > exact[closed] * 0.999).all()  # an upper bound of the inscribed one
    assert spearmanr(score[closed], exact[closed]).statistic > 0.95
    assert ((score > 0) == closed).mean() > 0.85


def test_epsilon_ignores_masked_contacts():
    points, normals = random_contacts(np.random.default_rng(3), 8)
    wrenches = synthesize.contact_wrenches(points[None], normals[None], np.zeros(3))
    mask = np.arange(8)[None] % 2 == 0
    alone = synthesize.epsilon(wrenches[:, ::2], mask[:, ::2])
    np.testing.assert_allclose(synthesize.epsilon(wrenches, mask), alone, atol=1e-5)
    assert len(synthesize.epsilon(wrenches[:0], mask[:0])) == 0


# ---------------------------------------------------------------- grasps


@pytest.fixture(scope="module")
def cylinder():
    mesh = trimesh.creation.cylinder(0.03, 0.14, sections=48)
    vertices = synthesize.settle(np.asarray(mesh.vertices))
    return vertices, np.asarray(mesh.faces), *synthesize.synthesize(vertices, np.asarray(mesh.faces), 40, np.random.default_rng(0))


def test_grasps_are_physical(cylinder):
    vertices, faces, grasps, scores, counts = cylinder
    assert grasps.shape == (len(scores), 19) and grasps.dtype == scores.dtype == np.float32
    assert counts["kept"] == (scores >= 1.5).sum() == 40 and counts["low"] == (scores < 1.5).sum()
    assert (grasps[:, 7:] >= hand.LIMITS[:, 0] - 1e-5).all() and (grasps[:, 7:] <= hand.LIMITS[:, 1] + 1e-5).all()
    np.testing.assert_allclose(np.linalg.norm(grasps[:, 3:7], axis=1), 1, atol=1e-5)
    assert (grasps[:, 6] >= 0).all()
    radius, exact = 0.03, []
    for grasp, score in zip(grasps[scores >= 1.5], scores[scores >= 1.5]):
        centers, radii, _ = hand.hand_drawing(grasp[:7], grasp[7:])
        aside, above = np.linalg.norm(centers[:, :2], axis=1) - radius, np.abs(centers[:, 2] - 0.07) - 0.07
        gap = np.where((aside > 0) & (above > 0), np.hypot(aside, above), np.maximum(aside, above)) - radii  # to a cylinder
        assert gap.min() > -0.003
        touch = gap[27:].reshape(4, 8) < 0.003
        assert touch[0].any() and touch[1:].any() and touch.sum() >= 3
        depth, links, quality = synthesize.measure(vertices, faces, grasp)
        assert abs(depth + gap.min()) < 1e-3  # the card's own measure agrees (the mesh has 48 sides)
        exact.append(quality)
    exact = np.array(exact)
    assert np.mean(exact > 0) > 0.85


def test_one_pose_has_several_solutions(cylinder):
    grasps = cylinder[2]
    _, counts = np.unique(grasps[:, :7], axis=0, return_counts=True)
    assert counts.max() == 2 and 0.05 < np.mean(counts == 2) < 0.5


def test_winding_does_not_matter(cylinder):
    vertices, faces = cylinder[:2]
    grasps, scores, _ = synthesize.synthesize(vertices, faces[:, ::-1], 40, np.random.default_rng(0))
    assert (scores >= 1.5).sum() == 40


# ---------------------------------------------------------------- roots


@pytest.fixture(scope="module")
def small_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "root"
    run("--out", root, "--objects", 4, "--grasps", 8, "--scenes", 2, "--workers", 1)
    return root


def test_root_layout(small_root):
    content = json.loads((small_root / "dataset.json").read_text())
    assert content["complete"] and content["version"] == synthesize.VERSION and content["objects"] == 4
    files = tree(small_root)
    assert len(files) == 16 and "03797390/mug_0000/1/recording.npz" in files
    kept = 0
    for path in small_root.rglob("recording.npz"):
        with np.load(path) as recording:
            assert sorted(recording) == ["grasps", "joint_names", "scores"]
            assert recording["joint_names"].tolist() == list(hand.JOINT_NAMES)
            kept += (recording["scores"] >= 1.5).sum()
    assert kept == content["grasps_kept"] == 32
    scenes = [synthesize.read_mesh(small_root / "03797390/mug_0000" / k / "mesh.obj")[0] for k in "01"]
    assert not np.allclose(np.ptp(scenes[0], axis=0), np.ptp(scenes[1], axis=0), atol=1e-3)


def test_workers_and_resuming_change_no_byte(small_root, tmp_path, capsys):
    flags = ("--objects", 4, "--grasps", 8, "--scenes", 2)
    run("--out", tmp_path / "two", *flags, "--workers", 2)
    assert tree(tmp_path / "two") == tree(small_root)
    # killed: two objects logged, half a line, a third object half written
    killed = tmp_path / "killed"
    shutil.copytree(small_root, killed)
    (killed / "dataset.json").unlink()
    content = json.loads((small_root / "dataset.json").read_text())
    done = ["03797390/mug_0000", "02880940/bowl_0000"]
    lines = [{"version": synthesize.VERSION, "settings": content["settings"]}, *({"object": name, "counts": {"kept": 8}} for name in done)]
    (killed / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"object": "028')
    shutil.rmtree(killed / "02876657")
    (killed / "02946921/can_0000/0/recording.npz").unlink()
    assert "with other settings" in fails(capsys, "--out", killed, "--objects", 5)
    with pytest.raises(UserError, match="is unfinished; make it with: python synthesize.py --out .* --objects 4 --grasps 8"):
        synthesize.ensure_root(killed)
    run("--out", killed, *flags, "--workers", 2)
    assert tree(killed) == tree(small_root) and (killed / "dataset.json").exists()
    assert not (killed / "progress.jsonl").exists()


@pytest.mark.slow
def test_stopped_by_signals_and_resumed(tmp_path):
    flags = ["--objects", "40", "--grasps", "30", "--workers", "2"]
    run("--out", tmp_path / "straight", *flags)
    for stop, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = subprocess.Popen([sys.executable, synthesize.__file__, "--out", str(tmp_path / "stopped"), *flags], stderr=subprocess.PIPE)
        log, before = tmp_path / "stopped/progress.jsonl", 0 if stop is signal.SIGINT else done
        while not log.exists() or (done := log.read_bytes().count(b"\n")) < before + 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop)
        assert process.wait(60) == code
        assert b"Traceback" not in process.stderr.read()
        assert not (tmp_path / "stopped/dataset.json").exists()
        done = log.read_bytes().count(b"\n")
    run("--out", tmp_path / "stopped", *flags)
    assert tree(tmp_path / "stopped") == tree(tmp_path / "straight")


def test_seed_changes_the_objects(small_root, tmp_path):
    run("--out", tmp_path / "other", "--objects", 1, "--grasps", 8, "--seed", 1)
    assert tree(tmp_path / "other")["03797390/mug_0000/0/mesh.obj"] != tree(small_root)["03797390/mug_0000/0/mesh.obj"]


def test_category_sizes():
    settings = {"preset": "full", "objects": 1500}
    sizes = {}
    for synset, _ in synthesize.procedural_objects(settings):
        sizes[synset] = sizes.get(synset, 0) + 1
    assert sum(sizes.values()) == 1500 and min(sizes.values()) == 30 and max(sizes.values()) <= 300
    assert len({synset for synset, _ in synthesize.procedural_objects({"preset": "mini", "objects": 14})}) == 14
    assert len(synthesize.procedural_objects({"preset": "full", "objects": 17})) == 17


def test_existing_roots(small_root, tmp_path, capsys, monkeypatch):
    run("--out", small_root, "--objects", 4, "--grasps", 8, "--scenes", 2)  # complete: nothing to do
    assert "32 grasps" in capsys.readouterr().out
    assert synthesize.ensure_root(small_root) == small_root
    assert "other settings (seed 0 there, 7 here)" in fails(capsys, "--out", small_root, "--objects", 4, "--grasps", 8, "--scenes", 2, "--seed", 7)
    with pytest.raises(UserError, match="no such root; make it with: python synthesize.py --out"):
        synthesize.ensure_root(tmp_path / "nothing")
    mine = tmp_path / "mine/03797390/a/0"
    mine.mkdir(parents=True)
    (mine / "mesh.obj").write_text("")
    assert synthesize.ensure_root(tmp_path / "mine") == tmp_path / "mine"
    assert "not empty" in fails(capsys, "--out", tmp_path / "mine")
    monkeypatch.setattr(synthesize, "VERSION", synthesize.VERSION + 1)
    with pytest.raises(UserError, match="made by generator version .* remove it and run: python synthesize.py"):
        synthesize.ensure_root(small_root)


def test_default_root_is_made_in_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []

    class Done:
        returncode = 0

    monkeypatch.setattr(synthesize.subprocess, "run", lambda words, **_: calls.append(words) or Done)
    synthesize.ensure_root("data/synthetic", quiet=True)
    synthesize.ensure_root("data/full/")
    assert [words[2:] for words in calls] == [["--out", "data/synthetic", "--preset", "mini", "--quiet"], ["--out", "data/full", "--preset", "full"]]


def test_flags_that_contradict(capsys, tmp_path):
    assert "--out" in fails(capsys)
    assert "--up and --rescale" in fails(capsys, "--out", tmp_path / "x", "--rescale")
    assert "--meshes" in fails(capsys, "--out", tmp_path / "x", "--meshes", tmp_path, "--objects", 3)
    assert "no such folder" in fails(capsys, "--out", tmp_path / "x", "--meshes", tmp_path / "y")
    assert "at least 1" in fails(capsys, "--out", tmp_path / "x", "--objects", 0)
    assert "no .obj" in fails(capsys, "--out", tmp_path / "x", "--meshes", tmp_path)
    assert not (tmp_path / "x").exists()


# What the generator of this version makes on any machine. After a change on purpose: a new VERSION and new numbers.
FIRST_14 = {  # object: vertices of mesh.obj, three of them
    "02876657/bottle_0000": (1420, [-0.008639, 0.008481, 0.0, -0.013127, -0.032701, 0.099697, -0.038004, 0.002035, 0.145525]),
    "02880940/bowl_0000": (1542, [0.000424, 3e-06, 0.0, 0.022705, 0.017482, 0.018787, 0.045584, 0.016718, 0.014365]),
    "02942699/camera_0000": (980, [0.002885, -0.018113, 0.000852, 0.022426, -0.01397, 0.034362, -0.035501, 0.015584, 0.000606]),
    "02946921/can_0000": (804, [-0.000168, 0.001905, 0.001604, -0.023235, 0.016868, 0.041496, -0.000957, -0.006774, 0.050964]),
    "02954340/cap_0000": (1854, [0.032466, -0.000775, 0.137988, -0.032429, 0.005277, 0.062903, 0.022069, -0.023527, 0.031688]),
    "02992529/cellphone_0000": (610, [0.003357, 0.003406, 0.003895, -0.044886, 0.061608, 0.012262, -0.009811, -0.071014, 0.02586]),
    "03481172/hammer_0000": (440, [0.007306, 0.081164, 0.060708, 0.013766, -0.031059, 0.076636, -0.006607, -0.036946, 0.069764]),
    "03593526/jar_0000": (1694, [-0.009742, 0.028282, 0.039535, -0.019234, -0.021171, 0.014182, 0.011276, -0.022758, 0.067713]),
    "03624134/knife_0000": (602, [-0.038816, -0.097293, 0.045859, 0.022329, 0.036809, 0.048956, 0.00853, -0.000318, 0.011605]),
    "03636649/lamp_0000": (1280, [0.022531, -0.010921, 0.188917, -0.004711, -0.02001, 0.148686, -0.007543, 0.045554, 0.066139]),
    "03759954/microphone_0000": (956, [-0.003924, 0.001644, 0.136546, 0.016332, 0.00414, 0.088185, 0.002962, -0.00108, 0.03252]),
    "03797390/mug_0000": (1100, [-0.01435, -0.04213, 0.042979, -0.008724, 0.020567, 0.021184, 0.011365, -0.019997, 0.051766]),
    "03948459/pistol_0000": (894, [0.005535, -0.002588, 0.114778, 0.020763, -0.001158, 0.138016, 0.004023, -0.00188, 0.112053]),
    "04074963/remote_0000": (338, [-0.012502, -0.085459, 0.012203, -0.029443, -0.028428, 0.005637, 0.024806, 0.028839, 0.003354]),
}
KEPT, RECORDED = 1649, 7447
MEAN_JOINTS = [0.435, 0.072, 0.743, 0.914, -0.047, 0.917, 0.859, 0.026, 0.832, 1.032, 0.090, 1.503]


def test_first_objects_of_mini_are_pinned(tmp_path):
    run("--out", tmp_path / "root", "--objects", 14)
    kept, joints = 0, []
    for folder, grasps, scores in synthesize.read_grasps(tmp_path / "root"):
        count, corners = FIRST_14["/".join(folder.parts[-3:-1])]
        vertices, _ = synthesize.read_mesh(folder / "mesh.obj")
        assert len(vertices) == count
        np.testing.assert_allclose(vertices[[0, count // 3, 2 * count // 3]].ravel(), corners, atol=1e-5)
        kept += int((scores >= 1.5).sum())
        joints.append(grasps[scores >= 1.5, 7:])
    content = json.loads((tmp_path / "root/dataset.json").read_text())
    assert content["objects"] == len(joints) == 14
    assert abs(kept - KEPT) <= 0.03 * KEPT and abs(kept + content["grasps_low"] - RECORDED) <= 0.03 * RECORDED
    np.testing.assert_allclose(np.concatenate(joints).mean(0), MEAN_JOINTS, atol=0.02)


# ---------------------------------------------------------------- meshes of one's own


def test_any_folder_of_meshes(tmp_path, capsys):
    folder = tmp_path / "meshes"
    (folder / "tins").mkdir(parents=True)
    tin = trimesh.creation.cylinder(0.03, 0.12, sections=24)
    tin.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))  # y up
    rng = np.random.default_rng(0)
    faces = np.where(rng.random((len(tin.faces), 1)) < 0.5, tin.faces, tin.faces[:, ::-1])[rng.random(len(tin.faces)) > 0.1]
    trimesh.Trimesh(tin.vertices, faces, process=False).export(folder / "tins/broken tin.ply")
    tin.export(folder / "tins/tin.stl")
    tin.export(folder / "loose.obj")
    trimesh.creation.box((0.6, 0.05, 0.05)).export(folder / "plank.off")
    (folder / "nonsense.obj").write_text("not a mesh")
    tin.export(tmp_path / "outside.obj")
    (folder / "linked.obj").symlink_to(tmp_path / "outside.obj")
    run("--out", tmp_path / "out", "--meshes", folder, "--up", "y", "--grasps", 10, "--workers", 1)
    text = capsys.readouterr().out
    assert "unsorted/plank: longest side 0.6 m" in text and "unsorted/nonsense" in text
    assert "unsorted/linked" in text and "leads out of" in text
    names = {p.parent.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("recording.npz")}
    assert names == {"tins/broken_tin/0", "tins/tin/0", "unsorted/loose/0"}
    vertices, _ = synthesize.read_mesh(tmp_path / "out/tins/tin/0/mesh.obj")
    np.testing.assert_allclose(np.ptp(vertices, axis=0), (0.06, 0.06, 0.12), atol=2e-3)
    assert abs(vertices[:, 2].min()) < 1e-6
    run("--out", tmp_path / "rescaled", "--meshes", folder, "--up", "y", "--grasps", 5, "--rescale", "--workers", 1)
    vertices, _ = synthesize.read_mesh(tmp_path / "rescaled/unsorted/plank/0/mesh.obj")
    assert np.isclose(np.ptp(vertices, axis=0).max(), 0.25, atol=1e-5)


# ---------------------------------------------------------------- the card


def test_card(small_root, tmp_path, monkeypatch):
    draw = synthesize.draw_grasps
    monkeypatch.setattr(synthesize, "draw_grasps", lambda grasps, path: draw(grasps[:3], path))  # 12 take seconds
    synthesize.write_card(small_root, tmp_path / "card", seed=0, sample=8, mixed=16)
    card = json.loads((tmp_path / "card/card.json").read_text())
    assert card["grasps_measured"] == 8 and card["kept_grasps"] == 32
    assert card["penetration_mm"]["max"] < 3 and card["share_three_links_touch"] == 1 == card["share_thumb_and_finger_touch"]
    assert card["score_spearman_with_hull"] > 0.8
    assert all((tmp_path / "card" / name).stat().st_size > 10000 for name in ("grasps.png", "histograms.png"))
