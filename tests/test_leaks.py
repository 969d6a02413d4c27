"""What a run has seen is in no suite that is to be new to it, whatever became of its root, and in other roots."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import claim, fails, training, write_box, write_root

import data
import evaluate
import splits
import train
from files.writing import read_json, write_json
from hand.scenes import scene_mesh
from splits import make_split

GROUPS = {"1": 14, "cafe\u0301": 9, "03948459": 2}  # one synset is decomposed, one held out
TRAIN = "--steps 1 --budget 0.5".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A root that says it is generated, whose scenes note the object that they are of, and a run of one step on it."""
    folder = tmp_path_factory.mktemp("leaks")
    root = write_root(folder / "root", GROUPS, scenes=2, grasps=8)
    for scene in root.glob("*/*/*"):
        (scene / "was").write_text(scene.parent.relative_to(root).as_posix(), encoding="utf-8")
    claim(root, seed=0)
    train.main(training(root, folder, "--name", "run", *TRAIN))
    return root, folder / "run"


def objects_of(root):
    return sorted(path for path in root.glob("*/*") if path.is_dir() and not path.parent.name.startswith("."))


def seen_by(run):
    """Ids of what a run trained on, of the rest of its pool and of its val."""
    content = read_json(run / "objects.json")
    return [set(content[role]) for role in ("train", "pool", "val")]


def composed(text):
    return unicodedata.normalize("NFC", str(text))


def was(root, name):
    """The object of the training that an object is; its own id where it is a new one."""
    notes = [path for path in root.glob("*/*/*/was") if composed(path).startswith(f"{root}/{name}/")]
    return composed(notes[0].read_text(encoding="utf-8")) if notes else name


def grasps_of(loaded, rows):
    """Wrists and joints of grasps, to be compared."""
    return map(np.ndarray.tobytes, np.concatenate([loaded.poses[rows], loaded.joints[rows]], axis=1))


def add(root, seed=7, count=5):
    """New objects in every synset, by names that stand before, between and after the old ones."""
    fresh = write_root(root.parent / "fresh", {synset: count for synset in GROUPS}, seed=seed)
    for i, path in enumerate(objects_of(fresh)):
        shutil.move(path, root / path.parent.name / f"{'anz'[i % 3]}_{i}_new")


def rename(root, to=lambda i, name: f"{i * 7919 % 100:02d}_{name}"):
    for i, path in enumerate(objects_of(root)):
        path.rename(path.with_name(to(i, path.name)))


def respell(root, of_objects="NFC", of_synsets="NFC"):
    for form, paths in ((of_objects, objects_of(root)), (of_synsets, sorted(root.glob("[!.]*/")))):
        for path in paths:
            path.rename(path.with_name(unicodedata.normalize(form, path.name)))


def remesh(root):
    """Every mesh exported anew, a little larger."""
    for i, path in enumerate(sorted(root.glob("*/*/*/mesh.obj"))):
        write_box(path, (0.1, 0.1, 0.1 + i / 1000))


def record_anew(root):
    """Other grasps of every object."""
    for recording in root.glob("*/*/*/recording.npz"):
        arrays = dict(np.load(recording))
        np.savez(recording, **arrays | {"grasps": arrays["grasps"] + np.repeat([0, 0.01], [7, 12])})


def more_scenes(root):
    """A scene more of every object that was there: others of its grasps are held back."""
    fresh = write_root(root.parent / "scenes", GROUPS, seed=8, grasps=12)  # a grasp that trained is now held back
    for path in objects_of(fresh):
        shutil.move(path / "scene_0", root / path.parent.name / path.name / "scene_a")


def as_collision_meshes(root):
    remesh(root), record_anew(root)
    rename(root, lambda i, name: f"{name}_collision")


CHANGES = {
    "renamed": [rename, add], "respelt": [respell, add], "meshes anew": [remesh, add],
    "grasps anew": [record_anew, add], "all anew": [remesh, record_anew, add],
    "more scenes": [more_scenes, add], "other meshes of them": [as_collision_meshes, add],
}  # fmt: skip


LESS = ("renamed", "grasps anew", "meshes anew")  # of which "respelt" and "all anew" have each a part


@pytest.mark.parametrize("change", [pytest.param(c, marks=pytest.mark.slow) if c in LESS else c for c in CHANGES])
def test_no_suite_of_a_changed_root_holds_what_the_run_has_seen(trained, tmp_path, problems, capsys, change):
    root, run = tmp_path / "root", tmp_path / "run"
    shutil.copytree(trained[0], root, ignore=shutil.ignore_patterns(".cache"))
    shutil.copytree(trained[1], run)
    for step in CHANGES[change]:
        step(root)
    config = read_json(run / "config.json")
    config["settings"]["data"] = str(root)
    write_json(run / "config.json", config)
    old = data.load_dataset(trained[0], config["network"]["points"], quiet=True)
    trained_grasps = set(grasps_of(old, make_split(old, "A", 0.5).rows["train"]))
    trains, pool, val = seen_by(run)
    suites = {"val": trains | pool, "test": trains | pool | val, "test_category": trains | pool | val}
    suites |= {"test_grasp": val, "test_grasp_train": val}
    for place in ("where it was", "moved", "of somebody's own"):
        if place == "of somebody's own":
            (root / "dataset.json").unlink()
        with problems.of(place):
            capsys.readouterr()
            loaded, found = evaluate.open_run(run, None if place == "where it was" else root, quiet=True)
            told, plain = capsys.readouterr().err, make_split(loaded, "A", 0.5)
            if (change, place) == ("all anew", "of somebody's own"):  # such names recur in roots of other people
                assert "have the id of one, but no mesh or grasp" in told
                continue
            names = {name: was(root, name) for name in set(loaded.object_of_scene)}
            there = {suite: set(loaded.object_of_grasp[plain.rows[suite]].tolist()) for suite in suites}
            leaks = {suite: {name for name in there[suite] if names[name] in seen} for suite, seen in suites.items()}
            assert any(leaks.values()) and "left out (the first: " in told and told.count("\n") == 1, told
            for suite, names in leaks.items():
                objects = set(loaded.object_of_grasp[found.rows[suite]].tolist())
                assert not names & objects and not trained_grasps & set(grasps_of(loaded, found.rows[suite])), suite
                if suite in plain.suites:  # what is new to the run stays
                    assert objects == set(found.suites[suite]) == set(plain.suites[suite]) - names, suite


# ---------------------------------------------------------------- another root


def test_all_of_another_root_is_without_what_the_run_has_seen(trained, tmp_path, problems, capsys):
    root, run = trained
    trains, pool, val = map(sorted, seen_by(run))
    seen, paths = {*trains, *pool, *val}, {composed(path.relative_to(root)): path for path in objects_of(root)}
    ten, unseen, alike = [*trains[:6], *pool[:2], *val[:2]], sorted(paths.keys() - seen), "13 have the id of one"
    for name, old, to, new, generated, left_out, told in (
        ("ten of its objects", ten, "{}", 0, None, 10, "all its objects are of the pool or val"),
        ("ten by other names", ten, "x/{}", 0, None, 10, "all its objects are of the pool or val"),
        ("ten among new ones", ten, "x/{}", 4, None, 10, "10 objects are of the run's pool or val"),
        ("ten to be generated", ten, "{}", 20, 1, 10, "10 objects are of the run's pool or val"),
        ("what was for tests", unseen, "{}", 0, None, 0, "not the dataset"),
        ("names that recur", [], "", 20, None, 0, alike),
        ("the same seed", [], "", 20, 0, len([name for name in seen if name[0] == "1"]), "of the run's pool or val"),
        ("another seed", [], "", 20, 1, 0, alike),
    ):  # fmt: skip
        with problems.of(name):
            other = write_root(tmp_path / name, {"1": new}, scenes=2, seed=9)
            for i, path in enumerate(paths[id] for id in old):
                place = other / composed(path.relative_to(root)) if to == "{}" else other / "x" / str(i)
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(path, place)
            if generated is not None:
                claim(other, seed=generated)
            objects = len(objects_of(other))
            argv = [str(run), "--suite", "all", "--data", str(other), "--quiet"]
            if objects == left_out:
                assert told in fails(evaluate.main, argv, capsys)
                continue
            found = evaluate.main(argv)["suites"]["all"]["num_objects"]
            err = capsys.readouterr().err
            assert found == objects - left_out and told in err and err.count("\n") == 1, (found, objects, err)


def test_on_its_own_data_nothing_is_said(trained, capsys):
    evaluate.main([str(trained[1]), "--suite", "test"])
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- names and times


def test_names_in_any_unicode_form_are_one_dataset(tmp_path):
    for path in write_root(tmp_path / "made", {"cafe\u0301": 9, "1": 5}).glob("*/*"):
        path.rename(path.with_name(path.name.replace("o", "o\u0308", 1)))
    found = []
    for forms in (("NFC", "NFC"), ("NFD", "NFD"), ("NFC", "NFD"), ("NFD", "NFC")):
        copy = shutil.copytree(tmp_path / "made", tmp_path / "-".join(forms))
        respell(copy, *forms)
        loaded = data.load_dataset(copy, 32, quiet=True)
        split = make_split(loaded, "A", 0.5)
        found.append((loaded.fingerprint, loaded.scenes, split.suites, split.test_grasp))
        assert all(scene_mesh(loaded, scene).exists() for scene in range(len(loaded.scenes)))
        for form in ("NFC", "NFD"):
            splits.main(["--data", str(copy), "--held-out", unicodedata.normalize(form, "caf\xe9")])
    assert all(one == found[0] for one in found) and composed(found[0][1]) == str(found[0][1])


@pytest.mark.parametrize("level", ("object", "scene"))
def test_one_name_in_two_unicode_forms_is_an_error(tmp_path, capsys, level):
    first = next(write_root(tmp_path / "root", {"1": 4}).glob("*/*" if level == "object" else "*/*/*"))
    first.rename(first.with_name("caf\xe9"))
    data.load_dataset(tmp_path / "root", 32, quiet=True)
    shutil.copytree(first.with_name("caf\xe9"), first.with_name("cafe\u0301"))
    said = fails(data.main, [tmp_path / "root", "--points", "32"], capsys)
    assert "caf\\xe9" in said and "cafe\\u0301" in said and "one name in two Unicode forms" in said


@pytest.mark.parametrize("name", ("recording.npz", "mesh.obj"))
def test_a_file_of_the_same_size_and_time_is_read_anew(tmp_path, name):
    root = write_root(tmp_path / "root", {"1": 2})
    first = data.load_dataset(root, 32, quiet=True)
    path, other = (root / "1" / f"object_{i:03d}" / "scene_0" / name for i in range(2))
    before = path.stat()
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert data.load_dataset(root, 32, quiet=True).fingerprint != first.fingerprint
