"""synthetic/draw.py: colours by contact, words for scenes, and what panels of a sheet share."""

import numpy as np
import pytest
import trimesh
from matplotlib.image import imread

from synthetic import draw, photo
from synthetic.holds import solid_field


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Few points, since the pictures are not looked at."""
    monkeypatch.setattr(draw, "sample_lit", lambda *args: photo.sample_lit(*args[:2], 3_000))


def box(side=0.1):
    mesh = trimesh.creation.box((side, side, side))
    return np.asarray(mesh.vertices) + (0, 0, side / 2), np.asarray(mesh.faces)


def grasp(height, flexion=0.0):
    """A hand that looks down from `height` m over the origin, its fingers along -y."""
    joints = np.tile(np.radians([flexion, 0, 20]), 4)
    return np.concatenate(([0, 0.1, height, 1, 0, 0, 0], joints))


def test_scenes_have_names_of_categories():
    assert draw.scene_title("02880940/bowl_0115/0") == "bowl_0115, scene 0"
    assert draw.scene_title("03797390/10f6e09/12") == "mug 10f6e09, scene 12"
    assert draw.scene_title("tools/10f6e09/a") == "tools 10f6e09, scene a"


def test_links_are_coloured_by_contact():
    gaps = np.tile([0.01, 0.001, -0.01], (4, 1))  # m: off the object, touching, in it
    plain, coloured = draw.link_colours(), draw.link_colours(gaps)
    for finger, colour in enumerate(draw.FINGER_COLOURS):
        assert (plain[finger] == colour).all()
        assert (coloured[finger, 0] > np.array(colour)).all()  # paler
        assert (coloured[finger, 1] == colour).all() and (coloured[finger, 2] == draw.INSIDE_COLOUR).all()
    triangles, colours = draw.hand_mesh(grasp(0.2), gaps)
    assert len(triangles) == len(colours)
    assert {tuple(c) for c in coloured.reshape(-1, 3)} <= {tuple(c) for c in colours}


def test_gaps_of_links():
    field = solid_field(*box())
    assert draw.contact_gaps(field, grasp(0.3)).min() > 0.015
    assert draw.contact_gaps(field, grasp(0.1)).min() < -0.003


def test_panels_of_one_grasp_share_view_and_middle_and_a_row_its_scale(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(draw, "photograph", lambda *args, **size: shown.append(args) or photo.photograph(*args, **size))
    monkeypatch.setattr(draw, "view_of_hand", lambda surface, pose, joints: photo.camera(pose[2], 0.3))
    entries = [(*box(), grasp(0.2, flexion), "") for flexion in (0, 40)]
    entries += [(*box(0.2), grasp(0.3), "") for _ in range(2)]
    draw.draw_grasps(entries, tmp_path / "four.png")
    (_, view, middle, reach), second, third, _ = shown
    assert np.array_equal(view, second[1]) and np.array_equal(middle, second[2])
    assert not np.array_equal(view, third[1])
    assert {reach} == {its_reach for *_, its_reach in shown}
    draw.draw_grasps(entries[:2], tmp_path / "two.png")
    sizes = [imread(tmp_path / name).shape[1] for name in ("two.png", "four.png")]
    assert sizes[1] == 2 * sizes[0]  # as wide as it has panels


def test_titles_say_whether_it_holds():
    panels = draw.group_panels([(*box(), grasp(0.4), "far away")])
    assert [title for title, *_ in panels] == ["far away\ndoes not hold"]
