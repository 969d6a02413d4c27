"""Do grasps hold in a physics engine? Recorded and predicted ones in MuJoCo, beside `holds` of hand/holds.py.

    python -m lab.physics ROOT RUN ... --out FOLDER

The hand opens by 20 degrees, closes to the joints and 10 degrees more, then 1 N pulls the object in six directions. It
holds if that moves the object less than 3 cm and turns it less than 30 degrees; what is over 3 mm in the object when it
has opened does not. An object is the convex hulls of its mesh's connected parts: a mug of the benchmark is filled.
"""

import copy
import itertools

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
from tqdm import tqdm
from trimesh.graph import connected_component_labels

from cli.errors import command, refuse
from cli.flags import Parser, number
from evaluate import open_run, predict_grasps
from files.checkpoints import load_run
from files.reading import read_mesh
from files.writing import check_writable, write_csv
from hand.described import BENCHMARK, SOURCE
from hand.scenes import outcomes_in_scenes, rows_to_close, scene_mesh
from hand.score import FRICTION
from lab.tables import columns_table

try:
    import mujoco
except ImportError:
    mujoco = None


def build_model(vertices, faces):
    """MuJoCo's model of the benchmark's hand, whose frame is the world's, and of a mesh, (V, 3) m and (F, 3)."""
    spec = mujoco.MjSpec.from_string(SOURCE["urdf"])
    spec.compiler.boundmass, spec.compiler.boundinertia = 0.01, 1e-6  # of links, which have no mass in the URDF
    spec.option.gravity, spec.option.cone, spec.option.impratio = [0, 0, 0], mujoco.mjtCone.mjCONE_ELLIPTIC, 10
    spec.default.geom.condim, spec.default.geom.friction = 4, [FRICTION, 0.005, 0.0001]
    for joint in spec.joints:
        joint.damping, joint.armature, joint.actfrcrange = [1, 0, 0], 0.002, [-2, 2]  # Nm s/rad, kg m2, Nm
    for joint in BENCHMARK.joint_names:  # 5 Nm/rad: 10 degrees press with some 8 N at a fingertip
        spec.add_actuator(target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT).set_to_position(kp=5)
    for link, spheres in SOURCE["spheres"].items():
        for *center, radius in spheres:  # they touch the object, not each other
            spec.body(link).add_geom(pos=center, size=[radius] * 3, conaffinity=0, mass=0)
    body = spec.worldbody.add_body()
    body.add_freejoint()
    part = connected_component_labels(faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(vertices))  # (V,)
    around = vertices[:, None] + 0.0001 * np.concatenate((np.eye(3), -np.eye(3)))  # (V, 6, 3) m: of a sheet, too,
    for own in np.unique(part[faces]):  # MuJoCo can make the hull
        spec.add_mesh(name=str(own), uservert=around[part == own].ravel())
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=str(own), density=200)  # kg/m3
    return spec.compile()


def holds(model, pose, joints):
    """Does a grasp hold the object of `build_model`? pose (7,), joints (J,) rad -> bool."""
    data = mujoco.MjData(model)
    opened, closed = (np.clip(joints + np.tile((np.radians(by), 0, 0), 4), *BENCHMARK.limits.T) for by in (-20, 10))
    data.qpos[model.actuator_trnid[:, 0]] = opened
    data.qpos[model.eq_obj1id] = model.eq_data[:, 0] + model.eq_data[:, 1] * data.qpos[model.eq_obj2id]  # what follows
    mujoco.mju_negPose(data.qpos[-7:-4], data.qpos[-4:], pose[:3], pose[[6, 3, 4, 5]])
    mujoco.mj_forward(model, data)
    if data.contact.dist.min(initial=0) < -0.003:
        return False
    data.ctrl = closed
    model.dof_damping[-6:] = [20] * 3 + [0.05] * 3  # N s/m, Nm s/rad: the object lies in honey while the hand closes
    mujoco.mj_step(model, data, 400)
    model.dof_damping[-6:] = 0
    return all(stays(model, data, pull) for pull in np.concatenate((np.eye(3), -np.eye(3))))


def stays(model, closed, pull):
    """Does the object stay in the closed hand for half a second of a pull (3,) N?"""
    data = copy.copy(closed)
    data.xfrc_applied[-1, :3] = pull
    mujoco.mj_step(model, data, 250)
    moved, cosine = np.linalg.norm(data.xipos[-1] - closed.xipos[-1]), abs(data.qpos[-4:] @ closed.qpos[-4:])
    return moved < 0.03 and cosine > np.cos(np.radians(30 / 2))  # the cosine is of half the angle


def read_runs(root, runs, count):
    """`GraspData` of runs on a root, rows (n,) of it that are tried, {name in the table: their joints (n, J) rad}."""
    joints, val = {}, None
    for run in runs:
        model = load_run(run)
        data, split = open_run(run, root, model=model)
        suite = np.sort(split.rows["val"])
        val = suite if val is None else val
        alike = data.hand is BENCHMARK and len(val) and np.array_equal(suite, val)
        refuse(not alike, f"{run}: not of the benchmark's hand, or not validated on what {runs[0]} is; name other runs")
        if not joints:
            rows = val[rows_to_close(data, val, count, 4)]
            joints = {"recorded": data.joints[rows], "training mean": np.tile(model.joint_mean, (len(rows), 1))}
        found = predict_grasps(model, data, rows, "cpu")
        joints[run] = found["joints_pred"][np.arange(len(rows)), found["logits"].argmax(1)]
    return data, rows, joints


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("root", metavar="ROOT", help="dataset folder")
    parser.add_argument("run", nargs="+", metavar="RUN", help="folders of runs on it; the mean is the first one's")
    parser.add_argument("--grasps", type=number(int, 1), default=400, metavar="N", help="of val, four of a scene")
    parser.add_argument("--out", default="runs/physics", metavar="FOLDER", help="for rows.csv")
    args = parser.parse_args(argv)
    refuse(not mujoco, "the physics engine is missing; run: pip install mujoco")
    check_writable(args.out, "--out")
    data, rows, joints = read_runs(args.root, args.run, args.grasps)
    sets, scores = np.stack(list(joints.values()), 1), data.scores[rows]  # (n, M, J), (n,)
    ours, theirs = outcomes_in_scenes(data, rows, sets).holds, np.zeros(sets.shape[:2], bool)
    for i, row in enumerate(tqdm(rows, "pulling", unit="grasp", disable=None)):
        model = build_model(*read_mesh(scene_mesh(data, data.scene[row])))
        theirs[i] = [holds(model, data.poses[row], each) for each in sets[i]]
    groups = {name: (slice(None), i) for i, name in enumerate(joints)}
    for low, high in itertools.pairwise(np.unique(np.quantile(scores, np.linspace(0, 1, 5)))):  # none without scores
        groups[f"recorded (score {low:.2f} to {high:.2f})"] = (low <= scores) & (scores <= high), 0
    table = [
        {"grasps": name, "number": len(ours[of]), "MuJoCo": theirs[of].mean(), "holds": ours[of].mean()}
        for name, of in groups.items()
    ]
    write_csv(f"{args.out}/rows.csv", table)
    print(columns_table(table))


if __name__ == "__main__":
    main()
