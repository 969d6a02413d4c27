"""pictures/: the camera, the hand of a picture and its colours by contact, the colours of a sheet."""

import numpy as np
import torch
from hand.closing import CONTACT
from hand.holds import FREE_DEPTH

from hand import kinematics
from pictures import draw, photo, sheet

GRASP = np.r_[0.02, -0.03, 0.3, 1, 0, 0, 0, np.zeros(12)]  # 30 cm over the origin, looking down


def square(height, side):
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * side / 2 + (0, 0, height)
    return corners[[[0, 1, 2], [0, 2, 3]]]


def test_near_surfaces_hide_far_ones():
    """From above, a small red square hides the middle of a larger blue one below it."""
    triangles = np.concatenate((square(0.5, 1), square(0, 2)))
    lit = photo.sample_lit(triangles, np.repeat([[1.0, 0, 0], [0, 0, 1]], 2, axis=0), 40_000)
    view = photo.axes_of_view(-np.pi / 2, np.pi / 2)
    assert np.allclose(view, [[1, 0, 0], [0, 1, 0], [0, 0, -1]], atol=1e-12)
    taken = photo.photograph(lit, view, np.zeros(2), 1.25, size=100)
    red = np.isin(taken.index, np.flatnonzero(lit.colours[:, 0] == 1))
    assert red[35:65, 35:65].all() and not red[:28].any() and (taken.index[:8] == -1).all()
    where, visible = photo.project(taken, np.array([[0.1, 0.2, 0.0], [0.1, 0.2, 0.5], [0.8, 0.2, 0.0]]))
    assert np.allclose(where, [[0.1, 0.2], [0.1, 0.2], [0.8, 0.2]]) and visible.tolist() == [False, True, True]


def test_cameras_stand_where_they_say():
    view = photo.axes_of_view(0.3, 0.4)
    eye = [np.cos(0.4) * np.cos(0.3), np.cos(0.4) * np.sin(0.3), np.sin(0.4)]
    assert np.allclose(view.T @ view, np.eye(3)) and np.allclose(view[:, 2], -np.array(eye)) and view[2, 1] > 0
    assert np.allclose(np.cross(view[:, 0], view[:, 1]), -view[:, 2])  # right, up, towards the eye: not a mirror


def test_links_are_coloured_by_contact():
    gaps = np.full((4, 3), CONTACT / 2)
    gaps[1, 2], gaps[2, 0] = CONTACT * 2, -FREE_DEPTH * 2
    colours, full = draw.link_colours(gaps), draw.link_colours()
    assert full.shape == (4, 3, 3) and np.array_equal(full[:, 0], full[:, 2])
    touching = np.ones((4, 3), dtype=bool)
    touching[1, 2] = touching[2, 0] = False
    assert np.array_equal(colours[touching], full[touching])
    assert (colours[1, 2] > full[1, 2]).all()  # pale
    assert tuple(colours[2, 0]) == draw.INSIDE_COLOUR


def test_hand_of_a_picture_is_the_hand():
    """Every sphere is there, where kinematics.hand_drawing says; each part in its colour, the axes at the wrist."""
    triangles, colours = draw.hand_mesh(GRASP)
    assert triangles.shape[1:] == (3, 3) and len(triangles) == len(colours)
    assert {tuple(colour) for colour in colours} == {draw.PALM_COLOUR, *draw.FINGER_COLOURS[:4], *draw.AXIS_COLOURS}
    centers, radii = kinematics.hand_drawing(GRASP[:7], GRASP[7:])
    corners = triangles.reshape(-1, 3)
    for center, radius in zip(centers, radii):
        distance = np.linalg.norm(corners - center, axis=1)
        assert np.isclose(distance, radius, rtol=1e-6).sum() >= 100  # corners of a ball around it
    axes = draw.wrist_axes(GRASP[:7])
    assert np.allclose(axes[:, 0], GRASP[:3]) and np.allclose(axes[2, 1] - axes[2, 0], (0, 0, -draw.AXIS_LENGTH))


def test_like_features_have_like_colours():
    """Three groups of tokens far apart in feature space: three colours, each group its own."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 20, 32, generator=generator) + 50 * torch.eye(3, 32)[:, None]
    colours = sheet.feature_colours(features.flatten(0, 1))
    assert colours.shape == (60, 3) and 0 <= colours.min() and colours.max() <= 1
    middle = colours.reshape(3, 20, 3).mean(1)
    apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)
    assert apart[np.triu_indices(3, 1)].min() > 0.3
    again = sheet.feature_colours(features.flatten(0, 1) * 7 + 3)  # a shift and a scale are no difference
    assert np.allclose(again, colours)
