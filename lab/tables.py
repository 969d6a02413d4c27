"""Rows of runs as Markdown tables: one line per configuration, mean ± SD over its seeds."""

import math
import statistics

from lab.rows import METRICS, OF_VAL, TRAINING, flags_of, split_command

DIGITS = {"rmse": 4, "gap": 4, "ms_per_step": 0, "memory_mb": 0}  # of columns whose names end so; of others 3


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


def metric_cells(rows, prefix=""):
    """Four cells: top-logit RMSE, best-of-K, gap, coverage@15° of runs; diverged ones are left out."""
    return [mean_cell(rows, prefix + name) for name in METRICS[:4]]


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


# ---------------------------------------------------------------- configurations
def by_configuration(rows):
    """Rows by what their commands do not share, seeds together, and the flags that they all share as text."""
    groups = {}
    for row in rows:
        start, _ = split_command(row["command"])
        groups.setdefault((start, tuple(flags_of(row).items())), []).append(row)
    trained = [set(flags) for start, flags in groups if start == TRAINING]
    shared = set.intersection(*trained) if len(trained) > 1 else set()
    text = " ".join(f"{flag} {value}" for flag, value in flags_of(rows[0]).items() if (flag, value) in shared)
    named = {}
    for (start, flags), group in groups.items():
        own = " ".join(f"{flag} {value}" for flag, value in flags if (flag, value) not in shared)
        if start == TRAINING:
            name = f"`{own}`" if own else "these"
        else:
            name = f"({start}) `{own}`"
        named[name] = group
    return named, text


def mean_lines(rows):
    """Lines for the training mean, one per budget: what a constant prediction is off by."""
    means = set()
    for row in rows:
        if row.get("training_mean"):
            means.add((flags_of(row).get("--budget", "1"), f"{float(row['training_mean']):.4f}"))
    return [
        [f"(training mean, budget {budget})", "", mean, "", mean, "0.0000", "", ""] for budget, mean in sorted(means)
    ]


def configurations_table(rows):
    """Markdown: one line per configuration, mean ± SD (n − 1) over its seeds, all on val."""
    groups, shared = by_configuration(rows)
    header = ["flags of train.py", "seeds", "top-logit RMSE (rad)", "95 % over objects, first seed"]
    header += ["best-of-K", "gap", "coverage@15°", "s per run"]
    closed = [name for name in OF_VAL[:-1] if any(row.get(name) for row in rows)]
    header += [name.replace("_", " ") for name in closed]
    lines = [line + [""] * len(closed) for line in mean_lines(rows)]
    for name, group in groups.items():
        low, high = group[0].get("low_95"), group[0].get("high_95")
        interval = f"{float(low):.3f} to {float(high):.3f}" if low else ""
        rmse, *others = metric_cells(group)
        seconds = values_of(group, "seconds")
        time = f"{statistics.mean(seconds):.0f}" if seconds else ""
        held = [mean_cell(group, share) for share in closed]
        lines.append([name, count_runs(group), rmse, interval, *others, time, *held])
    return "\n\n".join([f"All runs: `{shared}`"] * bool(shared) + [markdown(header, lines)])


def short_table(rows):
    """The columns of `configurations_table` that fit a terminal, aligned: at most 100 characters a line."""
    columns = {"top_logit_rmse": "RMSE (rad)", "best_of_k_rmse": "best-of-K", "coverage_15": "cov@15°"}
    columns |= {"holds": "holds"}
    lines = [["", "seeds", *columns.values()]]
    lines += [[name.strip("()"), "", mean, "", "", ""] for name, _, mean, *_ in mean_lines(rows)]
    for name, group in by_configuration(rows)[0].items():
        lines.append([name.replace("`", "")[:28], str(len(group)), *(mean_cell(group, column) for column in columns)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def columns_table(rows, hidden=()):
    """Markdown: all columns of rows as they are, but for the hidden ones."""
    shown = [name for name in rows[0] if name not in hidden]
    return markdown(shown, [[rounded(row[name]) for name in shown] for row in rows])
