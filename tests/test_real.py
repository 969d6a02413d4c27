"""lab/real.py: what is grasped and what pretraining sees of DexGraspNet's object set share no shape."""

from conftest import fails, write_box

from lab import real


def test_what_is_grasped_and_what_pretrains_share_no_shape(tmp_path, capsys):
    shapes = {  # name: side, m
        "core-mug-a1": 0.1, "core-mug-a2": 0.2, "core-mug-a3": 0.3, "core-pistol-a4": 0.4, "core-pillow-a5": 0.5,
        "sem-Cup-a1": 0.6, "sem-Cup-a3": 0.7, "sem-Cup-b1": 0.2, "sem-Cup-b2": 0.8, "ddg-some_toy-car": 0.9, "car": 1.0,
    }  # fmt: skip
    for name, side in shapes.items():
        write_box(tmp_path / "meshdata" / name / "coacd/decomposed.obj", (side, side, side))
    argv = f"{tmp_path}/meshdata --out {tmp_path}/out --most 2".split()
    real.main(argv)
    assert "4 objects of 3 categories, 3 others" in capsys.readouterr().out
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/**/*.obj"))
    # not a third mug; of the others none with the number of any object of the core, or the shape of one that is grasped
    assert found == [
        "objects/03797390/a1.obj", "objects/03797390/a2.obj", "objects/03948459/a4.obj", "objects/pillow/a5.obj",
        "others/car.obj", "others/ddg-some_toy-car.obj", "others/sem-Cup-b2.obj",
    ]  # fmt: skip


def test_another_folder_is_named(tmp_path, capsys):
    said = fails(real.main, f"{tmp_path} --out {tmp_path}/out".split(), capsys)
    assert "no folders with coacd/decomposed.obj; give" in said and not (tmp_path / "out").exists()
