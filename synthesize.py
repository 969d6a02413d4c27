"""The open benchmark: procedural household objects, or any folder of meshes, with grasps of the hand in kinematics.py.

    python synthesize.py --out data/synthetic --preset mini     700 objects, what train.py makes by itself
    python synthesize.py --out data/full --preset full          1,500 objects, the paper's scale
    python synthesize.py --out data/mine --meshes DIR           your own meshes
    python synthesize.py --out data/public --import dexgraspnet DIR     grasps that others published, of another hand
    python synthesize.py --card data/full --out results/benchmark   figures and pictures of a dataset

Layout written: OUT/<synset>/<object>/<scene>/mesh.obj and recording.npz (see data.py). An interrupted
run goes on when the same command is given again; the same seed gives the same bytes for any number of
workers. Lengths in metres, angles in radians, z up, objects standing on the plane z = 0.
"""

import os
import time
from pathlib import Path

if __name__ == "__main__":  # before numpy loads: its products are too small here to gain from a second thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmark.card import write_card
from benchmark.make import generate, print_unusable
from benchmark.roots import SIZES
from benchmark.shapes import LENGTHS, MAX_MIDDLE
from cli.errors import command
from cli.flags import Parser, number
from cli.processes import cores
from hand.score import MIN_SCORE


def parse_args(argv):
    presets = [f"{name}: {n} objects, {g} kept grasps each, {s} scene(s)" for name, (n, g, s) in SIZES.items()]
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("--out", metavar="DIR", help="root to make or to resume; with --card, where its files go")
    flag("--preset", choices=tuple(SIZES), default="mini", help="; ".join(presets))
    flag("--objects", type=number(int, 1, 100000), help="procedural objects (default: the preset's)")
    flag(
        "--grasps",
        type=number(int, 1, 100000),
        help=f"grasps per object with a score of {MIN_SCORE} or more, over its scenes (default: the preset's)",
    )
    flag("--scenes", type=number(int, 1, 100), help="scenes per object: scale, pose, yaw (default: the preset's)")
    flag("--seed", type=number(int, 0), default=0, help="seed of objects and grasps")
    flag(
        "--workers",
        type=number(int, 1, 256),
        help="processes (default: one per core); the result does not depend on it",
    )
    flag("--meshes", metavar="DIR", help="use this folder's meshes, category = sub-folder, not procedural objects")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in --meshes")
    flag(
        "--rescale",
        action="store_true",
        help="scale meshes whose longest side is not "
        f"{LENGTHS[0]}-{LENGTHS[1]} m or whose middle side is over {MAX_MIDDLE} m",
    )
    flag(
        "--mesh-scale",
        type=number(float, above=0),
        default=1.0,
        help="multiply all --meshes by this, to have them in metres: 0.001 where they are in millimetres",
    )
    flag(
        "--import",
        nargs=2,
        dest="imported",
        metavar=("dexgraspnet", "DIR"),
        help="bring grasps that others published into our layout: DIR holds their dataset/ and meshdata/",
    )
    flag("--card", metavar="ROOT", help="describe this dataset in figures and pictures in place of making one")
    flag("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if not args.out:
        parser.error("--out DIR is needed")
    if args.meshes and args.objects:
        parser.error("--objects counts procedural objects and does not go with --meshes")
    if args.meshes and not Path(args.meshes).is_dir():
        parser.error(f"--meshes {args.meshes}: no such folder")
    if not args.meshes and (args.rescale or args.up != "z" or args.mesh_scale != 1):
        parser.error("--mesh-scale, --up and --rescale go with --meshes")
    if args.imported and args.imported[0] != "dexgraspnet":
        parser.error(f"--import {args.imported[0]}: the only format that is read is dexgraspnet")
    if args.imported and (args.meshes or args.objects or args.grasps or args.scenes):
        parser.error("--import takes what there is: --meshes, --objects, --grasps and --scenes do not go with it")
    if args.imported and not Path(args.imported[1]).is_dir():
        parser.error(f"--import {' '.join(args.imported)}: no such folder")
    return args


def settings_of(args):
    """What a root is made from, as its dataset.json keeps it; keys as the flags are spelt."""
    if args.imported:
        return {"import": " ".join(args.imported)}
    objects, grasps, scenes = SIZES[args.preset]
    settings = {
        "preset": args.preset,
        "objects": None if args.meshes else args.objects or objects,
        "grasps": args.grasps or grasps,
        "scenes": args.scenes or scenes,
        "seed": args.seed,
        "meshes": args.meshes,
        "up": args.up,
        "rescale": args.rescale,
    }
    return settings | ({"mesh-scale": args.mesh_scale} if args.mesh_scale != 1 else {})


@command
def main(argv=None):
    """Make or resume a root and print its counts, or write the card of one; argv as on the command line."""
    args = parse_args(argv)
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    start = time.time()
    content = generate(args.out, settings_of(args), args.workers or cores(), args.quiet)
    made = f"{args.out}: {content['objects']} objects, {content['grasps_kept']} grasps"
    if args.imported:
        print(f"{made}, in {time.time() - start:.0f} s")
    else:
        print(
            f"{made} with a score of {MIN_SCORE} or more, {content['grasps_low']} under it, "
            f"in {time.time() - start:.0f} s"
        )
        rejected = ", ".join(f"{reason} {count}" for reason, count in content["candidates_rejected"].items())
        print(f"candidates rejected: {rejected}; objects drawn again: {content['objects_redrawn']}")
    for name, factor in content.get("rescaled", {}).items():
        print(f"rescaled: {name}: by {factor:g}")
    print_unusable(content["unusable"])


if __name__ == "__main__":
    main()
