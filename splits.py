"""Object-level, stratified, nested splits (Sec. III-A), a pure function of names and mesh contents.

Val and test hold 10 % of the objects each and are the same for every budget. A budget is a share of the remaining pool;
a larger one contains every smaller one. Packs A and B are two independent draws. Test_category holds the held-out
synsets, test_grasp a tenth of the grasps of every pool object: neither ever trains. Objects are those with a grasp over
the minimum score. Order comes from SHA-256 of the names: no random generator, no folder order, no library version.

    python splits.py --data ROOT --pack A --budget 0.1     prints, verifies and with --json saves a split
"""

import collections
import dataclasses
import hashlib
import math
import sys

import cli  # noqa: F401 - first, so that Ctrl-C is one line while all else loads
import numpy as np

from benchmark.shipped import ensure_root
from cli.errors import command, refuse
from cli.flags import Parser, number
from cli.words import plural
from data import add_data_flags, load_dataset
from files.categories import named
from files.names import duplicate_groups
from files.reading import composed
from files.writing import write_json

HELD_OUT = ("03948459", "02954340")  # pistol and cap, as in the published code: categories that never train
SUITES = ("train", "val", "test", "test_category", "test_grasp", "test_grasp_train")
SHARE = 0.1  # of the objects, for val and for test


@dataclasses.dataclass
class Split:
    """Which objects each suite holds, and which grasps of the training pool never train."""

    pack: str
    budget: float
    fingerprint: str  # of the dataset
    suites: dict  # suite -> sorted object ids "<synset>/<object>": train, val, test, test_category
    pool: list  # sorted ids of all objects that a budget may train on
    test_grasp: dict  # "<synset>/<object>/<scene>" -> rows of its recording
    duplicates: list  # groups of ids that are one object: the same mesh, or names that differ by the kind of mesh
    rows: dict  # suite -> (n,) int64 index into the dataset's grasps, all of SUITES


def place(*parts):
    """Where a name stands in a pack's order: SHA-256 of the parts joined by '/'."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).digest()


def synset_of(object_id):
    return object_id.split("/")[0]


def suite_sizes(counts):
    """Objects per synset for val (and again for test): 10 % in all by largest remainder.

    counts: synset -> number of objects. A synset with at least 3 objects gives at least one, which beats
    the total; a smaller one gives none, so that it can train.
    """
    quota = {synset: SHARE * n for synset, n in counts.items()}
    sizes = {s: 0 if n < 3 else max(1, math.floor(quota[s])) for s, n in counts.items()}
    left = math.floor(SHARE * sum(counts.values()) + 0.5) - sum(sizes.values())
    open_synsets = [s for s, n in counts.items() if n >= 3 and sizes[s] <= quota[s]]
    for synset in sorted(open_synsets, key=lambda s: (math.floor(quota[s]) - quota[s], s))[: max(0, left)]:
        sizes[synset] += 1
    return sizes


def assign_objects(objects, pack, budget):
    """Suites and pool over distinct objects: dicts of lists. objects: ids outside the held-out synsets."""
    objects = sorted(objects, key=lambda name: place(pack, name))
    strata = by_synset(objects)
    if all(len(names) < 3 for names in strata.values()):
        strata = {"all": objects}  # say one object per synset: val and test come from all of them together
    sizes = suite_sizes({stratum: len(names) for stratum, names in strata.items()})
    suites = {"train": [], "val": [], "test": [], "pool": []}
    for stratum, names in strata.items():
        size = sizes[stratum]
        suites["val"] += names[:size]
        suites["test"] += names[size : 2 * size]
        suites["pool"] += names[2 * size :]
    for names in by_synset(suites["pool"]).values():
        suites["train"] += names[: max(1, math.floor(budget * len(names) + 0.5))]
    return suites


def by_synset(objects):
    """Synset -> its objects, in their order."""
    strata = collections.defaultdict(list)
    for name in objects:
        strata[synset_of(name)].append(name)
    return strata


def held_back_grasps(data, pack, pool):
    """(n,) bool: the tenth of each pool object's grasps that never trains, whatever the budget."""
    rows_of = collections.defaultdict(list)
    for row, name in enumerate(data.object_of_grasp.tolist()):
        rows_of[name].append(row)
    held_back = np.zeros(len(data.scene), dtype=bool)
    for name in pool:
        rows = sorted(rows_of[name], key=lambda i: place(pack, data.scenes[data.scene[i]], data.row[i]))
        if len(rows) >= 2:
            held_back[rows[: max(1, len(rows) // 10)]] = True
    return held_back


def make_split(data, pack="A", budget=1.0, held_out=None):
    """The `Split` of a `GraspData`. held_out: synset ids, None for the default ones where present.

    A group of `duplicate_groups` goes where its smallest id goes, or is held out together. Raises `UserError` where no
    object is left to train or to validate on.
    """
    present = {synset_of(name) for name in data.object_of_scene}
    absent = " ".join(set(held_out or ()) - present)
    refuse(absent, f"--held-out {absent}: no such synset in {data.root}; it has {' '.join(sorted(present))}")
    held_out = HELD_OUT if held_out is None else held_out
    leader = duplicate_groups(data.object_of_scene, data.mesh_hashes)
    groups = collections.defaultdict(list)
    for name in sorted(leader):
        groups[leader[name]].append(name)
    away = {first for first, names in groups.items() if any(synset_of(name) in held_out for name in names)}
    suites = assign_objects(set(groups) - away, pack, budget) | {"test_category": away}
    suites = {suite: sorted(name for first in firsts for name in groups[first]) for suite, firsts in suites.items()}
    pool = suites.pop("pool")
    left = f"{plural(len(groups) - len(away), 'distinct object')} besides {len(away)} held out"
    few = f"{data.root}: too few objects for a split ({left}); add some or change --held-out"
    refuse(not suites["train"] or not suites["val"], few)
    held_back = held_back_grasps(data, pack, pool)
    test_grasp = collections.defaultdict(list)
    for i in np.flatnonzero(held_back):
        test_grasp[data.scenes[data.scene[i]]].append(int(data.row[i]))
    duplicates = [names for names in groups.values() if len(names) > 1]
    if duplicates:
        shared = f"{sum(map(len, duplicates))} objects share a mesh, or a name but for words such as 'visual'"
        print(f"warning: {data.root}: {shared}; those stay on one side (splits.py lists them)", file=sys.stderr)
    rows = suite_rows(data, suites, held_back)
    split = Split(pack, budget, data.fingerprint, suites, pool, dict(test_grasp), duplicates, rows)
    verify(split)
    return split


def suite_rows(data, suites, held_back):
    """Suite -> (n,) int64 index of its grasps; test_grasp covers the pool, test_grasp_train the budget's objects."""
    rows = {suite: np.isin(data.object_of_scene, names)[data.scene] for suite, names in suites.items()}
    of_budget = rows["train"]
    rows |= {"train": of_budget & ~held_back, "test_grasp": held_back, "test_grasp_train": of_budget & held_back}
    return {suite: np.flatnonzero(rows[suite]) for suite in SUITES}


def verify(split):
    """Stop where a split lacks what every one must hold; no `assert`, which `python -O` leaves out."""
    sides = [set(split.pool), *(set(split.suites[suite]) for suite in ("val", "test", "test_category"))]
    broken = {
        "suites share an object": sum(map(len, sides)) > len(set().union(*sides)),
        "a training object lies outside the pool": not set(split.suites["train"]) <= sides[0],
        "a held-back grasp trains": np.intersect1d(split.rows["train"], split.rows["test_grasp"]).size > 0,
    }
    for what, found in broken.items():
        refuse(found, f"splits.py: {what}; its code has changed, restore it")


def counts_table(split):
    """Aligned counts of objects per synset and suite, then grasps per suite."""
    suites = list(split.suites)
    counts = {suite: collections.Counter(map(synset_of, split.suites[suite])) for suite in suites}
    lines = [f"{'objects':<20}" + "".join(f"{suite:>15}" for suite in suites)]
    for synset in sorted(set().union(*counts.values())):
        lines.append(f"{named(synset):<20}" + "".join(f"{counts[suite][synset]:>15}" for suite in suites))
    lines.append(f"{'all':<20}" + "".join(f"{len(split.suites[suite]):>15}" for suite in suites))
    lines.append(f"{'grasps':<20}" + "".join(f"{len(split.rows[suite]):>15}" for suite in suites))
    held_back = ", ".join(f"{suite} {len(split.rows[suite])}" for suite in SUITES if suite not in suites)
    lines.append(f"{'grasps held back':<20}  {held_back}")
    for names in split.duplicates:
        lines.append("same mesh or object, kept on one side: " + " ".join(names))
    return "\n".join(lines)


def add_split_flags(parser):
    """The flags that choose a split, the same in every script."""
    flag = parser.add_argument_group("split").add_argument
    flag("--pack", choices=("A", "B"), default="A", help="which of two independent draws of val and test")
    flag("--budget", type=number(float, above=0, high=1), default=1.0, help="share of the training pool's objects")
    default = f"default: {' '.join(HELD_OUT)} where present; nothing after the flag: none"
    flag("--held-out", nargs="*", type=composed, metavar="SYNSET", help=f"synsets that never train ({default})")


@command
def main(argv=None):
    parser = Parser(__doc__)
    add_data_flags(parser)
    add_split_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="save the split")
    args = parser.parse_args(argv)
    data = load_dataset(ensure_root(args.data), 512, args.min_score, args.skip_bad, args.cache_dir)
    split = make_split(data, args.pack, args.budget, args.held_out)
    print(f"{data.root}  pack {args.pack}  budget {args.budget:g}  fingerprint {data.fingerprint}")
    print(counts_table(split))
    print("verified: train, val, test and test_category share no object; no held-back grasp trains")
    if args.json:
        written = ("pack", "budget", "fingerprint", "suites", "test_grasp")
        write_json(args.json, {name: getattr(split, name) for name in written})
        print(f"saved {args.json}")


if __name__ == "__main__":
    main()
