"""Table I of the paper, label efficiency: initialisations by budget, pack and seed, compared object by object.

Learning rates are the paper's and the best of an initialisation's own trials, whose rows lie in OUT/trials.csv.
Every run's best step on val is evaluated once on the test suites.
"""

import itertools
from pathlib import Path

from cli.errors import refuse
from lab.by_object import keep_errors, read_errors
from lab.rows import RATE_FLAGS, command_of, differences, read_rows, write_rows
from lab.runner import plan_runs, run_all
from lab.tables import PREFIXES, Comparison, alike, arms_table

PAPER_RATES = {"--lr-backbone": "1e-5", "--lr-head": "1e-3"}  # Sec. IV-C
TRIALS = {  # the paper's six choices, a frozen backbone, and higher rates so that scratch's best is not at the edge
    "--budget": "0.1", "--init": "jepa,scratch",
    "--lr-backbone": "0,1e-5,7e-5,1e-4,3e-4,1e-3", "--lr-head": "1e-3,2e-3",
}  # fmt: skip
BUDGETS = {"A": "0.01,0.1,0.25,1", "B": "0.1,0.25,1"}  # by pack


# ---------------------------------------------------------------- runs
def run_table1(names, given, args):
    """Run trials of rates, then all arms on every suite; -> rows."""
    rates, planned = rates_of_table1(given, args), []
    for pack, init in itertools.product(given.get("--pack", "A,B").split(","), rates):
        for chosen in rates[init]:
            own = given | {"--pack": pack, "--init": init} | chosen
            planned += plan_runs({"--budget": BUDGETS.get(pack, "1")}, own, args.seeds, args)
    return run_all(planned, args.out / "rows.csv", args, PREFIXES, [keep_curve, keep_errors])


def rates_of_table1(given, args):
    """Initialisation -> its choices of rates: the given one, or the paper's and the best of its trials.

    The trials run here.
    """
    inits = given.get("--init", "jepa,scratch").split(",")
    fixed = {flag: given[flag] for flag in RATE_FLAGS if flag in given}
    if fixed:
        whole = len(fixed) == 2 and "," not in "".join(fixed.values())
        refuse(not whole, "table1 takes one --lr-backbone and one --lr-head, or neither and runs its trials")
        return {init: [fixed] for init in inits}
    shared = {flag: value for flag, value in given.items() if flag not in ("--budget", "--pack")}
    trials, best = plan_runs(TRIALS, shared, args.seeds[:1], args), {}
    found = {row["command"]: row["top_logit_rmse"] for row in run_all(trials, args.out / "trials.csv", args)}
    finished = [flags for flags in trials if found[command_of(flags)]]
    for flags in sorted(finished, key=lambda flags: -float(found[command_of(flags)])):
        best[flags["--init"]] = {flag: flags[flag] for flag in RATE_FLAGS}  # the last is the best
    return {init: [PAPER_RATES, best.get(init, PAPER_RATES)] for init in inits}  # what is planned twice runs once


def keep_curve(out, run, predictions):
    """A finished run's validation curve into OUT/curves.csv."""
    columns = ("step", "train_loss", "val_top_logit_rmse")
    steps = read_rows(run.folder / "metrics.csv")
    curve = [{"command": run.command} | {column: row[column] for column in columns} for row in steps]
    others = [row for row in read_rows(out / "curves.csv") if row["command"] != run.command]
    write_rows(out / "curves.csv", others + curve)


# ---------------------------------------------------------------- the table
def at_papers_rates(flags):
    return all(flags.get(flag) == rate for flag, rate in PAPER_RATES.items())


def are_fair(flags, other):
    """Whether an arm at the paper's rates is compared at those; one at its own comes last, and so before them."""
    return at_papers_rates(other) or not at_papers_rates(flags)


def with_scratch(flags, other):
    same = alike(flags, other, ("--init", "--jepa-ckpt", *RATE_FLAGS))
    return same and other["--init"] == "scratch" and are_fair(flags, other)


def with_its_like(flags, other):
    """Two tables may differ in anything but what Table I has."""
    same = all(flags[flag] == other.get(flag) for flag in ("--pack", "--budget", "--init"))
    return same and are_fair(flags, other)


def table1_text(rows, args):
    """Markdown: all arms on every suite, by how much they are better than scratch, and than --against's arms."""
    errors, notes = read_errors(args.out), []
    comparisons = [Comparison("better than scratch, %", with_scratch, rows, errors)]
    if args.against:
        folder = Path(args.against)
        others = read_rows(folder / "rows.csv")
        refuse(not others, f"--against {folder}: no rows.csv in it; give the --out of another table1")
        comparisons.append(Comparison(f"better than {folder.name}, %", with_its_like, others, read_errors(folder)))
        notes = [f"With {folder.name}: {note}\n\n" for note in differences(rows + others)]
    return "".join(notes) + arms_table(rows, errors, comparisons)
