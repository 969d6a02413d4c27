"""pictures/draw.py: the hand of a picture, its colours by contact, what a sheet puts together."""

import numpy as np
import trimesh
from hand.closing import CONTACT
from hand.holds import FREE_DEPTH

from hand import kinematics
from pictures import draw

GRASP = np.r_[0.02, -0.03, 0.3, 1, 0, 0, 0, np.zeros(12)]  # 30 cm over the origin, looking down


def test_titles_name_the_category():
    assert draw.scene_title("03797390/mug_0003/1") == "mug_0003, scene 1"
    assert draw.scene_title("03797390/b7f1/0") == "mug b7f1, scene 0"
    assert draw.scene_title("tools/wrench/2") == "tools wrench, scene 2"


def test_links_are_coloured_by_contact():
    gaps = np.full((4, 3), CONTACT / 2)
    gaps[1, 2], gaps[2, 0] = CONTACT * 2, -FREE_DEPTH * 2
    colours = draw.link_colours(gaps)
    full = draw.link_colours()
    assert full.shape == (4, 3, 3) and np.array_equal(full[:, 0], full[:, 2])
    touching = np.ones((4, 3), dtype=bool)
    touching[1, 2] = touching[2, 0] = False
    assert np.array_equal(colours[touching], full[touching])
    assert (colours[1, 2] > full[1, 2]).all()  # pale
    assert tuple(colours[2, 0]) == draw.INSIDE_COLOUR


def test_hand_of_a_picture_is_the_hand():
    """Every sphere is there, where kinematics.hand_drawing says; each finger in its colour, the palm in its own."""
    triangles, colours = draw.hand_mesh(GRASP)
    assert triangles.shape[1:] == (3, 3) and len(triangles) == len(colours)
    assert {tuple(colour) for colour in colours} == {draw.PALM_COLOUR, *draw.FINGER_COLOURS}
    centers, radii, _ = kinematics.hand_drawing(GRASP[:7], GRASP[7:])
    corners = triangles.reshape(-1, 3)
    for center, radius in zip(centers, radii):
        distance = np.linalg.norm(corners - center, axis=1)
        assert np.isclose(distance, radius, rtol=1e-6).sum() >= 100  # corners of a ball around it


def test_views_are_rotations_that_look_from_above():
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    surface = draw.sample_lit(box.triangles.view(np.ndarray), np.tile(draw.OBJECT_COLOUR, (12, 1)), 4000)
    view = draw.view_of_hand(surface, GRASP[:7], GRASP[7:])
    np.testing.assert_allclose(view @ view.T, np.eye(3), atol=1e-12)
    assert view[2, 2] < 0 < view[1, 2]  # rows: to the right, up, away from the eye


def test_neighbours_of_one_wrist_share_their_panels(monkeypatch):
    """Recorded and predicted grasps of one mesh and pose are one group, the next pose another."""
    box = trimesh.creation.box((0.1, 0.1, 0.1))
    other = np.r_[GRASP[:2], 0.25, GRASP[3:]]
    closed = np.r_[GRASP[:7], np.full(12, 0.1)]
    groups, written = [], []
    monkeypatch.setattr(draw, "group_panels", lambda group: groups.append(len(group)) or group)
    monkeypatch.setattr(draw, "write_sheet", lambda panels, path: written.append((len(panels), path)))
    sheet = [(box.vertices, box.faces, grasp, "title") for grasp in (GRASP, closed, other)]
    draw.draw_grasps(sheet, "sheet.png")
    assert groups == [2, 1] and written == [(3, "sheet.png")]
