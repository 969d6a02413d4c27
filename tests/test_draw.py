"""pictures/: the camera, the hand of a picture and its colours by contact, the colours of a sheet."""

import numpy as np
import torch
from hand.closing import CONTACT
from hand.holds import FREE_DEPTH
from matplotlib.figure import Figure

from hand import kinematics
from pictures import curve, draw, photo, sheet

GRASP = np.r_[0.02, -0.03, 0.3, 1, 0, 0, 0, np.zeros(12)]  # 30 cm over the origin, looking down


def square(height, side):
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * side / 2 + (0, 0, height)
    return corners, np.array([[0, 1, 2], [0, 2, 3]])


def test_near_surfaces_hide_far_ones():
    """From above, a small red square hides the middle of a larger blue one below it."""
    red, blue = (1.0, 0, 0), (0, 0, 1.0)
    lit = photo.together(
        photo.lit_surface(*square(0.5, 1), red, 10_000), photo.lit_surface(*square(0, 2), blue, 30_000)
    )
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
    empty = photo.Lit(*np.zeros((3, 0, 3)))
    lit = draw.lit_grasp(empty, GRASP)
    colours = {tuple(colour) for colour in lit.colours}
    assert colours == {draw.PALM_COLOUR, *draw.FINGER_COLOURS[:4], *draw.AXIS_COLOURS, draw.TABLE_COLOUR}
    for center, radius in zip(*kinematics.hand_drawing(GRASP[:7], GRASP[7:])):
        away = lit.points - center
        on_it = np.isclose(np.linalg.norm(away, axis=1), radius, rtol=1e-6)
        assert on_it.sum() >= 1000 and np.linalg.norm(away[on_it].mean(0)) < radius / 20  # all around it
        assert np.allclose(away[on_it], radius * lit.normals[on_it], atol=1e-6)
    axes = draw.wrist_axes(GRASP[:7])
    assert np.allclose(axes[:, 0], GRASP[:3]) and np.allclose(axes[2, 1] - axes[2, 0], (0, 0, -draw.AXIS_LENGTH))
    blue = lit.points[(lit.colours == draw.AXIS_COLOURS[2]).all(1)]
    low, high = axes[2].min(0) - draw.AXIS_RADIUS, axes[2].max(0) + draw.AXIS_RADIUS
    assert np.allclose(blue.min(0), low, atol=2e-3) and np.allclose(blue.max(0), high, atol=2e-3)


def test_a_curve_begins_at_step_0(tmp_path, monkeypatch):
    """A single validation, too: its point is where the training ended."""
    drawn, names = [], ("train_loss", "val_top_logit_rmse", "val_best_of_k_rmse", "val_coverage_15")
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.extend(figure.axes) or path.touch())
    curve.draw_curve([{"step": 500} | dict.fromkeys(names, 0.3)], tmp_path / "curve.png", "run", 500, 0.354)
    assert len(drawn) == 3 and all(ax.get_xlim()[0] == 0 and 500 < ax.get_xlim()[1] < 550 for ax in drawn)


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
