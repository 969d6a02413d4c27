"""splits.py: object-level, stratified, nested splits that depend on names and meshes alone."""

import hashlib
import json
import math
import os
import random
import shutil

import numpy as np
import pytest
from conftest import OBJECTS, write_root

import data
import splits
from cli.errors import UserError


def names_of(counts):
    return [f"{synset}/object_{i:03d}" for synset, n in counts.items() for i in range(n)]


def random_counts(rng):
    return {f"{i:08d}": rng.randint(1, 60) for i in range(rng.randint(1, 14))}


def test_suite_sizes_hold_ten_percent_and_the_minimum():
    rng = random.Random(0)
    for _ in range(200):
        counts = random_counts(rng)
        sizes = splits.suite_sizes(counts)
        for synset, n in counts.items():
            assert sizes[synset] == 0 if n < 3 else 1 <= sizes[synset] <= max(1, math.ceil(0.1 * n))
        minimum = sum(max(1, int(0.1 * n)) for n in counts.values() if n >= 3)
        room = sum(math.ceil(0.1 * n) for n in counts.values() if n >= 3)
        wanted = math.floor(0.1 * sum(counts.values()) + 0.5)
        assert sum(sizes.values()) == max(minimum, min(wanted, room))


def test_order_is_sha256_of_pack_and_name():
    names = names_of({"1": 30})
    suites = splits.assign_objects(names, "B", 1.0)
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"B/{name}".encode()).hexdigest())
    assert suites["val"] == ordered[:3] and suites["test"] == ordered[3:6] and suites["pool"] == ordered[6:]


def test_budgets_share_val_and_test_are_nested_and_stratified():
    rng = random.Random(1)
    for _ in range(30):
        counts = random_counts(rng)
        names = names_of(counts)
        found = {p: splits.assign_objects(names, "A", p) for p in (0.01, 0.1, 0.25, 0.5, 1.0)}
        full = found[1.0]
        for p, suites in found.items():
            rng.shuffle(names)  # the listing order must not matter
            shuffled = splits.assign_objects(names, "A", p)
            assert all(sorted(shuffled[suite]) == sorted(suites[suite]) for suite in suites)
            assert suites["val"] == full["val"] and suites["test"] == full["test"] and suites["pool"] == full["pool"]
            for synset in counts:
                pool = [n for n in suites["pool"] if n.startswith(synset + "/")]
                train = [n for n in suites["train"] if n.startswith(synset + "/")]
                assert train == pool[: max(1, math.floor(p * len(pool) + 0.5))] and train
        for small, large in zip((0.01, 0.1, 0.25, 0.5), (0.1, 0.25, 0.5, 1.0)):
            assert set(found[small]["train"]) <= set(found[large]["train"])
        sides = [set(full[k]) for k in ("pool", "val", "test")]
        assert len(set().union(*sides)) == sum(map(len, sides)) == len(names)


def load(root):
    return data.load_dataset(root, 64, quiet=True)


def test_split_of_a_root(box_root):
    loaded = load(box_root)
    whole, tenth, other = (splits.make_split(loaded, pack, p) for pack, p in (("A", 1.0), ("A", 0.1), ("B", 1.0)))
    assert whole.suites["test_category"] == ["03948459/object_000", "03948459/object_001"]
    assert whole.suites["val"] == tenth.suites["val"] and whole.suites["test"] == tenth.suites["test"]
    assert whole.test_grasp == tenth.test_grasp and whole.suites["val"] != other.suites["val"]
    assert {name.split("/")[0] for name in tenth.suites["train"]} == set(OBJECTS) - {"03948459"}
    objects = loaded.object_of_grasp
    for suite in ("train", "val", "test", "test_category"):
        assert set(objects[whole.rows[suite]]) == set(whole.suites[suite])
    assert set(objects[tenth.rows["test_grasp"]]) == set(tenth.pool)
    assert set(objects[tenth.rows["test_grasp_train"]]) == set(tenth.suites["train"])


def test_held_back_grasps_are_the_first_tenth_by_sha256(tmp_path):
    loaded = load(write_root(tmp_path / "root", {"1": 4, "2": 3}, scenes=2, grasps=20))
    split = splits.make_split(loaded, "A", 0.3)
    for name in split.pool:
        kept = [(scene, row) for scene in ("scene_0", "scene_1") for row in range(20) if row % 4 != 3]
        kept.sort(key=lambda g: hashlib.sha256(f"A/{name}/{g[0]}/{g[1]}".encode()).digest())
        expected = {}
        for scene, row in kept[:3]:  # a tenth of 30
            expected.setdefault(f"{name}/{scene}", []).append(row)
        found = {scene: rows for scene, rows in split.test_grasp.items() if scene.startswith(name + "/")}
        assert found == {scene: sorted(rows) for scene, rows in expected.items()}
    assert not np.intersect1d(split.rows["train"], split.rows["test_grasp"]).size


def test_listing_order_does_not_matter(box_root, monkeypatch):
    """Neither for the split nor for the order of the data, which the fingerprint tells."""
    expected = splits.make_split(load(box_root), "A", 0.5)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: list(scandir(path))[::-1])
    found = splits.make_split(load(box_root), "A", 0.5)
    assert found.fingerprint == expected.fingerprint
    assert (found.suites, found.test_grasp) == (expected.suites, expected.test_grasp)


def test_duplicates_go_together(tmp_path):
    root = write_root(tmp_path / "root", {"1": 12, "2": 6, "03948459": 2})
    three, pair = ("1/object_003", "2/object_001", "2/object_004"), ("03948459/object_001", "1/object_005")
    for first, *others in (three, pair):
        for other in others:
            shutil.copy(root / first / "scene_0/mesh.obj", root / other / "scene_0")
    split = splits.make_split(load(root), "A", 1.0)
    assert sorted(split.duplicates) == [list(pair), list(three)]
    assert "kept on one side: " + " ".join(three) in splits.counts_table(split)
    assert "1/object_005" in split.suites["test_category"]
    sides = split.suites | {"train": split.pool}
    (side,) = [names for names in sides.values() if three[0] in names]
    assert set(three) <= set(side)


def test_verify_can_fail(box_root):
    split = splits.make_split(load(box_root), "A", 1.0)
    split.suites["val"].append(split.suites["test"][0])
    with pytest.raises(UserError, match="share"):
        splits.verify(split)


def test_command(box_root, tmp_path, capsys):
    splits.main(["--data", str(box_root), "--pack", "A", "--budget", "0.1", "--json", str(tmp_path / "split.json")])
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith("bottle 02876657") for line in told) and max(map(len, told[1:-1])) <= 100
    assert told[-2].startswith("verified") and told[-1] == f"saved {tmp_path / 'split.json'}"
    saved = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert set(saved) == {"pack", "budget", "fingerprint", "suites", "test_grasp"}
    assert set(saved["suites"]) == {"train", "val", "test", "test_category"} and saved["budget"] == 0.1
