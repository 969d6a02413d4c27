"""Other hands (hand/described.py, python -m hand): from a URDF to grasps, a run, pictures; what cannot be described."""

import runpy
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import trimesh
from conftest import fails, write_root
from hands import allegro, box, finger, leap, shadow
from scipy.spatial.transform import Rotation
from test_dexgraspnet import JOINTS, bring, entries_of, write_object

import data
import evaluate
import predict
import synthesize
import train
import walkthrough
from benchmark.card import write_card
from benchmark.shipped import ensure_root
from data import load_dataset
from files.writing import read_json, write_json
from hand.described import hand_for, read_source
from hand.kinematics import hand_drawing
from hand.scenes import outcomes_in_scenes
from loop.seen import origin
from pictures.page import contact_gaps
from variants import PROBES

HANDS = {"allegro": (allegro, 16, 4), "leap": (leap, 16, 4), "shadow": (shadow, 18, 5)}  # joints, fingers


def describe(*argv):
    """python -m hand."""
    sys.argv = ["hand", *map(str, argv)]
    runpy.run_module("hand", run_name="__main__")


def drafted_in(folder, text):
    """The JSON of a URDF's text, as drafted, and its content."""
    (folder / "my.urdf").write_text(text, encoding="utf-8")
    describe(folder / "my.urdf", "--out", folder / "my.json")
    return folder / "my.json", read_json(folder / "my.json")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("leap", "shadow")]


@pytest.fixture(scope="module", params=["allegro", *SLOW])
def drafted(request, tmp_path_factory):
    """The folder of a hand's URDF and its JSON as drafted."""
    folder = tmp_path_factory.mktemp(request.param)
    write, *sizes = HANDS[request.param]
    drafted_in(folder, write())
    hand = hand_for(None, read_source(folder / "my.json"))
    assert [len(hand.joint_names), len(hand.finger_names)] == sizes and hand.finger_names[0].startswith("th")
    return folder


def chain_to(link, text, angles):
    """Where a link is (4, 4) in the frame of the root of a URDF, by matrices; angles: {joint: rad}."""
    joints = {joint.find("child").get("link"): joint for joint in ElementTree.fromstring(text).findall("joint")}
    matrix = np.eye(4)
    while link in joints:
        joint = joints[link]
        xyz, rpy = ([float(v) for v in joint.find("origin").get(key).split()] for key in ("xyz", "rpy"))
        step = trimesh.transformations.euler_matrix(*rpy)
        step[:3, 3] = xyz
        if joint.find("axis") is not None:
            axis = [float(v) for v in joint.find("axis").get("xyz").split()]
            mimic = {"joint": joint.get("name")} if joint.find("mimic") is None else joint.find("mimic").attrib
            angle = float(mimic.get("multiplier", 1)) * angles.get(mimic["joint"], 0) + float(mimic.get("offset", 0))
            step = step @ trimesh.transformations.rotation_matrix(angle, axis)
        matrix, link = step @ matrix, joint.find("parent").get("link")
    return matrix


def check_spheres(source):
    """Spheres are where the URDF says."""
    hand, rng = hand_for(None, source), np.random.default_rng(0)
    z, y = (np.array(source["wrist"][key]) for key in ("palm_normal", "finger_direction"))
    for joints in rng.uniform(*hand.limits.T, (20, len(hand.limits))):
        found, _ = hand_drawing(np.array([0, 0, 0, 0, 0, 0, 1.0]), joints, hand)
        angles = dict(zip(source["joints"].values(), joints))
        palm = chain_to(source["wrist"]["link"], source["urdf"], angles)
        for link, spheres in source["spheres"].items():
            frame = np.linalg.inv(palm) @ chain_to(link, source["urdf"], angles)
            in_palm = np.array(spheres)[:, :3] @ frame[:3, :3].T + frame[:3, 3] - source["wrist"]["position"]
            centers = in_palm @ np.stack((np.cross(y, z), y, z), 1)
            assert np.linalg.norm(centers[:, None] - found, axis=2).min(1).max() < 1e-9


def test_spheres_are_where_the_urdf_says(drafted):
    check_spheres(read_source(drafted / "my.json"))


def test_joints_that_follow(tmp_path):
    path, source = drafted_in(tmp_path, shadow())
    assert list(source["fingers"]) == ["th_tip", "ff_tip", "mf_tip", "rf_tip", "lf_tip"]  # as in the URDF
    text = shadow().replace("<mimic joint='FFJ2'/>", "<mimic joint='FFJ2' multiplier='0.7' offset='0.3'/>")
    check_spheres(read_source(path) | {"urdf": text})


def made(drafted, folder, sizes):
    """A root of grasps of the drafted hand; it does not need the files any more."""
    synthesize.main(f"--out {folder}/root --hand {drafted}/my.json {sizes} --workers 1 --quiet".split())
    return folder / "root"


@pytest.mark.slow
def test_grasps_of_a_hand(drafted, tmp_path, capsys):
    root = made(drafted, tmp_path, "--objects 2 --grasps 16")
    kept = read_json(root / "dataset.json")
    assert kept["hand_sha256"] == kept["settings"]["hand_sha256"] and "<robot" in kept["hand"]["urdf"]
    other = tmp_path / "other.json"
    write_json(other, read_json(drafted / "my.json") | {"urdf": str(drafted / "my.urdf"), "size": 1.1})
    said = fails(synthesize.main, f"--out {root} --hand {other} --objects 2 --grasps 16".split(), capsys)
    assert "was made with other settings (hand" in said


@pytest.mark.slow
def test_from_urdf_to_pictures(drafted, tmp_path, capsys):
    root, run = made(drafted, tmp_path, "--objects 16 --grasps 30"), tmp_path / "runs/run"
    write_card(root, tmp_path / "card", seed=0, sample=8, mixed=16)
    card = read_json(tmp_path / "card/card.json")
    assert card["share_three_links_touch"] == 1 and card["penetration_mm"]["max"] < 3
    assert (tmp_path / "card/grasps.png").exists()
    found = load_dataset(root, 64, quiet=True)
    mean = np.broadcast_to(found.joints.mean(0), found.joints.shape)
    both, rows = np.stack([found.joints, mean], 1), np.arange(len(found.scene))
    recorded, constant = outcomes_in_scenes(found, rows, both, quiet=True).holds.mean(0)
    assert recorded >= 0.94 and constant <= 0.12
    flags = "--preset tiny --steps 4 --budget 1 --pool attention_surface --no-baseline --threads 1 --quiet"
    result = train.main(f"--data {root} --runs {tmp_path / 'runs'} --name run {flags}".split())
    assert result["recorded"]["holds"] > 0.8 and (run / "grasps.png").exists()
    evaluate.main(f"{run} --holds --page {tmp_path}/page.html --threads 1 --quiet".split())
    pose, mesh = found.poses[0], next(root.glob("*/*/0/mesh.obj"))
    words = f"--pose {' '.join(map(str, pose))} --picture {tmp_path}/picture.png --page {tmp_path}/pose.html"
    predicted = predict.main([str(run), str(mesh), *words.split()])
    assert predicted["joint_names"] == list(found.hand.joint_names)
    assert not any("palm looks away" in warning for warning in predicted["warnings"])
    walkthrough.main([str(run), "--out", str(tmp_path / "walk.png")])
    assert "No hands" not in capsys.readouterr().out
    assert all((tmp_path / name).exists() for name in ("page.html", "pose.html", "picture.png", "walk.png"))
    probes = evaluate.load_run(run).pool.probes
    assert probes.shape == PROBES.shape and not np.allclose(probes, PROBES)


def test_recordings_of_others(drafted, tmp_path, capsys):
    """Joints in an order of their own; the hand is named once; other joints are told apart."""
    source = read_source(drafted / "my.json")
    names = list(source["joints"])[::-1]
    root = write_root(tmp_path / "root", {"02876657": 3}, grasps=6, names=names[:12])
    assert "differ in the joints" in fails(data.main, [root, "--hand", drafted / "my.json"], capsys)
    assert load_dataset(root, 64, quiet=True).hand is None
    hand, rng = hand_for(names, source), np.random.default_rng(0)
    for order, beyond in ((names[::-1], True), (names, False)):
        for path in root.glob("*/*/*/recording.npz"):
            arrays = dict(np.load(path))
            joints = rng.uniform(*hand.limits.T, (len(arrays["grasps"]), len(names)))
            np.savez(path, grasps=np.hstack((arrays["grasps"][:, :7], joints)), joint_names=order)
        data.main([str(root), "--hand", str(drafted / "my.json"), "--points", "64"])
        told = capsys.readouterr()
        assert ("of its angles beyond" in told.err) == beyond and f"saved {root / 'dataset.json'}" in told.out
    found = load_dataset(root, 64, quiet=True)
    assert list(found.hand.joint_names) == names
    joints = np.random.default_rng(0).uniform(*found.hand.limits.T)
    ours = hand_drawing(found.poses[0], joints[::-1], hand_for(None, source))
    for mine, theirs in zip(hand_drawing(found.poses[0], joints, found.hand), ours):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)
    assert ensure_root(root) == root and origin(root) is None  # somebody's own, as before
    said = fails(synthesize.main, f"--out {root} --objects 1".split(), capsys)
    assert "is not empty and not a root of synthesize.py" in said


def test_names_with_numbers_are_names(drafted, tmp_path):
    """The Allegro's joints are called joint_0 and so on, as those of recordings are that name none."""
    source = read_source(drafted / "my.json")
    mine, numbered = list(source["joints"]), [f"joint_{i}" for i in range(len(source["joints"]))]
    order = tuple(numbered if {*mine} == {*numbered} else mine)
    root = write_root(tmp_path / "root", {"02876657": 3}, grasps=6, num_joints=len(mine))  # which names none
    found = load_dataset(root, 64, quiet=True, source=source)
    of_a_run = hand_for(found.joint_names, source)
    assert found.hand.joint_names == of_a_run.joint_names == order
    assert hand_for(numbered[:12]) is None  # of the benchmark's hand, which is known without a file


def test_imported_grasps_with_their_hand(tmp_path):
    """The names of recordings stand for joints of the URDF in `joints` alone; wrists are turned into our frame."""
    text = "<robot name='three'> <link name='palm'/>"
    for k, place in enumerate(("-0.04 0 0.09", "0.04 -0.03 0.09", "0.04 0.03 0.09")):  # a claw: all fingers along z
        axis = "0 -1 0" if k else "0 1 0"  # the thumb closes along x, the others towards it
        text += finger(f"finger{k}", "palm", [f"turn_{k}"], [place, "0 0 0.08"], [axis], [(0, 1.6)])
    path, source = drafted_in(tmp_path, text + "</robot>")
    source["joints"] = dict(zip(JOINTS, source["joints"]))
    write_json(path, source)
    write_object(tmp_path / "in", "core-mug-1", entries_of(np.random.default_rng(0), 6))
    bring(tmp_path / "in", tmp_path / "plain")
    synthesize.main(f"--out {tmp_path}/turned --import dexgraspnet {tmp_path}/in --hand {path} --workers 1".split())
    plain, turned = (load_dataset(tmp_path / name, 64, quiet=True) for name in ("plain", "turned"))
    assert plain.hand is None and turned.hand.joint_names == tuple(sorted(JOINTS))
    before, after = (Rotation.from_quat(found.poses[:, 3:]).as_matrix() for found in (plain, turned))
    np.testing.assert_allclose(after[:, :, 2], before[:, :, 2], atol=1e-5)  # its palm looks along z
    np.testing.assert_allclose(after[:, :, 1], before[:, :, 0], atol=1e-5)  # from the thumb to the others
    heel = plain.poses[:, :3] + before @ source["wrist"]["position"]
    np.testing.assert_allclose(turned.poses[:, :3], heel, atol=1e-5)
    assert contact_gaps(lambda points: np.ones(len(points)), np.r_[turned.poses[0], turned.joints[0]], turned.hand).size


KNOT = "<joint name='knot' type='fixed'> <parent link='thumb_3'/> <child link='finger0_3'/> </joint>"
WRONG = {  # of the LEAP hand's text: what stands in place of what, and what is said of it
    "a loop": ("</robot>", KNOT + "</robot>", "link 'finger0_3' hangs on several joints, which makes a loop"),
    "sliding": ("'2' type='revolute'", "'2' type='prismatic'", "joint '2' is prismatic; only joints that turn"),
    "no limits": ("<limit lower='-0.506'", "<bound lower='-0.506'", "joint '2' has no room to turn"),
    "no number": ("upper='2.042'", "upper='far'", "joint '3': upper 'far' lacks a number"),
    "no axis": ("axis xyz='0 -1 0'", "axis xyz='0 0 0'", "joint '12': its axis is zero"),
    "no link": ("<link name='finger2_tip'>", "<link name='x'>", "names the link finger2_tip, which the URDF lacks"),
    "hung on itself": ("<parent link='base'/>", "<parent link='finger0_3'/>", "is no description of a hand"),
    "no parent": ("<parent link='base'/>", "", "lacks its <parent link=>"),
    "one name twice": ("joint name='3'", "joint name='2'", "two joints are named '2'"),
    "degrees": ("upper='2.042'", "upper='117'", "joint '3' turns more than twice; its <limit> must be in radians"),
    "millimetres": ("0 0.0381 0", "0 38.1 0", "a URDF is in metres, scale it"),
    "a flat box": ("<link name='palm_lower'>", "<link name='palm_lower'>" + box(0.1, 0, 0.1, "0 0 0"),
                   "link 'palm_lower': a box has no size"),
    "nobody's": ("<limit lower='-0.366'", "<mimic joint='who'/> <limit lower='-0.366'", "moves by joint 'who', which"),
    "follows one of two": ("<joint name='5' type='revolute'>", "<joint name='5' type='revolute'><mimic joint='1'/>",
                           "joint '1' closes two fingers; each must close by joints of its own"),
    "xacro": ("<link name='base'/>", "<xacro:macro xmlns:xacro='http://ros.org/wiki/xacro'/>", "is a xacro"),
    "cut short": ("</robot>", "", "no URDF (no element found"),
    "another file": ("robot", "sdf", "begins with <sdf>, a URDF with <robot>"),
}  # fmt: skip


def test_urdfs_that_cannot_be_described(tmp_path, capsys, problems):
    """What python -m hand says of them; nothing is written."""
    urdf, out = tmp_path / "my.urdf", tmp_path / "my.json"
    one_finger = leap().split("  <link name='finger1_0'>")[0] + "</robot>"
    wrong = {name: (leap().replace(old, new), message) for name, (old, new, message) in WRONG.items()}
    wrong["one finger"] = one_finger, "has fewer than two fingers; two are needed"
    for name, (text, message) in wrong.items():
        with problems.of(name):
            urdf.write_text(text, encoding="utf-8")
            said = fails(lambda argv: describe(*argv), [urdf, "--out", out], capsys)
            assert f"{urdf}: " in said and message in said and not out.exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("spheres", "finger1_0"), [[0, 0, 0, 0.3]], "a sphere on finger1_0 has a radius over 0.02 m"),
        (("spheres", "palm_lower"), [[0, 0, 0, 1]], "a sphere on palm_lower has a radius over 0.2 m"),
        (("spheres", "palm_lower"), [[0, 0, 0, -0.01]], "a sphere on palm_lower has no radius"),
        (("spheres", "palm_lower"), None, "no spheres on the palm, link 'palm_lower'"),
        (("joints", "4"), None, "moves by joint '4', which 'joints' lacks"),
        (("pre_shapes", "power", "start", "4x"), 0, "pre_shapes name the joint '4x', which 'joints' lacks"),
        (("joints", "3"), "nothing", "joint 'nothing' is not in the URDF"),
        (("joints", "spread"), "3", "joint '3' stands for two in 'joints'"),
        (("pre_shapes",), {"power": {"start": {}, "closing": {"14": 1}}}, "no joint of its own closes the finger"),
        (("fingers", "finger0_tip"), "base", "link 'base' does not hang on the palm"),
        (("fingers",), {"thumb": "thumb_tip"}, "has fewer than two fingers"),
        (("pre_shapes", "power", "start", "4"), 400, "pre_shapes start beyond the limits of joint '4'"),
        (("size",), 0, "size must be over 0"),
        (("pre_shapes", "fist"), {}, "pre_shapes are some of power, pinch, sphere"),
        (("wrist", "palm_normal"), [0, 1, 0], "palm_normal and finger_direction are parallel"),
        (("wrist", "link"), "plam", "the URDF has no link 'plam'"),
        (("grasp_center",), [[0.1, -0.1]] * 3, "grasp_center: a low end lies over its high end"),
        (("work_box",), None, "lacks 'work_box'; python -m hand"),
        (("work_box",), [1, 2], "work_box lacks a number"),
        (("fingers",), ["thumb_tip"], "is no description of a hand"),
    ],
)
def test_descriptions_that_are_wrong(path, value, message, tmp_path, capsys):
    file, source = drafted_in(tmp_path, leap())
    inside = source
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    if value is None:
        del inside[path[-1]]
    write_json(file, source)
    said = fails(synthesize.main, ["--out", tmp_path / "root", "--hand", file], capsys)
    assert f"{file}: " in said and message in said and not (tmp_path / "root").exists()
