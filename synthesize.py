"""The open benchmark: procedural household objects, or any folder of meshes, with grasps of its hand or of another.

    python synthesize.py                                        data/synthetic, as it ships; train.py does so by itself
    python synthesize.py --out data/made                        it from nothing, with the grasps that were rejected
    python synthesize.py --out data/mine --meshes DIR           your own meshes
    python synthesize.py --out data/mine --hand my_hand.json    another hand (python -m hand describes it)
    python synthesize.py --out data/public --import dexgraspnet DIR     grasps that others published, of another hand
    python synthesize.py --card data/made --out results/card   figures and pictures of a dataset

Layout written: OUT/<synset>/<object>/<scene>/mesh.obj and recording.npz (see data.py). An interrupted
run goes on when the same command is given again; the same seed gives the same bytes for any number of
workers. Lengths in metres, angles in radians, z up, objects standing on the plane z = 0.
"""

import os
import time
from pathlib import Path

import cli  # noqa: F401 - first, so that Ctrl-C is one line while all else loads

if __name__ == "__main__":  # before numpy loads: its products are too small here to gain from a second thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmark.card import write_card
from benchmark.make import generate, print_unusable
from benchmark.progress import DEFAULT_ROOT
from benchmark.shapes import LENGTHS, MAX_MIDDLE
from benchmark.shipped import SETTINGS, unpack
from cli.errors import command, refuse
from cli.flags import Parser, number
from cli.processes import cores
from cli.words import plural
from files.writing import check_writable
from hand.described import BENCHMARK, hand_for, read_source
from hand.score import MIN_SCORE


def parse_args(argv):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("--out", metavar="DIR", help="root to make or to resume; with --card, where its files go")
    flag("--objects", type=number(int, 1, 100000), help=f"procedural objects (default: {SETTINGS['objects']})")
    kept = f"grasps per object with a score of {MIN_SCORE} or more, over its scenes (default: {SETTINGS['grasps']})"
    flag("--grasps", type=number(int, 1, 100000), help=kept)
    scenes = f"scenes per object: scale, pose, yaw (default: {SETTINGS['scenes']})"
    flag("--scenes", type=number(int, 1, 100), help=scenes)
    flag("--seed", type=number(int, 0), default=0, help="seed of objects and grasps")
    flag("--workers", type=number(int, 1, 256), help="processes (default: one per core); the result does not change")
    flag("--meshes", metavar="DIR", help="use this folder's meshes, category = sub-folder, not procedural objects")
    flag("--up", choices=("z", "y"), default="z", help="the axis that points up in --meshes")
    unfit = f"whose longest side is not {LENGTHS[0]}-{LENGTHS[1]} m or whose middle side is over {MAX_MIDDLE} m"
    flag("--rescale", action="store_true", help=f"scale meshes {unfit}")
    scale = "multiply all --meshes by this, to have them in metres: 0.001 where they are in millimetres"
    flag("--mesh-scale", type=number(float, above=0), default=1.0, help=scale)
    public = "bring grasps that others published into our layout: DIR holds their dataset/ and meshdata/"
    flag("--import", nargs=2, dest="imported", metavar=("dexgraspnet", "DIR"), help=public)
    flag("--hand", metavar="FILE", help="grasps of this hand, as python -m hand describes it; or that of --import")
    flag("--card", metavar="ROOT", help="describe this dataset in figures and pictures in place of making one")
    flag("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    counts = args.objects or args.grasps or args.scenes
    kind = args.imported[0] if args.imported else "dexgraspnet"
    made = args.meshes or args.imported or args.hand
    about_meshes = args.rescale or args.up != "z" or args.mesh_scale != 1
    rules = {
        "--out DIR is needed (see --help)": not args.out and (counts or args.seed or made or args.card),
        "--card describes a root that is there; leave out flags that make one": args.card and (counts or made),
        "--objects counts procedural objects and does not go with --meshes": args.meshes and args.objects,
        "--mesh-scale, --up and --rescale go with --meshes; add that or leave them out":
            about_meshes and not args.meshes,
        f"--import {kind}: the only format that is read is dexgraspnet": kind != "dexgraspnet",
        "--import takes what there is: --meshes, --objects, --grasps and --scenes do not go with it":
            args.imported and (args.meshes or counts),
    }  # fmt: skip
    for rule, broken in rules.items():
        refuse(broken, rule)
    return args


def settings_of(args, hand):
    """What a root is made from, as its dataset.json keeps it; keys as the flags are spelt."""
    of_hand = {"hand": args.hand, "hand_sha256": hand.kept["hand_sha256"]} if args.hand else {}
    if args.imported:
        return {"import": " ".join(args.imported)} | of_hand
    settings = {
        "objects": None if args.meshes else args.objects or SETTINGS["objects"],
        "grasps": args.grasps or SETTINGS["grasps"],
        "scenes": args.scenes or SETTINGS["scenes"],
        "seed": args.seed,
        "meshes": args.meshes,
        "up": args.up,
        "rescale": args.rescale,
    }
    return settings | ({"mesh-scale": args.mesh_scale} if args.mesh_scale != 1 else {}) | of_hand


@command
def main(argv=None):
    """Make or resume a root and print its counts, or write the card of one; argv as on the command line."""
    args, start = parse_args(argv), time.time()
    workers = args.workers or cores()
    if args.card or not (Path(args.out or DEFAULT_ROOT) / "dataset.json").exists():
        check_writable(args.out or DEFAULT_ROOT, "--out")
    if args.card:
        return write_card(Path(args.card), Path(args.out), args.seed)
    if not args.out:
        content = unpack(DEFAULT_ROOT, workers, args.quiet)
    else:
        hand = hand_for(None, read_source(args.hand), args.hand) if args.hand else BENCHMARK
        content = generate(args.out, settings_of(args, hand), workers, args.quiet, hand)
    objects, grasps = plural(content["objects"], "object"), plural(content["grasps_kept"], "grasp")
    made = f"{args.out or DEFAULT_ROOT}: {objects}, {grasps}"
    if "grasps_low" in content:
        made += f" with a score of {MIN_SCORE} or more, {content['grasps_low']} under it"
    print(f"{made}, in {time.time() - start:.0f} s")
    print_unusable(content["unusable"])


if __name__ == "__main__":
    main()
