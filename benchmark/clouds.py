"""The clouds that pretraining learns from: procedural shapes, made once and kept, or what stands in a folder."""

import contextlib
import functools
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmark.progress import VERSION
from benchmark.shapes import pretraining_cloud
from cli.errors import UserError, refuse
from cli.flags import number
from cli.processes import cores, map_in_processes
from data import read_cloud
from files.folders import files_under
from files.reading import ANY_LENGTH, MESH_TYPES
from files.writing import atomic

KEPT = Path("data/pretraining")  # a file per kind and number of shapes
FEW_SHAPES = 500  # are made by one process: starting others takes longer


def add_cloud_flags(parser):
    """The flags that choose the clouds."""
    flag = parser.add_argument_group("shapes").add_argument
    flag("--clouds", default="synthetic", metavar="WHERE", help="'synthetic', or a folder of meshes or .npy clouds")
    flag("--skip-bad", action="store_true", help="leave bad files of the --clouds folder out and list them")
    flag("--num-clouds", type=number(int, 1), default=20000, metavar="N",
         help="synthetic shapes to make; they are augmented anew each time")  # fmt: skip


def load_clouds(args, num_points, up):
    """The clouds (n, N, 3) float32 that the flags choose; up: the vertical axis of synthetic ones."""
    if args.clouds == "synthetic":
        return synthetic_clouds(args.num_clouds, num_points, args.seed, up, args.quiet)
    return folder_clouds(args.clouds, num_points, args.skip_bad, args.quiet)


def synthetic_clouds(count, num_points, seed, up, quiet):
    """`count` procedural shapes (count, N, 3) float32 in m, none of them part of any dataset.

    Kept in KEPT, since making them costs some milliseconds each.
    """
    path = KEPT / f"v{VERSION}-{count}x{num_points}-{up}-seed{seed}-all.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or broken: made again
        clouds = np.load(path, allow_pickle=False)
        if clouds.shape == (count, num_points, 3) and clouds.dtype == np.float32:
            return clouds
    make = functools.partial(pretraining_cloud, seed, num_points=num_points, up=up)
    workers = cores() if count > FEW_SHAPES else 1
    with contextlib.closing(map_in_processes(make, range(count), workers, chunk=50)) as made:
        bar = tqdm(made, "making shapes", count, unit="shape", disable=quiet or None, delay=2)
        clouds = np.stack(list(bar))
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, clouds)
    return clouds


def folder_clouds(folder, num_points, skip_bad=False, quiet=False):
    """Clouds (n, N, 3) float32 of all meshes and .npy clouds under a folder, in the order of their names.

    Of any unit, since clouds are normalised. With `skip_bad`, bad files are left out, and it is said why.
    """
    files = files_under(folder, (".npy", *MESH_TYPES))
    refuse(not files, f"--clouds {folder}: no meshes and no .npy clouds there; give a folder, or 'synthetic'")
    clouds, left_out = [], []
    for path in tqdm(files, desc="reading clouds", unit="cloud", disable=quiet or None, delay=2):
        try:
            clouds.append(read_cloud(path, num_points, ANY_LENGTH))
        except UserError as error:
            refuse(not skip_bad, f"{error} (--skip-bad leaves such files out)")
            left_out.append(f"left out {error}")
    refuse(not clouds, f"--clouds {folder}: every file is bad; the first: {' '.join(left_out[:1])}")
    if left_out:
        print(*left_out, f"{len(left_out)} of {len(files)} files left out", sep="\n", file=sys.stderr)
    return np.stack(clouds)
