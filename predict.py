"""Joints of the hand for one object and the poses of its wrist, by a trained run.

    python predict.py RUN mug.obj --pose X Y Z QX QY QZ QW      one wrist pose: metres, unit quaternion
    python predict.py RUN mug.obj --poses FILE.npy --json F     many of them (n, 7), for another program
    python predict.py RUN mug.obj --pose … --picture F.png      the hand at the object
    python predict.py RUN mug.obj --pose … --page F.html        the same, to turn in a browser

RUN is a folder that train.py wrote. Poses are in the mesh's frame. In the wrist's own frame x goes across the palm, y
along the fingers and z out of the palm: towards the object.
"""

import json
import sys
from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch

from cli.errors import command, refuse
from cli.flags import Parser, file_name, number
from data import read_cloud
from files.checkpoints import check_run, load_run
from files.frames import MIN_POINTS, SMALL, STANDING, check_reach, looks_away, turn_poses_to_z_up, turn_to_z_up
from files.predictions import check_predictions
from files.reading import ANY_LENGTH, MAX_LENGTH, read_array, read_mesh, unit_hint
from files.recordings import normal_poses, numbered_joints
from files.writing import write_json
from hand.described import NO_HAND, hand_for
from loop.fast import exact_products
from loop.flags import add_device_flags
from loop.machine import set_up_torch
from pictures.draw import Shown, draw_grasps
from pictures.page import write_page

OUTSIDE = np.radians(5)  # the top logit's joints leave the range of their training by more than this in 1 % of grasps


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", metavar="RUN", help="folder of a run, as train.py printed it")
    flag("mesh", metavar="MESH", help="a mesh, or an .npy cloud (n, 3), in metres, standing on z = 0")
    poses = parser.add_mutually_exclusive_group(required=True).add_argument
    poses("--pose", type=number(float), nargs=7, metavar=("X", "Y", "Z", "QX", "QY", "QZ", "QW"), help="a wrist's")
    poses("--poses", metavar="FILE", help=".npy of wrist poses (n, 7)")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in MESH and its poses")
    scale = "multiply MESH, not its poses, by this to have it in metres: 0.001 where it is in millimetres"
    flag("--mesh-scale", type=number(float, above=0), default=1.0, metavar="F", help=scale)
    flag("--json", metavar="FILE", help="save all hypotheses, in rad; - prints them instead of the table")
    flag("--picture", type=file_name(".png"), metavar="FILE", help="draw the likeliest hypothesis of six poses (.png)")
    flag("--page", type=file_name(".html"), metavar="FILE", help="all hypotheses of up to six poses, to turn (.html)")
    add_device_flags(flag)
    return parser


def read_input(args, num_points):
    """Cloud (N, 3) m and wrist poses (n, 7) with z up, and the poses as they were given."""
    name, given = ("--pose", np.array([args.pose])) if args.pose else (args.poses, read_array(args.poses, 7))
    poses, cloud = normal_poses(given, name), read_cloud(args.mesh, num_points, ANY_LENGTH)
    length = float(np.ptp(cloud, axis=0).max())  # in the file's unit
    size, hint = f"{args.mesh}: {length * args.mesh_scale:.4g} m long", f"{unit_hint(length)} with --mesh-scale"
    refuse(length * args.mesh_scale > MAX_LENGTH, f"{size}, the limit is {MAX_LENGTH:g} m; {hint}")
    cloud = cloud * np.float32(args.mesh_scale)
    if args.up == "y":
        poses, cloud = normal_poses(turn_poses_to_z_up(poses), name), turn_to_z_up(cloud)
    check_reach(cloud, poses, name)
    return np.ascontiguousarray(cloud), poses, given


@torch.no_grad()
def hypotheses(model, cloud, poses, device):
    """Of one object, cloud (N, 3) m, poses (n, 7): joints (n, K, J) rad, probabilities (n, K), the highest first."""
    model.eval()
    poses = torch.from_numpy(poses).float().to(device)
    index = torch.zeros(len(poses), dtype=torch.long, device=device)  # every pose is one of the same object
    with exact_products():
        joints, logits = model(torch.from_numpy(cloud)[None].to(device), index, poses)
    probabilities, order = logits.softmax(1).sort(dim=1, descending=True)
    joints = joints.gather(1, order[:, :, None].expand_as(joints))
    return joints.cpu().numpy(), probabilities.cpu().numpy()


def doubts(model, hand, names, cloud, poses, top):
    """What right input seldom gives, as sentences; cloud (N, 3) m, poses (n, 7), top (n, J) rad: top logits' joints."""
    low, length, of_all = cloud.min(0), np.ptp(cloud, axis=0).max(), f"of {len(poses)} poses"
    inside = ((poses[:, :3] > low) & (poses[:, :3] < cloud.max(0))).all(1)  # (n,)
    away, as_w_first = looks_away(cloud, poses) & (hand is not None)  # (n,) each
    w_first = away.any() and not as_w_first[away].any()
    order = "; read as w x y z the quaternions would fit" if w_first else ""
    floats = low[2] < -STANDING or (low[2] > STANDING and len(cloud) >= MIN_POINTS)
    up = "; is y up? See --up" if abs(low[1]) <= STANDING else ""
    trained = np.array(model.joint_range or [[-np.inf], [np.inf]])  # (2, J) rad
    wild = (top < trained[0] - OUTSIDE) | (top > trained[1] + OUTSIDE)  # (n, J)
    sentences = {
        f"the object is only {length:.2g} m long; are these metres? See --mesh-scale": length < SMALL,
        f"the wrist is inside the object's bounding box in {inside.sum()} {of_all}; is MESH in metres?": inside.any(),
        f"the palm looks away from the object in {away.sum()} {of_all}; z goes out of the palm{order}": away.any(),
        f"the object stands at z = {low[2]:.3f} m, not on the table's z = 0{up}": floats,
        f"joints are over 5° outside their range in training in {wild.any(1).sum()} {of_all} "
        f"({' '.join(np.array(names)[wild.any(0)])}); is the pose in the mesh's frame?": wild.any(),
    }
    return [sentence for sentence, holds in sentences.items() if holds]


def table(names, joints, probabilities):
    """Aligned lines: a column per hypothesis, a row per joint; joints (K, J) rad, probabilities (K,)."""
    width = max(map(len, names))
    rows = {"probability": [f"{share:8.3f}" for share in probabilities]}
    rows |= {name: [f"{angle:8.1f}" for angle in angles] for name, angles in zip(names, np.degrees(joints).T)}
    return "\n".join(f"{name:<{width}}" + "".join(cells) for name, cells in rows.items())


def as_json(args, model, poses, joints, probabilities, warnings):
    """All that was predicted as plain types; poses (n, 7) as they were given, whatever is up."""
    predictions = [
        {"pose": pose, "hypotheses": [{"probability": p, "joints": j} for p, j in zip(shares, angles)]}
        for pose, shares, angles in zip(poses.tolist(), probabilities.tolist(), joints.tolist())
    ]
    names = {"unit": "rad", "joint_names": model.joint_names}
    return {"run": args.run, "mesh": args.mesh} | names | {"warnings": warnings, "predictions": predictions}


def draw(args, hand, names, poses, joints, probabilities):
    """Picture and page of up to six wrist poses (n, 7): joints (n, K, J) rad, probabilities (n, K)."""
    is_cloud = Path(args.mesh).suffix.lower() == ".npy"
    vertices, faces = (read_array(args.mesh, 3), None) if is_cloud else read_mesh(args.mesh, ANY_LENGTH)
    vertices = vertices * args.mesh_scale
    vertices = turn_to_z_up(vertices) if args.up == "y" else vertices
    shown = [
        Shown(f"{Path(args.mesh).name}, pose {i}", vertices, faces, *predicted)
        for i, predicted in enumerate(zip(poses[:6], joints, probabilities), 1)
    ]
    if args.page:
        write_page(args.run, shown, names, args.page, hand)
    if args.picture:
        draw_grasps(shown, args.picture, hand)


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    is_cloud = Path(args.mesh).suffix.lower() == ".npy"
    refuse(args.picture and is_cloud, f"--picture: {args.mesh} is a cloud; give a mesh to draw")
    check_run(args.run)
    device = set_up_torch(args.device, args.threads)
    model = load_run(args.run).to(device)
    hand = hand_for(model.joint_names, model.hand, args.run)
    refuse(args.picture and not hand, f"--picture: {NO_HAND}")
    cloud, poses, given = read_input(args, model.config.points)
    joints, probabilities = hypotheses(model, cloud, poses, device)
    check_predictions(args.run, joints, probabilities)
    names = model.joint_names or numbered_joints(model.config.joints)
    warnings = doubts(model, hand, names, cloud, poses, joints[:, 0])
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)

    result = as_json(args, model, given, joints, probabilities, warnings)
    if args.json == "-":
        print(json.dumps(result, indent=2))
    else:
        print(f"pose 1 of {len(poses)}; joints in degrees, a column per hypothesis")
        print(table(names, joints[0], probabilities[0]))
    if args.picture or args.page:
        draw(args, hand, names, poses, joints, probabilities)
    if args.json not in (None, "-"):
        write_json(args.json, result)
    for path in filter(None, (args.json, args.picture, args.page)):
        if args.json != "-":  # then what is printed is JSON alone
            print(f"saved {path}")
    return result


if __name__ == "__main__":
    main()
