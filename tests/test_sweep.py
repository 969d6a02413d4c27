"""sweep.py as it is called: grids that resume, rows and what they say, several processes, all kinds of sweeps."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import after_step, fails, needs_posix, once_there, stopped, write_root
from samples import TINY, save_encoder

import sweep
import train
from cli.processes import hearing
from files.writing import locked
from lab import runner
from lab.rows import differences, flags_of, notes, read_rows, seed_of, write_rows

ROOT = Path(__file__).parent.parent
TIMED = {"seconds": None}  # what differs from run to run


def arguments(box_root, tmp_path, *more, kind="grid"):
    """A smoke sweep over the dataset of boxes, its table in TMP/table and its runs in TMP/runs."""
    places = ["--out", tmp_path / "table", "--runs", tmp_path / "runs", "--data", box_root]
    return [str(word) for word in (kind, "--smoke", *places, *more)]


def text_of(tmp_path):
    return (tmp_path / "table" / "table.md").read_text(encoding="utf-8")


def test_tables_go_where_nothing_is_committed():
    for words, out in (
        ("k", "runs/tables/k"), ("k --quick", "runs/tables/k_quick"), ("table1 --smoke", "runs/smoke/table1"),
        ("k --out results/mine", "results/mine"),
    ):  # fmt: skip
        assert sweep.parse(words.split())[0].out == Path(out)


# ---------------------------------------------------------------- running


def test_a_grid_goes_on_where_it_stopped(box_root, tmp_path, capsys):
    """Two of four runs have rows; only the others run, the table has means over seeds, and --tables makes it again."""
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--seeds")
    assert len(sweep.main([*argv, "0"])) == 2
    capsys.readouterr()
    rows = sweep.main([*argv, "0,1"])
    said = capsys.readouterr()
    assert "grid: 2 rows found, 2 to run" in said.err and said.err.count("\n4 of 4, ") == 1
    lines = said.out.splitlines()
    assert max(map(len, lines[:-1])) <= 100 and lines[-1].startswith("saved ") and "training mean" in said.out
    assert [(flags_of(row)["--k"], seed_of(row)) for row in rows] == [("1", "0"), ("1", "1"), ("2", "0"), ("2", "1")]
    saved = read_rows(tmp_path / "table" / "rows.csv")
    assert saved == rows and all(0 < float(row["top_logit_rmse"]) < 10 and row["precision"] == "fp32" for row in rows)
    text = text_of(tmp_path)
    first, second = (float(row["top_logit_rmse"]) for row in saved[:2])
    assert f"{(first + second) / 2:.4f} ± {abs(first - second) / 2**0.5:.4f}" in text
    assert "Trainings of 2 steps: **unconverged**." in text
    assert sweep.main([*argv, "0,1"]) == rows
    curves = {row["command"] for row in read_rows(tmp_path / "table" / "curves.csv")}
    assert curves == {row["command"] for row in rows}
    for name in ("table.md", "curves.png"):
        (tmp_path / "table" / name).unlink()
    sweep.main([*argv, "0,1", "--tables", "--runs", str(tmp_path / "none")])
    assert text_of(tmp_path) == text and not (tmp_path / "none").exists()
    assert (tmp_path / "table" / "curves.png").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_stops_a_run_and_the_same_command_goes_on(box_root, tmp_path, name):
    """In its second run, of two steps each; all of a seed come before the next. To be killed is the same."""
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--seeds", "0,1")
    with after_step(3, lambda: signal.raise_signal(getattr(signal, name))):
        code, said = stopped(sweep.main, argv)
    assert code == 130 and "the same command goes on" in said
    assert len(read_rows(tmp_path / "table" / "rows.csv")) == 1
    (log,) = tmp_path.glob("runs/*_k-2_*_seed-0-*.log")
    assert "stopped at step 1" in log.read_text(encoding="utf-8")
    assert len(sweep.main(argv)) == 4
    assert log.read_text(encoding="utf-8").count("starting at step 0") == 1  # it went on


def test_a_diverged_run_keeps_its_row(box_root, tmp_path):
    argv = arguments(box_root, tmp_path, "--lr-head", "1e-3,1e30")
    good, bad = sweep.main(argv)
    assert good["failed"] == "" and "not finite" in bad["failed"] and bad["top_logit_rmse"] == ""
    assert "1 (1 diverged) | – |" in text_of(tmp_path)
    assert len(sweep.main(argv)) == 2


def test_a_run_whose_validations_are_never_finite_has_diverged(box_root, tmp_path):
    """Its loss still was: the only step brought weights whose predictions overflow."""
    words = f"--data {box_root} --preset tiny --steps 1 --lr-head 1e15 --threads 1"
    never = "the validation error is not finite at any of its 1 validations"
    (row,) = sweep.main(f"grid {words} --out {tmp_path}/table --runs {tmp_path}/runs".split())
    assert row["failed"].startswith("diverged: ") and never in row["failed"] and row["top_logit_rmse"] == ""


@pytest.mark.parametrize("kind", ["init", "table1", "published"])
def test_scratch_is_compared_with_an_encoder_of_its_own_network(box_root, tmp_path, capsys, kind):
    save_encoder(tmp_path / "e.pt", dataclasses.replace(TINY, points=128))
    argv = arguments(box_root, tmp_path, "--jepa-ckpt", tmp_path / "e.pt", kind=kind)
    assert "points 128, not 64" in fails(sweep.main, argv, capsys)


def test_an_assay_reads_out_networks_of_one_kind(box_root, tmp_path, capsys):
    """Its pretrained encoder ships: 512 points."""
    argv = ["assay", "jepa", "--input", "full", "--points", "256", *arguments(box_root, tmp_path)[2:]]
    assert "points 512, not 256" in fails(sweep.main, argv, capsys)


def test_rows_of_other_origins_are_not_gone_on_with(box_root, tmp_path, capsys):
    """Another encoder under the same name, or another commit's code: the table stays, no run is added."""
    argv = arguments(box_root, tmp_path, "--init", "jepa,scratch")
    jepa, scratch = sweep.main(argv)
    assert len(jepa["encoder"]) == 8 and scratch["encoder"] == "" and "jepa-ckpt" not in scratch["command"]
    (path,) = (tmp_path / "runs").glob("random-*.pt")
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    assert "another encoder" in fails(sweep.main, argv, capsys)
    path.write_bytes(content)
    write_rows(tmp_path / "table" / "rows.csv", [jepa | {"commit": "abc1234"}, scratch])
    assert "another commit" in fails(sweep.main, argv, capsys)
    sweep.main([*argv, "--tables"])
    assert text_of(tmp_path).startswith("Commands run at commit abc1234.")


def test_errors(box_root, tmp_path, capsys):
    for words, message in (
        ("grid --k", "pairs"), ("grid --k 0", "--k"), ("grid --seeds x", "--seeds"), ("grid --seed 1", "--seeds"),
        ("grid --from x", "--from"), ("grid --against x", "table1"),
        ("grid --init jepa --jepa-ckpt none.pt", "none.pt"), ("grid --quick", "--quick"), ("grid --tables", "no rows"),
        ("table1 --lr-head 1e-3", "--lr-head"), ("encoders", "FILE.pt"), ("controls posed", "no posed"),
        ("controls --pool hand", "--pool"), ("controls --init jepa", "--init"), ("future --lora 16", "--lora"),
        ("published --pack B", "--pack"), ("published --k 1,5", "one value"), ("published --seeds 5", "--seeds"),
        ("assay surface --device cpu", "--device"), ("assay surface --held-out 1", "no such synset"),
    ):  # fmt: skip
        kind, *more = words.split()
        assert message in fails(sweep.main, [kind, *more, *arguments(box_root, tmp_path)[1:]], capsys), words
    (tmp_path / "table").mkdir(exist_ok=True)
    (tmp_path / "table" / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert "rows.csv" in fails(sweep.main, arguments(box_root, tmp_path), capsys)


# ---------------------------------------------------------------- the dataset


def test_changed_labels_bring_no_old_result_back(tmp_path, capsys):
    root = write_root(tmp_path / "root", {"03797390": 6, "02876657": 6})
    argv = arguments(root, tmp_path)
    (before,) = sweep.main(argv)
    path = next(root.glob("*/*/*/recording.npz"))
    arrays = dict(np.load(path))
    arrays["grasps"][:, 7:] *= 0.5
    np.savez(path, **arrays)
    assert "another dataset" in fails(sweep.main, argv, capsys)
    (after,) = sweep.main([*argv, "--out", str(tmp_path / "new")])
    assert after["command"] == before["command"] and after["dataset"] != before["dataset"]
    assert after["top_logit_rmse"] != before["top_logit_rmse"]


def test_what_rows_differ_in_is_said():
    def row(flags, **more):
        command = f"python train.py {flags}"
        return {"command": command, "dataset": "x", "precision": "fp32", "device": "cpu", "threads": 1} | more

    alike = [row("--k 1"), row("--k 5 --steps 2000"), row("--steps 9", failed="diverged", precision="")]
    assert differences(alike) == []
    assert differences([row("--k 1"), row("--steps 50", threads=2), row("--k 5", precision="bf16")]) == [
        "Rows differ in their precision: bf16 (1 row), fp32 (2 rows).",
        "Rows differ in their number of threads: 1 (2 rows), 2 (1 row).",
        "Rows differ in their number of steps: 2000 (2 rows), 50 (1 row).",
    ]
    (said,) = differences([row("--k 1"), row("--k 1", device="cuda", threads=8)])  # a GPU's threads do not count
    assert said == "Rows differ in their device: cpu (1 row), cuda (1 row)."
    assert notes([row("--steps 8000", commit="abc")] * 2) == ["Commands run at commit abc."]


# ---------------------------------------------------------------- several processes


def test_a_run_that_another_process_has_comes_last(box_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "PAUSE", 0.05)
    argv, rows, meanwhile = arguments(box_root, tmp_path, "--k", "1,2"), tmp_path / "table" / "rows.csv", []
    expected = sweep.main(argv)
    (first,) = (path for path in (tmp_path / "runs").glob("*.log") if "_k-1_" in path.name)
    rows.unlink()
    with contextlib.ExitStack() as other:
        assert other.enter_context(locked(first))

        def let_go():
            meanwhile.extend(row["command"] for row in read_rows(rows))
            time.sleep(0.2)  # a look at the first, which is not free
            other.close()

        with once_there(rows.parent, rows.name, let_go):
            again = sweep.main(argv)
    assert meanwhile == [expected[1]["command"]]  # the free one first
    assert "waiting for runs that other processes have: 1" in capsys.readouterr().err
    assert [row | TIMED for row in again] == [row | TIMED for row in expected]


def test_rows_that_come_together_all_stay(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: runner.add_row({"command": name}, tmp_path / "rows.csv", tmp_path), "abcdefghi"))
    assert sorted(row["command"] for row in read_rows(tmp_path / "rows.csv")) == list("abcdefghi")


def test_a_run_that_has_just_ended_elsewhere_is_not_trained_again(box_root, tmp_path, monkeypatch):
    """Its row comes after the look at rows, before the lock."""
    argv, rows = arguments(box_root, tmp_path), tmp_path / "table" / "rows.csv"
    expected = sweep.main(argv)
    content = rows.read_bytes()
    rows.unlink()
    shutil.rmtree(tmp_path / "runs")

    @contextlib.contextmanager
    def locked_late(path, wait=False):
        rows.write_bytes(content)
        with locked(path, wait) as mine:
            yield mine

    monkeypatch.setattr(runner, "locked", locked_late)
    monkeypatch.setattr(train, "main", None)
    assert sweep.main(argv) == expected


@needs_posix
@pytest.mark.slow
def test_a_closed_terminal_stops_two_jobs_and_the_same_command_goes_on(box_root, tmp_path):
    """It says so twice: as the shell ends, and as the terminal does."""
    long = "grid --k 1,2 --preset tiny --steps 100000 --eval-every 100000 --threads 1 --jobs 2"
    places = f"--data {box_root} --out {tmp_path}/table --runs {tmp_path}/runs"
    command = [sys.executable, ROOT / "sweep.py", *long.split(), *places.split()]
    with hearing(signal.SIG_DFL, "SIGHUP"):  # the tests may be under nohup
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("runs/*/last.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    for _ in range(2):
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(0.05)
    assert "the same command goes on" in process.communicate(timeout=300)[1] and process.returncode == 130
    logs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("runs/*.log")]
    assert len(logs) == 2 and all("stopped at step" in log for log in logs)  # the parent has waited for both
    assert not (tmp_path / "table" / "rows.csv").exists()


@pytest.mark.slow
def test_two_jobs_stop_at_what_one_cannot_do(box_root, tmp_path, capfd):
    argv = arguments(box_root, tmp_path, "--k", "1,2", "--jobs", "2", kind="grid")
    sweep.main(argv)
    (tmp_path / "table" / "rows.csv").unlink()
    for result in tmp_path.glob("runs/*/result.json"):
        result.write_text("{}", encoding="utf-8")
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        sweep.main(argv)
    said = capfd.readouterr().err
    assert stop.value.code == 2 and "result.json" in said and said.count("error: ") <= 2  # the parent does not try, too
    assert not (tmp_path / "table" / "rows.csv").exists()


# ---------------------------------------------------------------- kinds with stages of their own


@pytest.mark.slow
def test_encoders_and_their_cards(box_root, tmp_path):
    path = tmp_path / "mine.pt"
    save_encoder(path)
    card = '{"command": "python pretrain_jepa.py --out mine.pt", "seconds": 7, "clouds_seen": 100}'
    path.with_suffix(".json").write_text(card, encoding="utf-8")

    def run(seeds):
        flags = arguments(box_root, tmp_path, "--seeds", seeds, "--budget", "1")[1:]
        return sweep.main(["encoders", str(path), *flags])

    rows = run("0,1")
    starts = [flags_of(row)["--jepa-ckpt"] for row in rows]
    assert len(rows) == 4 and starts[2:] == [str(path)] * 2 and "random" in starts[0]
    random, mine = read_rows(tmp_path / "table" / "probe.csv")
    assert [random["file"], random["command"]] == ["random", ""]
    assert [mine["file"], mine["command"]] == [str(path), "python pretrain_jepa.py --out mine.pt"]
    assert mine["probe_2"] and mine["seconds"] == "7" and mine["encoder"] == rows[-1]["encoder"]
    text = text_of(tmp_path)
    assert f"--jepa-ckpt {path}` | 2 |" in text and f"| {path} | {mine['encoder']} |" in text
    assert run("0,1") == run("1") == rows


@pytest.mark.slow
def test_benchmark_has_its_baselines(box_root, tmp_path):
    argv = arguments(box_root, tmp_path, "--budget", "1", kind="benchmark")
    rows, text = sweep.main(argv), text_of(tmp_path)
    assert "(training mean, budget 1)" in text and "(nearest training grasp) `" in text and "Linear probes" in text
    assert len(rows) == 6  # pose only, attention and hand with K of 5 and 1, nearest grasp
    assert sweep.main(argv) == rows


@pytest.mark.slow
def test_table1_and_made_again_from_its_files(box_root, tmp_path):
    out = tmp_path / "table"
    argv = arguments(box_root, tmp_path, "--pack", "A", "--budget", "1", kind="table1")
    rows = sweep.main(argv)
    assert len(rows) == 4 and len(read_rows(out / "trials.csv")) == 8
    for name in ("test_top_logit_rmse", "test_grasp_coverage_15", "test_category_selection_gap"):
        assert all(row[name] for row in rows)
    best = min(read_rows(out / "trials.csv"), key=lambda row: float(row["top_logit_rmse"]))
    chosen, flags = flags_of(best), {tuple(sorted(flags_of(row).items())) for row in rows}
    assert any(chosen.items() - {("--budget", "0.1")} <= set(found) for found in flags)  # its rates are among the arms'
    assert {row["command"] for row in read_rows(out / "curves.csv")} == {row["command"] for row in rows}
    assert "better than scratch, %" in text_of(tmp_path) and "better than table" not in text_of(tmp_path)
    (out / "efficiency.png").unlink()
    sweep.main([*argv, "--tables", "--against", str(out)])
    assert text_of(tmp_path).count(" better than table, % ") == 3  # not test_grasp
    assert (out / "efficiency.png").exists()
    (out / "objects.npz").write_bytes(b"nothing")
    with pytest.raises(SystemExit):
        sweep.main([*argv, "--tables"])


@pytest.mark.slow
def test_given_rates_run_no_trials(box_root, tmp_path):
    words = "--pack A --budget 1 --init scratch --lr-backbone 0 --lr-head 2e-3".split()
    assert len(sweep.main(arguments(box_root, tmp_path, *words, kind="table1"))) == 1
    assert not (tmp_path / "table" / "trials.csv").exists()
    assert "## test_category" in text_of(tmp_path)


@pytest.mark.slow
def test_controls(box_root, tmp_path, capsys):
    """Arms, the table; then nothing is trained again."""
    arms = "size random jepa scratch".split()
    argv = ["controls", *arms, *arguments(box_root, tmp_path, "--budget", "0.5,1")[1:]]
    rows = sweep.main(argv)
    assert len(rows) == 4 * 2 * 2
    arm = [flags_of(row) for row in rows if "--init scratch" in row["command"]]
    assert {(flags["--budget"], flags["--k"]) for flags in arm} == {("0.5", "1"), ("0.5", "5"), ("1", "1"), ("1", "5")}
    assert all(row["test_top_logit_rmse"] and row["encoder"] for row in rows if "--jepa-ckpt" in row["command"])
    text = text_of(tmp_path)
    assert text.count(" better than random, % ") == 2  # on val and test
    assert sweep.main(argv) == rows
    assert "16 rows found, 0 to run" in capsys.readouterr().err


@pytest.mark.slow
def test_future(box_root, tmp_path):
    """Trainings, all suites, the table; then nothing is made again."""
    argv = arguments(box_root, tmp_path, "--jobs", "2", kind="future")
    rows = sweep.main(argv)
    assert len(rows) == 2 + 2
    assert "--lora 8 --init jepa" in text_of(tmp_path) and "## test_category" in text_of(tmp_path)
    assert text_of(tmp_path).count(" better than the default, % ") == 3
    assert all(one["test_category_top_logit_rmse"] for one in rows)
    adapted = {flags_of(one)["--init"] for one in rows if "--lora" in one["command"]}
    assert adapted == {"random", "jepa"}  # a frozen encoder of random weights is calibrated
    assert sweep.main(argv) == rows


@pytest.mark.slow
def test_published(box_root, tmp_path, capsys):
    """All arms of two draws; stopped half way the rest is run, nothing twice, and no run stays."""
    argv = arguments(box_root, tmp_path, "--runs", tmp_path / "draws", kind="published")
    rows = sweep.main(argv)
    assert len(rows) == 6 and "against itself" in text_of(tmp_path)
    for scratch, again, jepa in zip(rows[::3], rows[1::3], rows[2::3]):
        assert len({row["top_logit_rmse"] for row in (scratch, again, jepa)}) == 3
        assert len({row["training_mean"] for row in (scratch, again, jepa)}) == 1  # one draw of the objects
        assert scratch["encoder"] == again["encoder"] == "" != jepa["encoder"]
    assert rows[0]["training_mean"] != rows[3]["training_mean"]
    assert not [path for path in (tmp_path / "draws").iterdir() if path.is_dir()]
    write_rows(tmp_path / "table" / "rows.csv", rows[:4])
    capsys.readouterr()
    again = sweep.main(argv)
    assert "4 rows found, 2 to run" in capsys.readouterr().err
    assert [row | TIMED for row in again] == [row | TIMED for row in rows]
