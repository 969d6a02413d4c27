"""Table I of the paper, label efficiency: initialisations by budget, pack and seed, compared object by object.

Learning rates are the paper's and the best of an initialisation's own trials, which lie in a folder of their own.
Every run's best step on val is evaluated once on the test suites.
"""

from pathlib import Path

from cli.errors import refuse
from lab import by_object
from lab.by_object import arm_errors, better_cell, keep_errors, read_errors
from lab.rows import RATE_FLAGS, best_rates, check_one_setting, command_of, differences, flags_of, read_rows, write_rows
from lab.runner import plan_runs, run_all, run_first, seed_by_seed
from lab.tables import count_runs, markdown, metric_cells

SUITES = ("val", "test", "test_grasp", "test_category")
PAPER_RATES = {"--lr-backbone": "1e-5", "--lr-head": "1e-3"}  # Sec. IV-C
TRIALS = {  # the paper's six choices, a frozen backbone, and higher rates so that scratch's best is not at the edge
    "--budget": "0.1", "--init": "jepa,scratch",
    "--lr-backbone": "0,1e-5,7e-5,1e-4,3e-4,1e-3", "--lr-head": "1e-3,2e-3",
}  # fmt: skip
BUDGETS = {"A": "0.01,0.1,0.25,1", "B": "0.1,0.25,1"}  # by pack
BOTH_PACKS = "A and B"
ARM_FLAGS = ("--pack", "--budget", "--init", *RATE_FLAGS)


# ---------------------------------------------------------------- runs
def run_table1(names, given, args):
    """Run trials of rates, then all arms on every suite; -> rows."""
    path, planned = args.out / "rows.csv", plan_table1(given, rates_of_table1(given, args), args)
    check_alike([*read_rows(path), *({"command": command_of(flags)} for flags in planned)], path)
    return run_all(planned, path, args, SUITES, [keep_curve, keep_errors])


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
    path = Path(args.rates) / "rows.csv" if args.rates else args.out / "trials.csv"
    trials = run_first(plan_runs([TRIALS], shared, args.seeds[:1], args), path, args)
    best = best_rates(trials, lambda flags: flags["--init"])
    choices = {init: [PAPER_RATES, best.get(init, PAPER_RATES)] for init in inits}
    return {init: pairs[: 1 + (pairs[0] != pairs[1])] for init, pairs in choices.items()}


def plan_table1(given, rates, args):
    """The runs at `rates` (init -> choices), all of a seed before the next; --init and --pack choose among them."""
    planned = []
    for pack in given.get("--pack", "A,B").split(","):
        for init in given.get("--init", "jepa,scratch").split(","):
            for chosen in rates[init]:
                own = given | {"--pack": pack, "--init": init} | chosen
                planned += plan_runs([{"--budget": BUDGETS.get(pack, "1")}], own, args.seeds, args)
    return seed_by_seed(planned, args)


def keep_curve(out, run):
    """A finished run's validation curve into OUT/curves.csv."""
    columns = ("step", "train_loss", "val_top_logit_rmse")
    steps = read_rows(run.folder / "metrics.csv")
    curve = [{"command": run.command} | {column: row[column] for column in columns} for row in steps]
    others = [row for row in read_rows(out / "curves.csv") if row["command"] != run.command]
    write_rows(out / "curves.csv", others + curve)


# ---------------------------------------------------------------- arms
def rates_of(flags):
    return {flag: flags[flag] for flag in RATE_FLAGS}


def own_best(rows):
    """Initialisation -> the rates that the rows have besides the paper's; the paper's if those were best."""
    found = [(flags["--init"], rates_of(flags)) for flags in map(flags_of, rows)]
    return dict(sorted(found, key=lambda item: item[1] != PAPER_RATES))  # the last wins


def check_alike(rows, path):
    """Stop where rows differ in what the table does not show: an arm's mean would mix them."""
    check_one_setting(rows, (*ARM_FLAGS, "--jepa-ckpt"), path)
    for init, best in own_best(rows).items():
        of_init = [row for row in rows if flags_of(row)["--init"] == init]
        check_one_setting(of_init, ARM_FLAGS, path)
        unlike = any(rates_of(flags_of(row)) not in (PAPER_RATES, best) for row in of_init)
        refuse(unlike, f"{path}: rows of one table1 differ in the learning rates of {init}; give each its own --out")


def arms(rows):
    """Rows by (pack, budget, label of the rates, init): each pack apart, and both where both have the budget."""
    groups, best = {}, own_best(rows)
    for row in rows:
        flags = flags_of(row)
        init, rates = flags["--init"], rates_of(flags)
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


# ---------------------------------------------------------------- the table
def table1_text(rows, args):
    """Markdown: a table per suite, then relative improvements with paired intervals, over --against's arms too."""
    check_alike(rows, args.out / "rows.csv")
    groups, errors = arms(rows), read_errors(args.out)
    best = "; ".join(f"{init} {', '.join(rates.values())}" for init, rates in own_best(rows).items())
    sections = [f"Own best rates (backbone, head): {best}\n"]
    sections += [suite_section(groups, suite) for suite in SUITES]
    sections += comparison_section("jepa over scratch", [], groups, errors, scratch_as_jepa(groups), errors)
    if args.against:
        sections += against_sections(rows, groups, errors, Path(args.against))
    return "\n".join(sections)


def suite_section(groups, suite):
    """Markdown: all arms on one suite."""
    prefix = "" if suite == "val" else f"{suite}_"
    header = ["pack", "budget", "rates", "init", "runs", "top-logit RMSE (rad)", "best-of-K", "gap", "coverage@15°"]
    lines = [
        [pack, f"{budget:g}", label, init, count_runs(group), *metric_cells(group, prefix)]
        for (pack, budget, label, init), group in groups.items()
    ]
    return f"## {suite}\n\n" + markdown(header, lines)


def against_sections(rows, groups, errors, against):
    """Markdown: improvements over the arms of another table1; one scratch serves all encoders."""
    other_rows, other_errors = read_rows(against / "rows.csv"), read_errors(against)
    refuse(not other_rows, f"--against {against}: no rows.csv in it; give the --out of another table1")
    check_alike(other_rows, against / "rows.csv")
    others, unlike = arms(other_rows), differences(rows + other_rows)
    sections = comparison_section(f"over {against.name}", unlike, groups, errors, others, other_errors)
    if not scratch_as_jepa(groups):
        name, scratch = f"jepa over scratch of {against.name}", scratch_as_jepa(others)
        sections += comparison_section(name, unlike, groups, errors, scratch, other_errors)
    return sections


def comparison_section(name, unlike, groups, errors, old_groups, old_errors):
    """[Markdown]: relative improvements of the arms in `groups`, [] where none is comparable; unlike: sentences."""
    lines = []
    for suite in by_object.SUITES:
        for key, group in groups.items():
            old = arm_errors(old_errors, old_groups.get(key, []), suite)
            better = better_cell(arm_errors(errors, group, suite), old)
            if better:
                pack, budget, label, init = key
                lines.append([suite, pack, f"{budget:g}", label, init, better])
    if not lines:
        return []
    header = ["suite", "pack", "budget", "rates", "init", "% (95 % over objects and seeds)"]
    title = f"## Relative improvement of top-logit RMSE {name}, %\n\n"
    return [title + "".join(f"{note}\n\n" for note in unlike) + markdown(header, lines)]
