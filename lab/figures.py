"""Figures from rows: configurations side by side, and Table I against the budget."""

import math
import statistics
import textwrap

from matplotlib.figure import Figure

from lab.table1 import BOTH_PACKS
from lab.tables import by_configuration
from plumbing.common import atomic


def mean_and_error(values):
    """Mean, nan for no values, and standard deviation (n - 1), 0 for one value."""
    mean = statistics.mean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0


def save_figure(figure, path):
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


# ---------------------------------------------------------------- any grid


def draw_configurations(rows, path):
    """Top-logit and best-of-K RMSE of every configuration, mean ± SD over seeds."""
    groups, shared = by_configuration(rows)
    figure = Figure(figsize=(9, 2 + 0.4 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for name, marker, color in (("top_logit_rmse", "o", "C0"), ("best_of_k_rmse", "s", "C2")):
        values = [[float(row[name]) for row in group if row[name] != ""] for group in groups.values()]
        means, errors = zip(*map(mean_and_error, values))
        label = name.replace("_", " ")
        axes.errorbar(means, range(len(groups)), xerr=errors, fmt=marker, color=color, label=label)
    labels = [textwrap.fill(name.replace("`", ""), 55, break_on_hyphens=False) for name in groups]
    axes.set_yticks(range(len(groups)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="RMSE on val (rad), mean and SD over seeds")
    axes.grid(axis="x", alpha=0.3)
    figure.suptitle("\n".join(textwrap.wrap(shared, 120)), fontsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save_figure(figure, path)


# ---------------------------------------------------------------- Table I


def arm_style(label, init):
    """Line style of one arm of table1."""
    return {
        "color": "C0" if init == "jepa" else "C1",
        "linestyle": "--" if label == "paper's" else "-",
        "label": f"{init}, {label} rates",
    }


def draw_table1(groups, curves, folder):
    """The figures of table1 from its arms and the rows of its validation curves."""
    rmse = [
        ("top_logit_rmse", "val top-logit RMSE (rad)"),
        ("test_top_logit_rmse", "test top-logit RMSE (rad)"),
    ]
    others = [
        ("test_coverage_15", "test coverage@15°"),
        ("test_selection_gap", "test selection gap (rad)"),
    ]
    draw_budgets(groups, rmse, folder / "efficiency.png")
    draw_budgets(groups, others, folder / "coverage_gap.png")
    draw_curves(groups, curves, folder / "curves.png")


def draw_budgets(groups, columns, path):
    """A row of panels per pack, a panel per (column, title): against the budget, mean ± SD over seeds."""
    packs = sorted({pack for pack, *_ in groups} - {BOTH_PACKS})
    ticks = sorted({100 * budget for _, budget, *_ in groups})
    figure = Figure(figsize=(5.5 * len(columns), 3.8 * len(packs)), layout="constrained")
    panels = figure.subplots(len(packs), len(columns), squeeze=False)
    for pack, row_of_panels in zip(packs, panels):
        for (column, title), axes in zip(columns, row_of_panels):
            for label, init in sorted({key[2:] for key in groups}):
                points = budget_points(groups, pack, label, init, column)
                shares, means, errors = zip(*points) if points else ((), (), ())
                style = arm_style(label, init)
                axes.errorbar(shares, means, yerr=errors, capsize=3, marker="o", markersize=4, **style)
            axes.set(xscale="log", xlabel="share of the training objects (%)", ylabel=title, title=f"pack {pack}")
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    save_figure(figure, path)


def budget_points(groups, pack, label, init, column):
    """[(budget in %, mean, SD)] of an arm, by budget, where it has any values."""
    points = []
    for key, group in groups.items():
        values = [float(row[column]) for row in group if row.get(column)]
        if values and (key[0], *key[2:]) == (pack, label, init):
            points.append((100 * key[1], *mean_and_error(values)))
    return sorted(points)


def draw_curves(groups, curves, path):
    """Validation RMSE against the step, a panel per pack and budget, a line per run: have they flattened?"""
    points = {}
    for row in curves:
        points.setdefault(row["command"], []).append((int(row["step"]), float(row["val_top_logit_rmse"])))
    packs = sorted({pack for pack, *_ in groups} - {BOTH_PACKS})
    budgets = sorted({budget for _, budget, *_ in groups})
    figure = Figure(figsize=(4 * len(budgets), 3.4 * len(packs)), layout="constrained")
    panels = figure.subplots(len(packs), len(budgets), squeeze=False, sharex=True, sharey=True)
    lines = {}  # label -> line, for the legend
    for (pack, budget, label, init), group in groups.items():
        if pack == BOTH_PACKS:
            continue
        axes = panels[packs.index(pack), budgets.index(budget)]
        for row in group:
            steps, values = zip(*points.get(row["command"], [(0, math.nan)]))
            (line,) = axes.plot(steps, values, linewidth=0.9, **arm_style(label, init))
            lines[line.get_label()] = line
        axes.set(title=f"pack {pack}, {100 * budget:g} %", xlabel="step", ylabel="val top-logit RMSE (rad)")
    for axes in panels.flat:
        axes.set_visible(axes.has_data())
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=4)
    save_figure(figure, path)
