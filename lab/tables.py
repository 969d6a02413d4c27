"""Rows of runs as Markdown tables: one line per arm, mean ± SD over its seeds."""

import itertools
import math
import statistics
from typing import Callable, NamedTuple

from lab.by_object import better_cell
from lab.rows import DEFAULTS, EQUAL_RESULTS, METRICS, OF_VAL, TRAINING, flags_of, split_command

PREFIXES = {"val": "", "test": "test_", "test_grasp": "test_grasp_", "test_category": "test_category_"}  # of columns
COLUMNS = {"selection_gap": "gap", "coverage_15": "coverage@15°", "seconds": "s per run"}  # of every table, if any
COLUMNS |= {name: name.replace("_", " ") for name in OF_VAL if name != "grasps_closed"}
BOTH_PACKS = "A and B"
DIGITS = {"rmse": 4, "gap": 4, "seconds": 0}  # of columns whose names end so; of others 3


# ---------------------------------------------------------------- cells
def values_of(rows, column):
    """The numbers in a column, of the rows that have one."""
    return [float(row[column]) for row in rows if row.get(column)]


def mean_cell(rows, column):
    """Mean ± SD (n - 1) of a column over the runs that have a value there, the value of one, a dash for none."""
    values = values_of(rows, column)
    digits = next((digits for name, digits in DIGITS.items() if column.endswith(name)), 3)
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def count_runs(rows):
    """How many runs a line stands for, and how many of them diverged."""
    failed = sum(bool(row.get("failed")) for row in rows)
    return f"{len(rows)}" + (f" ({failed} diverged)" if failed else "")


def rounded(text):
    """A cell of a CSV for the eye: four decimals of what is not whole, other text as it is."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if value == round(value, 1) or not math.isfinite(value) else f"{value:.4f}"


def markdown(header, lines):
    """A Markdown table; header: the columns' names, lines: the cells of each line."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in row) + " |" for row in rows) + "\n"


# ---------------------------------------------------------------- arms
class Arm(NamedTuple):
    """The runs of one configuration, of all its seeds."""

    start: str  # of its command
    flags: dict
    own: dict  # those of the flags that not all arms have
    rows: list

    @property
    def name(self):
        own = as_text(self.own)
        return (f"`{own}`" if own else "these") if self.start == TRAINING else f"({self.start}) `{own}`"


def settings_of(row):
    """The flags in which the runs of one arm agree."""
    flags = {flag: value for flag, value in flags_of(row).items() if flag not in EQUAL_RESULTS}
    if flags.get("--init") == "oracle":
        flags.pop("--jepa-ckpt", None)  # each seed may have an oracle of its own
    return flags


def arms_of(rows):
    """The arms of some rows in their order; after those that differ in the pack alone both of them as one."""
    by_pack = {}  # (start, flags but --pack in any order, defaults said or not) -> pack -> rows
    for row in rows:
        start, flags = split_command(row["command"])[0], settings_of(row)
        pack = flags.pop("--pack", None)
        backbone = {"--lr-backbone": float(flags.get("--lr-backbone", DEFAULTS["--lr-backbone"]))}
        by_pack.setdefault((start, frozenset((flags | backbone).items())), {}).setdefault(pack, []).append(row)
    groups = []  # start of a command, its flags, rows
    for (start, _), packs in by_pack.items():
        groups += [(start, settings_of(group[0]), group) for group in packs.values()]
        if len(packs) > 1:
            both = list(itertools.chain(*packs.values()))
            groups.append((start, settings_of(both[0]) | {"--pack": BOTH_PACKS}, both))
    trained = [set(flags.items()) for start, flags, _ in groups if start == TRAINING]
    shared, arms = set.intersection(*trained) if len(trained) > 1 else set(), []
    for start, flags, group in groups:
        own = {flag: value for flag, value in flags.items() if (flag, value) not in shared}
        arms.append(Arm(start, flags, own, group))
    return arms


def as_text(flags):
    return " ".join(f"{flag} {value}" for flag, value in flags.items())


def alike(flags, others, but):
    """Whether two arms have the same flags, but for some."""
    return all(flag in but for flag, _ in flags.items() ^ others.items())


class Comparison(NamedTuple):
    """A column of a table: by how many % an arm is better than the last of some others that it is compared with."""

    title: str
    with_that: Callable  # (flags of an arm, of another) -> whether they are compared
    rows: list  # of the others
    errors: dict  # theirs, see `read_errors`

    def cells(self, arms, errors, suite):
        """A cell for each arm; "" where there is nothing to compare it with, or it is that."""
        others, cells = arms_of(self.rows), []
        for arm in arms:
            found = [other.rows for other in others if self.with_that(arm.flags, other.flags)]
            old = found[-1] if found and found[-1][0] is not arm.rows[0] else []
            cells.append(better_cell(arm.rows, errors, old, self.errors, suite))
        return cells


# ---------------------------------------------------------------- tables of arms
def mean_lines(rows):
    """Lines for the training mean, one per budget: what a constant prediction is off by."""
    found = [row for row in rows if row.get("training_mean")]
    means = {(flags_of(row).get("--budget", "1"), f"{float(row['training_mean']):.4f}") for row in found}
    return [[f"(training mean, budget {budget})", "", mean, "", mean, "0.0000"] for budget, mean in sorted(means)]


def suite_table(rows, suite, errors, comparisons):
    """Markdown: one line per arm, mean ± SD (n − 1) over its runs; of the columns those that have values."""
    arms, prefix = arms_of(rows), PREFIXES[suite]
    columns = {prefix + name: title for name, title in COLUMNS.items() if values_of(rows, prefix + name)}
    better = {comparison.title: comparison.cells(arms, errors, suite) for comparison in comparisons}
    better = {title: cells for title, cells in better.items() if any(cells)}
    header = ["flags of train.py", "seeds", "top-logit RMSE (rad)", "95 % over objects, first seed", "best-of-K"]
    header += [*columns.values(), *better]
    lines = [line + [""] * (len(header) - len(line)) for line in mean_lines(rows)] if suite == "val" else []
    for i, arm in enumerate(arms):
        low, high = (arm.rows[0].get(f"{prefix}{end}_95") for end in ("low", "high"))
        interval = f"{float(low):.3f} to {float(high):.3f}" if low else ""
        rmse, best = (mean_cell(arm.rows, prefix + name) for name in METRICS[:2])
        cells = [mean_cell(arm.rows, name) for name in columns]
        gains = [found[i] for found in better.values()]
        lines.append([arm.name, count_runs(arm.rows), rmse, interval, best, *cells, *gains])
    return markdown(header, lines)


def arms_table(rows, errors=None, comparisons=()):
    """Markdown: a table of the arms for each suite that rows have values of; errors: `read_errors` of these rows."""
    first = arms_of(rows)[0]
    shared = as_text({flag: value for flag, value in first.flags.items() if flag not in first.own})
    sections = [f"All runs: `{shared}`\n"] * bool(shared)
    suites = [suite for suite, prefix in PREFIXES.items() if values_of(rows, prefix + METRICS[0])]
    for suite in suites:
        sections += [f"## {suite}\n"] * (len(suites) > 1) + [suite_table(rows, suite, errors, comparisons)]
    return "\n".join(sections)


def short_table(rows):
    """The columns of `arms_table` that fit a terminal, aligned; a name too long for its column has its own line."""
    columns = {"top_logit_rmse": "RMSE (rad)", "best_of_k_rmse": "best-of-K", "coverage_15": "cov@15°"}
    columns |= {"holds": "holds"}
    lines = [["", "seeds", *columns.values()]]
    lines += [[name.strip("()"), "", mean, "", "", ""] for name, _, mean, *_ in mean_lines(rows)]
    for arm in arms_of(rows):
        cells = [mean_cell(arm.rows, column) for column in columns]
        lines.append([arm.name.replace("`", ""), str(len(arm.rows)), *cells])
    names, *widths = (max(map(len, column)) for column in zip(*lines))
    names = min(names, 28)  # and so at most 100 characters a line
    texts = []
    for name, *cells in lines:
        start = name.ljust(names) if len(name) <= names else f"{name}\n{'':{names}}"
        texts.append("  ".join([start, *map(str.ljust, cells, widths)]).rstrip())
    return "\n".join(texts)


def columns_table(rows):
    """Markdown: all columns of rows as they are."""
    return markdown(rows[0], [map(rounded, row.values()) for row in rows])
