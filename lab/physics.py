"""Do grasps hold in a physics engine? Recorded and predicted ones in MuJoCo, beside `holds` of hand/holds.py.

    python -m lab.physics ROOT RUN ... --out FOLDER

The hand opens by 20 degrees, closes to the joints and 10 degrees more while nothing pulls, then the object is pulled in
six directions with its weight. It holds if that moves the object less than 3 cm and turns it less than 30 degrees;
what is in the object when it has opened does not. All rows are of the same grasps of val, the dropped ones, which score
under 1.5, of the same scenes. An object is the connected parts of its mesh, those that are not convex cut in halves
until no face lies over 1 mm inside the hull of its piece: a mug stays hollow, walls thinner than that are filled.
"""

from pathlib import Path

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
from tqdm import tqdm

from cli.errors import command, refuse
from cli.flags import Parser, number
from cli.processes import cores, map_in_processes
from data import load_dataset
from evaluate import open_run, predict_grasps
from files.checkpoints import check_run, load_run
from files.writing import atomic, check_writable, read_json
from hand.described import BENCHMARK
from hand.scenes import candidate_joints, outcomes_in_scenes, rows_to_close, scene_mesh
from hand.score import MIN_SCORE
from lab.in_mujoco import mujoco, try_scene
from lab.rows import write_rows
from lab.tables import columns_table


def read_runs(args):
    """`GraspData` of the runs, the grasps of it that are tried (n,), {row of the table: joints (n, J) rad}."""
    joints = {}
    for run in args.run:
        check_run(run)
        model = load_run(run)
        data, split = open_run(run, args.root, model=model)
        suite, known = np.sort(split.rows["val"]), read_json(Path(run) / "config.json").get("fingerprint")
        if not joints:
            refuse(data.hand is not BENCHMARK, f"{args.root}: not of the benchmark's hand; name another root")
            val, rows = suite, suite[rows_to_close(data, suite, args.scenes * args.grasps, args.grasps, args.seed)]
            recorded = data.joints[rows]
            joints = {"recorded": recorded, "training mean": np.tile(model.joint_mean.numpy(), (len(rows), 1))}
        other = known != data.fingerprint or not np.array_equal(suite, val)
        refuse(other, f"{run}: not validated on {args.root} as {args.run[0]} is; give runs of one root and split")
        found = predict_grasps(model, data, rows, "cpu")
        joints[run] = candidate_joints(found["joints_pred"], found["logits"], recorded)[""]
    return data, rows, joints


def try_grasps(data, rows, joints, workers):
    """What becomes of M sets of joints (n, M, J) rad for grasps `rows` (n,), sorted, of a `GraspData`: (n, M, 4) bool.

    Holds in MuJoCo; holds there and is free of the object as predicted; holds by hand/holds.py; both agree.
    """
    ours = outcomes_in_scenes(data, rows, joints, threads=workers).holds
    scenes, starts = np.unique(data.scene[rows], return_index=True)
    items = zip([scene_mesh(data, i) for i in scenes], *(np.split(a, starts[1:]) for a in (data.poses[rows], joints)))
    found = tqdm(map_in_processes(try_scene, items, workers), "pulling", len(scenes), unit="scene", disable=None)
    holds, free = np.moveaxis(np.concatenate(list(found)), 2, 0)
    return np.stack((holds, holds & free, ours, holds == ours), 2)


@command
def main(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("root", metavar="ROOT", help="dataset folder")
    flag("run", nargs="+", metavar="RUN", help="folders of runs on it, all of one pack; the mean is the first one's")
    flag("--scenes", type=number(int, 1), default=100, metavar="N", help="of val, evenly chosen")
    flag("--grasps", type=number(int, 1), default=4, metavar="N", help="of each scene, more where they are few")
    flag("--seed", type=number(int, 0), default=0, help="of the choice of grasps")
    flag("--workers", type=number(int, 1), default=cores(), metavar="N", help="processes")
    flag("--out", type=Path, default=Path("runs/physics"), metavar="FOLDER", help="for rows.csv and table.md")
    args = parser.parse_args(argv)
    refuse(not mujoco, "the physics engine is missing; run: pip install mujoco")
    check_writable(args.out, "--out")
    data, rows, joints = read_runs(args)
    recorded, *others = np.moveaxis(try_grasps(data, rows, np.stack(list(joints.values()), 1), args.workers), 1, 0)
    groups, scores = {"recorded": recorded}, data.scores[rows]
    if len(rows) >= 4 and not np.isnan(scores).any():
        for place, part in zip(("lowest", "second", "third", "highest"), np.array_split(np.argsort(scores), 4)):
            bounds = f"{scores[part].min():.2f} to {scores[part].max():.2f}"
            groups[f"recorded, {place} quarter by score ({bounds})"] = recorded[part]
    every = load_dataset(args.root, data.clouds.shape[1], -np.inf, skip_bad=True)
    tried = np.isin(every.scenes, [data.scenes[i] for i in data.scene[rows]])
    low = np.flatnonzero((every.scores < MIN_SCORE) & tried[every.scene])
    if len(low):
        low = low[rows_to_close(every, low, args.scenes * args.grasps, args.grasps, args.seed)]
        groups["dropped"] = try_grasps(every, low, every.joints[low, None], args.workers)[:, 0]
    groups |= dict(zip(list(joints)[1:], others))
    columns = ("hold in MuJoCo", "hold, free as predicted", "hold by hand/holds.py", "agree")
    table = [{"grasps": name, "number": len(of)} | dict(zip(columns, of.mean(0))) for name, of in groups.items()]
    error = 0.5 / len(rows) ** 0.5
    text = f"{columns_table(table)}\nA share of {len(rows)} grasps has a standard error of up to {error:.3f}.\n"
    write_rows(args.out / "rows.csv", table)
    with atomic(args.out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    print(f"{text}saved {args.out}: rows.csv, table.md")


if __name__ == "__main__":
    main()
