"""A grasp in MuJoCo: does an object stay in the closed hand when it is pulled? Needs `pip install mujoco`."""

import copy

import numpy as np
from scipy.spatial import ConvexHull
from trimesh.graph import connected_component_labels

from files.reading import read_mesh
from hand.described import BENCHMARK, SOURCE
from hand.kinematics import matrix_to_pose, pose_to_matrix
from hand.score import FRICTION

try:
    import mujoco
except ImportError:
    mujoco = None

OPENS, SQUEEZE, TURNED = np.radians((20, 10, 30))
THIN = 0.001  # m: no convex piece is thinner, and walls thinner than that may be filled
FREE, MOVED = 0.003, 0.03  # m; a hand that is deeper in the object is not free of it
MASS, STIFFNESS, TORQUE = 0.1, 5, 2  # kg; Nm/rad and Nm of a joint: 10 degrees press with some 8 N at a fingertip
HONEY = [20] * 3 + [0.05] * 3  # N s/m, Nm s/rad: in what the object lies while the hand closes
FLEXION = np.tile((1, 0, 0), 4)


# ---------------------------------------------------------------- what MuJoCo is told
def build_model(vertices, faces):
    """MuJoCo's model of the benchmark's hand, whose frame is the world's, and of an object of convex pieces."""
    spec = mujoco.MjSpec.from_string(SOURCE["urdf"])
    spec.compiler.boundmass, spec.compiler.boundinertia = MASS / 10, 1e-6  # for links; in the URDF they have none
    spec.option.cone, spec.option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10  # little creeps under friction
    spec.option.integrator, spec.option.gravity = mujoco.mjtIntegrator.mjINT_IMPLICITFAST, [0, 0, 0]
    spec.option.disableflags = mujoco.mjtDisableBit.mjDSBL_AUTORESET  # what is not finite stays so, and does not hold
    mujoco.set_mju_user_warning(lambda text: None)  # of that; it would write a file here
    touch = {"condim": 4, "friction": [FRICTION, 0.005, 0.0001]}
    for joint in spec.joints:
        joint.damping, joint.armature, joint.actfrcrange = [0.1, 0, 0], 0.002, [-TORQUE, TORQUE]
    for joint in BENCHMARK.joint_names:
        spec.add_actuator(target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT).set_to_position(kp=STIFFNESS)
    for link, spheres in SOURCE["spheres"].items():
        for *center, radius in spheres:  # they touch the object, not each other
            spec.body(link).add_geom(pos=center, size=[radius] * 3, conaffinity=2, mass=0, **touch)
    body, pieces = spec.worldbody.add_body(), convex_pieces(vertices, faces)
    body.add_freejoint()
    for i, (corners, volume) in enumerate(pieces):
        spec.add_mesh(name=str(i), uservert=corners.ravel())
        mass = MASS * volume / sum(volume for _, volume in pieces)
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=str(i), contype=2, mass=mass, **touch)
    return spec.compile()


def convex_pieces(vertices, faces):
    """Corners (n, 3) m and volume (m³) of convex pieces that a mesh, vertices (V, 3) m, faces (F, 3), is made of."""
    part = connected_component_labels(faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(vertices))[faces[:, 0]]
    return [piece for own in np.unique(part) for piece in cut(vertices[faces[part == own]])]


def cut(corners):
    """Triangles (F, 3, 3), halved until no triangle lies more than THIN inside its piece's hull, as `convex_pieces`."""
    points, centers = np.unique(corners.reshape(-1, 3), axis=0), corners.mean(1)
    offsets = points - points.mean(0)
    if np.ptp(offsets @ np.linalg.eigh(offsets.T @ offsets)[1], axis=0).min() < THIN:  # as flat as a sheet
        points = (points[:, None] + THIN / 2 * np.concatenate((np.eye(3), -np.eye(3)))).reshape(-1, 3)
    hull = ConvexHull(points)
    depth = -(hull.equations[:, :3] @ centers.T + hull.equations[:, 3:]).max(0)  # (F,)
    if len(corners) == 1 or depth.max() < THIN:
        return [(points[hull.vertices], hull.volume)]
    halves = np.array_split(np.argsort(centers[:, np.ptp(points, axis=0).argmax()]), 2)
    return [piece for half in halves for piece in cut(corners[half])]


# ---------------------------------------------------------------- what becomes of a grasp
def try_scene(scene):
    """Which grasps hold, and which hands are free of the object as predicted, (n, M, 2) bool.

    scene: mesh file, poses (n, 7), M sets of joints (n, M, J) rad.
    """
    model = build_model(*read_mesh(scene[0]))
    return np.array([[try_grasp(model, pose, joints) for joints in sets] for pose, sets in zip(*scene[1:])])


def try_grasp(model, pose, joints):
    """Whether a grasp holds, and whether its hand is free of the object as predicted; pose (7,), joints (J,) rad."""
    data = mujoco.MjData(model)
    there, opened, closed = (np.clip(joints + by * FLEXION, *BENCHMARK.limits.T) for by in (0, -OPENS, SQUEEZE))
    data.qpos[-7:] = matrix_to_pose(np.linalg.inv(pose_to_matrix(pose)))[0, [0, 1, 2, 6, 3, 4, 5]]
    free = depth(model, data, there) < FREE
    if not depth(model, data, opened) < FREE:
        return False, free
    model.dof_damping[-6:] = HONEY
    for share in np.minimum(np.linspace(0, 4 / 3, 40), 1):
        data.ctrl = opened + share * (closed - opened)
        mujoco.mj_step(model, data, 5)
    model.dof_damping[-6:] = 0
    return all(stays(model, data, axis, way) for axis in range(3) for way in (1, -1)), free


def depth(model, data, joints):
    """How deep the hand is in the object at joints (J,) rad, in m."""
    data.qpos[model.actuator_trnid[:, 0]] = joints
    data.qpos[model.eq_obj1id] = model.eq_data[:, 0] + model.eq_data[:, 1] * data.qpos[model.eq_obj2id]  # what follows
    mujoco.mj_forward(model, data)
    return -data.contact.dist.min(initial=0)


def stays(model, closed, axis, way):
    """Does the object stay in the closed hand for half a second of a pull? What is not finite does not."""
    data = copy.copy(closed)
    data.xfrc_applied[-1, axis] = way * MASS * 9.81
    mujoco.mj_step(model, data, 250)
    moved, cosine = np.linalg.norm(data.xipos[-1] - closed.xipos[-1]), abs(data.qpos[-4:] @ closed.qpos[-4:])
    return bool(moved < MOVED and cosine > np.cos(TURNED / 2))  # the cosine is of half the angle
