"""files/frames.py: what does not fit between meshes, wrists and quaternions is said, and nothing else is."""

import numpy as np
import pytest

from data import load_dataset
from files import frames


@pytest.fixture(scope="module")
def good(box_root):
    """Clouds, poses and scenes of boxes that hands look at from outside."""
    data = load_dataset(box_root, frames.MIN_POINTS, quiet=True)
    return data.clouds, data.poses, data.scene


def warnings_of(clouds, poses, scene):
    return frames.frame_warnings(frames.frame_figures(clouds, poses, scene), len(scene), "root")


def test_good_data_gets_no_warning(good):
    clouds, poses, scene = good
    figures = frames.frame_figures(clouds, poses, scene)
    assert frames.frame_warnings(figures, len(scene), "root") == []
    assert figures["inside"] == figures["far"] == figures["small"] == 0 and figures["standing"] == 1
    assert figures["xyzw"] > 0.95 > figures["wxyz"] + frames.ORDER_GAIN
    assert 0.03 < figures["gap"] < 0.2 and abs(figures["lowest"]) < 0.01
    assert len(frames.describe_frames(figures)) == 3


def test_gap_to_the_box_by_hand():
    """A cube from 0 to 0.1 m; a wrist 0.3 and 0.4 m beside it in two axes, one inside, one 0.05 m over it."""
    corners = np.array([[x, y, z] for x in (0, 0.1) for y in (0, 0.1) for z in (0, 0.1)], dtype=np.float32)
    wrists = np.array([[0.4, 0.5, 0.05], [0.05, 0.05, 0.05], [0.05, 0.05, 0.15]])
    poses = np.concatenate([wrists, np.tile([0, 0, 0, 1.0], (3, 1))], axis=1)
    figures = frames.frame_figures(corners[None], poses, np.zeros(3, dtype=np.int64))
    assert (figures["inside"], figures["far"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert figures["gap"] == pytest.approx(0.05)


def test_what_does_not_fit_is_named(good):
    clouds, poses, scene = good
    centers, turned, moved, far = clouds.mean(1)[scene], poses.copy(), poses.copy(), poses.copy()
    turned[:, 3:] = poses[:, [6, 3, 4, 5]]  # w first
    moved[:, :3] = centers  # in the middle of the mesh
    far[:, :3] = centers + (poses[:, :3] - centers) * 20
    lifted = clouds + np.float32([0, 0, 0.3])
    for message, arguments in (
        ("fit far better as w x y z", (clouds, turned, scene)),
        ("100% of the wrists lie inside", (clouds, moved, scene)),
        ("100% of the wrists are over", (clouds, far, scene)),
        ("100% of the meshes do not stand on z = 0", (lifted, poses + np.float32([0, 0, 0.3, 0, 0, 0, 0]), scene)),
        (f"{len(clouds)} meshes are shorter", (clouds * np.float32(0.05), poses, scene)),
    ):
        assert [line for line in warnings_of(*arguments) if line.startswith("root: ") and message in line], message


def test_few_grasps_say_nothing_about_the_order(good):
    clouds, poses, scene = good
    turned = poses[:, [0, 1, 2, 6, 3, 4, 5]]
    assert warnings_of(clouds, turned, scene) and not warnings_of(clouds, turned[:40], scene[:40])
