"""Real shapes: what the benchmark's question becomes on ShapeNet. You need the object set of DexGraspNet.

    python -m lab.real MESHDATA --out data/real_meshes
    python synthesize.py --meshes data/real_meshes/objects --up y --rescale --out data/real
    python pretrain_jepa.py --clouds data/real_meshes/others --up y --out runs/real.pt

MESHDATA holds core-bottle-<id>/coacd/decomposed.obj and so on: core is ShapeNetCore, sem ShapeNetSem, the rest are
scanned objects (Wang et al., 2023, DexGraspNet). Shapes of ShapeNetCore become objects to grasp, all others are for
pretraining, less those that ShapeNetCore has, too. Their licence is for research: keep the shapes to yourself.
"""

import collections
import shutil
from pathlib import Path

from tqdm import tqdm

import cli  # noqa: F401 - first, so that Ctrl-C is one line while all else loads
from cli.errors import command, refuse
from cli.flags import Parser, number
from files.categories import CATEGORY_NAMES
from files.checkpoints import file_hash
from files.writing import check_writable

MESH = "coacd/decomposed.obj"
SYNSETS = {name: synset for synset, name in CATEGORY_NAMES.items()}


def objects_and_others(meshdata, most):
    """{category/name: path} of what is grasped, `most` of a category, and {name: path} of what pretraining sees."""
    paths = {path.parents[1].name: path for path in sorted(Path(meshdata).glob(f"*/{MESH}"))}
    refuse(not paths, f"{meshdata}: no folders with {MESH}; give the folder meshdata of DexGraspNet's object set")
    objects, others, counts, numbers = {}, {}, collections.Counter(), set()
    for name, path in paths.items():
        kind, _, number = name.rpartition("-")
        if not kind.startswith("core-"):
            others[name] = path
            continue
        kind = kind.removeprefix("core-")
        numbers.add(number)
        if counts[kind] < most:
            counts[kind] += 1
            objects[f"{SYNSETS.get(kind, kind)}/{number}"] = path
    grasped = set(map(file_hash, objects.values()))
    for name, path in list(others.items()):
        if name.rpartition("-")[2] in numbers or file_hash(path) in grasped:
            del others[name]
    return objects, others


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("meshdata", metavar="MESHDATA", help="folder of DexGraspNet's object set")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets objects/CATEGORY/ID.obj and others/NAME.obj")
    parser.add_argument("--most", type=number(int, 1), default=190, metavar="N", help="objects of a category at most")
    args = parser.parse_args(argv)
    check_writable(args.out, "--out")
    parts = dict(zip(("objects", "others"), objects_and_others(args.meshdata, args.most)))
    files = {f"{part}/{name}.obj": path for part, found in parts.items() for name, path in found.items()}
    for name, path in tqdm(files.items(), desc="copying", unit="mesh", delay=2):
        to = Path(args.out) / name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    categories = collections.Counter(name.split("/")[0] for name in parts["objects"])
    print(f"{args.out}: {len(parts['objects'])} objects of {len(categories)} categories, {len(parts['others'])} others")
    return parts


if __name__ == "__main__":
    main()
