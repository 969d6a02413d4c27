"""Table I of the paper, label efficiency: initialisations by budget, pack and seed, compared object by object.

Learning rates are the paper's and the best of an initialisation's own trials, which lie in a folder of their own.
Every run's best step on val is evaluated once on the test suites.
"""

import math
from pathlib import Path

import numpy as np
import torch

from cli.errors import UserError
from evaluate import MIN_OBJECTS, read_predictions, resample, sample_statistics
from files.writing import atomic
from lab.rows import EQUAL_RESULTS, command_of, differences, flags_of, read_rows, write_rows
from lab.runner import plan_runs, run_all
from lab.tables import count_runs, markdown, metric_cells

TABLE_SUITES = ("val", "test", "test_grasp", "test_category")
SUITES_BY_OBJECT = ("val", "test", "test_category")  # whose errors are kept by object
PAPER_RATES = ("1e-5", "1e-3")  # of backbone and head, Sec. IV-C
BUDGETS = {"A": "0.01,0.1,0.25,1", "B": "0.1,0.25,1"}  # by pack
BOTH_PACKS = "A and B"
ARM_FLAGS = ("--pack", "--budget", "--init", "--lr-backbone", "--lr-head")


# ---------------------------------------------------------------- which runs


def plan_table1(given, rates, args):
    """The runs at `rates` (init -> pairs), all of a seed before the next; --init and --pack choose among them."""
    planned = []
    for pack in given.get("--pack", "A,B").split(","):
        for init in given.get("--init", "jepa,scratch").split(","):
            for backbone, head in rates[init]:
                own = {"--pack": pack, "--init": init, "--lr-backbone": backbone, "--lr-head": head}
                planned += plan_runs([{"--budget": BUDGETS.get(pack, "1")}], given | own, args.seeds, args)
    return sorted(planned, key=lambda flags: args.seeds.index(flags["--seed"]))


def rates_of(row):
    """Initialisation of a row, and its rates (backbone, head) as they are spelt."""
    flags = flags_of(row)
    return flags["--init"], (flags["--lr-backbone"], flags["--lr-head"])


def best_rates(rows):
    """Initialisation -> rates of its trial with the lowest val RMSE; nothing without trials."""
    finished = [row for row in rows if row["top_logit_rmse"]]
    finished.sort(key=lambda row: -float(row["top_logit_rmse"]))
    return dict(map(rates_of, finished))  # the last wins


def given_rates(given):
    """The pair of rates that the command line gives, or None; half a pair is an error."""
    pair = [given.get(flag) for flag in ("--lr-backbone", "--lr-head")]
    if not any(pair):
        return None
    if not all(pair) or "," in "".join(pair):
        raise UserError("table1 takes one --lr-backbone and one --lr-head, or neither and runs its trials")
    return tuple(pair)


def rates_of_table1(given, trials_grid, args):
    """Initialisation -> its pairs of rates: the given one, or the paper's and the best of its trials.

    The trials run here; None where --list has only printed their commands.
    """
    inits, fixed = given.get("--init", "jepa,scratch").split(","), given_rates(given)
    if fixed:
        return {init: [fixed] for init in inits}
    shared = {flag: value for flag, value in given.items() if flag not in ("--budget", "--pack")}
    trials = plan_runs(trials_grid, shared, args.seeds[:1], args)
    path = Path(args.rates) / "rows.csv" if args.rates else args.out / "trials.csv"
    found = {row["command"]: row for row in run_all(trials, path, args)}
    commands = [command_of(flags) for flags in trials]
    if not found.keys() >= set(commands):
        return None
    best = best_rates([found[name] for name in commands])
    return {init: list(dict.fromkeys((PAPER_RATES, best.get(init, PAPER_RATES)))) for init in inits}


# ---------------------------------------------------------------- what is kept of a run besides its row


def per_object(predictions):
    """Squared error of the top logit by object: ids (O,), grasps (O,), mean squared error (O,) in rad²."""
    arrays = (torch.as_tensor(predictions[name]).float() for name in ("joints_pred", "logits", "joints_true"))
    squared = sample_statistics(*arrays)["top_logit_rmse"].numpy()
    ids, index = np.unique(predictions["object"], return_inverse=True)
    grasps = np.bincount(index)
    return ids, grasps, np.bincount(index, weights=squared) / grasps


def keep_details(out, run):
    """A finished run's validation curve into OUT/curves.csv, its errors by object into OUT/objects.npz."""
    columns = ("step", "train_loss", "val_top_logit_rmse")
    curve = [
        {"command": run.command} | {column: row[column] for column in columns}
        for row in read_rows(run.folder / "metrics.csv", "step")
    ]
    others = [row for row in read_rows(out / "curves.csv") if row["command"] != run.command]
    write_rows(out / "curves.csv", others + curve)

    errors = read_errors(out)
    predictions = read_predictions(run.folder / "predictions.npz")
    for suite in SUITES_BY_OBJECT:
        of_suite = {key: array[predictions["suite"] == suite] for key, array in predictions.items()}
        if len(of_suite["logits"]):
            errors[run.command, suite] = per_object(of_suite)
    write_errors(out, errors)


def write_errors(out, errors):
    """Write what `read_errors` reads."""
    commands = sorted({command for command, _ in errors})
    sizes = [len(ids) for ids, _, _ in errors.values()]
    objects, grasps, squared = (np.concatenate(column) for column in zip(*errors.values()))
    with atomic(out / "objects.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            commands=commands,
            run=np.repeat([commands.index(command) for command, _ in errors], sizes),
            suite=np.repeat([suite for _, suite in errors], sizes),
            object=objects,
            grasps=grasps,
            squared_error=squared,
        )


def read_errors(out):
    """(command, suite) -> (objects, grasps, mean squared errors of the top logit in rad²), of OUT/objects.npz."""
    path = out / "objects.npz"
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        errors = {}
        for run, suite in sorted(set(zip(arrays["run"].tolist(), arrays["suite"].tolist()))):
            rows = (arrays["run"] == run) & (arrays["suite"] == suite)
            columns = (arrays[name][rows] for name in ("object", "grasps", "squared_error"))
            errors[str(arrays["commands"][run]), suite] = tuple(columns)
        return errors
    except Exception:  # numpy, zipfile and zlib raise whatever they meet
        raise UserError(f"{path}: not what table1 wrote; restore it, or give another --out") from None


# ---------------------------------------------------------------- arms


def check_alike(rows, path):
    """Stop where rows differ in what the table does not show: an arm's mean would mix them."""
    unlike = []
    flags = [flags_of(row) for row in rows]
    for flag in sorted({flag for of_row in flags for flag in of_row} - {*ARM_FLAGS, *EQUAL_RESULTS}):
        bound = [of_row for of_row in flags if flag != "--jepa-ckpt" or of_row["--init"] == "jepa"]
        values = sorted({of_row.get(flag, "not given") for of_row in bound})
        if len(values) > 1:
            unlike.append(f"{flag} ({', '.join(values)})")
    for init in sorted({of_row["--init"] for of_row in flags}):
        rates = {pair for of_init, pair in map(rates_of, rows) if of_init == init} - {PAPER_RATES}
        if len(rates) > 1:
            unlike.append(f"the learning rates of {init} ({'; '.join(', '.join(pair) for pair in sorted(rates))})")
    if unlike:
        raise UserError(f"{path}: rows of one table1 differ in {' and '.join(unlike)}; give each its own --out")


def own_best(rows):
    """Initialisation -> the rates that the rows have besides the paper's; the paper's if those were best."""
    found = sorted(map(rates_of, rows), key=lambda item: item[1] != PAPER_RATES)
    return dict(found)  # the last wins


def arms(rows):
    """Rows by (pack, budget, label of the rates, init): each pack apart, and both where both have the budget."""
    groups, best = {}, own_best(rows)
    for row in rows:
        flags, (init, rates) = flags_of(row), rates_of(row)
        labels = ["paper's"] * (rates == PAPER_RATES) + ["own best"] * (rates == best[init])
        for label in labels:
            for pack in (flags["--pack"], BOTH_PACKS):
                groups.setdefault((pack, float(flags["--budget"]), label, init), []).append(row)
    in_both = {key for key, group in groups.items() if len({flags_of(row)["--pack"] for row in group}) > 1}
    keys = [key for key in groups if key[0] != BOTH_PACKS or key in in_both]
    keys.sort(key=lambda key: (key[0] == BOTH_PACKS, key[0], key[1], key[2] != "paper's", key[3]))
    return {key: groups[key] for key in keys}


def scratch_as_jepa(groups):
    """The arms from scratch under the keys of those that they are to be compared with."""
    return {(*key[:3], "jepa"): group for key, group in groups.items() if key[3] == "scratch"}


# ---------------------------------------------------------------- comparisons


def paired_improvement(new, old, grasps, objects, seed=0, draws=2000):
    """By what share `new` lowers the RMSE of `old`, and its 95 % interval over objects: three floats.

    new, old (n,) mean squared errors (rad²) over the `grasps` (n,) grasps of `objects` (n,) ids; an object that
    stands there twice, say in two packs, is drawn as one. Every draw takes the same objects for both, so that what
    makes an object hard for either cancels. The interval leaves out training variance; nan under 8 objects.
    """
    ids, index = np.unique(np.asarray(objects), return_inverse=True)
    a, b = (np.bincount(index, weights=grasps * errors) for errors in (new, old))  # (O,) sums over an object's grasps
    improvement = float(1 - math.sqrt(a.sum() / b.sum()))
    if len(ids) < MIN_OBJECTS:
        return improvement, math.nan, math.nan
    weights = resample(len(ids), seed, draws)
    low, high = np.percentile(1 - np.sqrt((weights @ a) / (weights @ b)), (2.5, 97.5))
    return improvement, float(low), float(high)


def averaged_errors(errors, rows, suite):
    """Objects, grasps and squared errors of some runs: averaged over seeds within a pack, then the packs in a row."""
    packs = {}
    for row in rows:
        if (row["command"], suite) in errors:
            packs.setdefault(flags_of(row)["--pack"], []).append(errors[row["command"], suite])
    parts = []
    for _, runs in sorted(packs.items()):
        objects, grasps, _ = runs[0]
        parts.append((objects, grasps, np.mean([squared for _, _, squared in runs], axis=0)))
    return [np.concatenate(column) for column in zip(*parts)]


def improvement_cells(new, old):
    """By how much `new` beats `old` (both from `averaged_errors`) in %, and the interval; None if not comparable."""
    if not new or not old or not np.array_equal(new[0], old[0]):
        return None
    objects, grasps, squared = new
    percent = [f"{100 * value:.1f}" for value in paired_improvement(squared, old[2], grasps, objects)]
    return [percent[0], "" if percent[1] == "nan" else f"{percent[1]} to {percent[2]}"]


def comparison_lines(groups, errors, old_groups, old_errors):
    """A line per suite and arm that both tables have and that are comparable."""
    lines = []
    for suite in SUITES_BY_OBJECT:
        for key, group in groups.items():
            if key not in old_groups:
                continue
            new = averaged_errors(errors, group, suite)
            cells = improvement_cells(new, averaged_errors(old_errors, old_groups[key], suite))
            if cells:
                pack, budget, label, init = key
                lines.append([suite, pack, f"{budget:g}", label, init, *cells])
    return lines


# ---------------------------------------------------------------- the table


def suite_section(groups, suite):
    """Markdown: all arms on one suite."""
    prefix = "" if suite == "val" else f"{suite}_"
    header = ["pack", "budget", "rates", "init", "runs", "top-logit RMSE (rad)", "best-of-K", "gap", "coverage@15°"]
    lines = [
        [pack, f"{budget:g}", label, init, count_runs(group), *metric_cells(group, prefix)]
        for (pack, budget, label, init), group in groups.items()
    ]
    return f"## {suite}\n\n" + markdown(header, lines)


def table1_text(rows, out, against=None):
    """Markdown: a table per suite, then relative improvements with paired intervals; `against`: another table1's."""
    check_alike(rows, out / "rows.csv")
    groups, errors = arms(rows), read_errors(out)
    best = "; ".join(f"{init} {', '.join(pair)}" for init, pair in own_best(rows).items())
    sections = [f"Own best rates (backbone, head): {best}\n", *(line + "\n" for line in differences(rows))]
    sections += [suite_section(groups, suite) for suite in TABLE_SUITES]

    sections += comparison_section("jepa over scratch", [], groups, errors, scratch_as_jepa(groups), errors)
    if against:
        sections += against_sections(rows, groups, errors, against)
    return "\n".join(sections)


def against_sections(rows, groups, errors, against):
    """Markdown: improvements over the arms of another table1; one scratch serves all encoders."""
    other_rows, other_errors = read_rows(against / "rows.csv"), read_errors(against)
    if not other_rows:
        raise UserError(f"--against {against}: no rows.csv in it; give the --out of another table1")
    check_alike(other_rows, against / "rows.csv")
    others, notes = arms(other_rows), differences(rows + other_rows)
    sections = comparison_section(f"over {against.name}", notes, groups, errors, others, other_errors)
    if not scratch_as_jepa(groups):
        name, scratch = f"jepa over scratch of {against.name}", scratch_as_jepa(others)
        sections += comparison_section(name, notes, groups, errors, scratch, other_errors)
    return sections


def comparison_section(name, notes, groups, errors, old_groups, old_errors):
    """[Markdown]: relative improvements of the arms in `groups`, [] where none is comparable; notes: sentences."""
    lines = comparison_lines(groups, errors, old_groups, old_errors)
    if not lines:
        return []
    header = ["suite", "pack", "budget", "rates", "init", "%", "95 % over objects"]
    title = f"## Relative improvement of top-logit RMSE {name}, %\n\n"
    return [title + "".join(f"{note}\n\n" for note in notes) + markdown(header, lines)]
