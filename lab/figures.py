"""Figures from rows: configurations side by side, a number on its axis, and Table I against the budget."""

import math
import statistics
import textwrap

from matplotlib.figure import Figure

from files.writing import atomic
from lab.control_table import ARMS, grouped
from lab.published import PAPER, PUBLISHED_STEPS, improvements
from lab.rows import DEFAULTS, differences, flags_of, is_training, lengths
from lab.table1 import BOTH_PACKS
from lab.tables import by_configuration

LOOKS = (  # column, label, marker and its size, colour; the smaller one shows on the larger where both are equal
    ("top_logit_rmse", "top-logit RMSE", "o", 8, "C0"),
    ("best_of_k_rmse", "best-of-K RMSE", "s", 4, "C2"),
)
HOLD_LOOKS = (  # the same of the second panel
    ("holds", "top logit holds", "o", 8, "C0"),
    ("holds_best_of_k", "best of K holds", "s", 4, "C2"),
    ("holds_average", "average of K holds", "D", 4, "C3"),
)
MEAN_STYLE = {"color": "0.5", "linestyle": ":", "label": "training mean"}
NUMBERS = {  # kind of sweep -> the flag on its axis, a factor, the axis's label
    "k": ("--k", 1, "hypotheses K"),
    "budget": ("--budget", 100, "share of the training objects (%)"),
}


def mean_and_error(values):
    """Mean, nan for no values, and standard deviation (n - 1), 0 for one value."""
    mean = statistics.mean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else 0


def values_of(rows, column):
    """The numbers in a column, of the rows that have one."""
    return [float(row[column]) for row in rows if row.get(column)]


def title_of(shared, rows):
    """What is the same for all rows, and what is not; in lines."""
    lines = [f"all runs: {shared}"] if shared else []
    return "\n".join(textwrap.fill(line, 120, break_on_hyphens=False) for line in lines + differences(rows))


def save_figure(figure, path):
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


# ---------------------------------------------------------------- any grid


def draw_configurations(rows, path):
    """Top-logit and best-of-K RMSE of every configuration, mean ± SD over seeds, the training mean as a line.

    Beside it, where rows have them, the shares of grasps that hold.
    """
    groups, shared = by_configuration(rows)
    panels = 2 if values_of(rows, "holds") else 1
    figure = Figure(figsize=(5 + 4 * panels, 2.2 + 0.4 * len(groups)), layout="constrained")
    left, *right = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    seeds = ", mean and SD over seeds" if any(len(group) > 1 for group in groups.values()) else ""
    draw_column(left, groups, LOOKS, "RMSE on val (rad)" + seeds)
    for axes in right:
        draw_column(axes, groups, HOLD_LOOKS, "share of val grasps that hold once closed" + seeds)
        axes.set_xlim(left=0)
    for _, mean in training_means(rows):
        left.axvline(mean, **MEAN_STYLE)
    labels = [textwrap.fill(name, 60, break_on_hyphens=False) for name in short_names(groups)]
    left.set_yticks(range(len(groups)), labels)
    left.set_ylim(len(groups) - 0.5, -0.5)  # the first on top
    figure.suptitle(title_of(shared, rows), fontsize=8)
    add_legend(figure)
    save_figure(figure, path)


def draw_column(axes, groups, looks, label):
    """A panel of `draw_configurations`: for every look its column of the rows, a place for every configuration."""
    for column, name, marker, size, color in looks:
        means, errors = zip(*(mean_and_error(values_of(group, column)) for group in groups.values()))
        axes.errorbar(means, range(len(groups)), xerr=errors, fmt=marker, markersize=size, color=color, label=name)
    axes.set(xlabel=label)
    axes.grid(axis="x", alpha=0.3)


def short_names(groups):
    """Names of configurations for an axis: "--init jepa --loss wta" -> "init jepa, loss wta"."""
    return [name.replace("`", "").replace(") --", ") ").replace(" --", ", ").removeprefix("--") for name in groups]


def training_means(rows):
    """[(budget, RMSE of the training mean)]: one for each budget, and for each dataset with another mean."""
    budgets = ((flags_of(row).get("--budget", DEFAULTS["--budget"]), row.get("training_mean")) for row in rows)
    return sorted({(float(budget), round(float(mean), 4)) for budget, mean in budgets if mean})


def add_legend(figure):
    """A legend below all panels, each label once, in as many columns as fit."""
    once = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        once |= dict(zip(labels, handles))
    letters = 11 * figure.get_figwidth()
    columns = int(letters / (8 + max(map(len, once))))
    figure.legend(once.values(), once, loc="outside lower center", ncols=max(1, columns))


def draw_numbers(kind, rows, path):
    """RMSE and best-of-K against the number that a sweep varies, a line per configuration besides it.

    Beside it, where rows have them, the shares of grasps that hold.
    """
    flag, factor, name = NUMBERS[kind]
    rows = [row for row in rows if is_training(row)]
    groups = by_number(rows, flag, factor)
    shared = set.intersection(*map(set, groups))
    panels = [(LOOKS, "RMSE on val (rad)")]
    if values_of(rows, "holds"):
        panels.append((HOLD_LOOKS, "share of val grasps that hold once closed"))
    figure = Figure(figsize=(3 + 5 * len(panels), 5), layout="constrained")
    ticks = sorted({number for numbers in groups.values() for number in numbers})
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (looks, label) in zip(all_axes, panels):
        for i, (flags, numbers) in enumerate(groups.items()):
            own = ", ".join(f"{other[2:]} {value}" for other, value in flags if (other, value) not in shared)
            draw_lines(axes, numbers, own, looks, color=f"C{i}" if len(groups) > 1 else None)
        axes.set(xlabel=f"{name}, logarithmic", ylabel=label)
        scale_by_ticks(axes, ticks)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    draw_mean_line(all_axes[0], rows, flag, factor)
    text = " ".join(f"{other} {value}" for other, value in next(iter(groups)) if (other, value) in shared)
    figure.suptitle(title_of(text, rows), fontsize=8)
    add_legend(figure)
    save_figure(figure, path)


def by_number(rows, flag, factor):
    """The flags besides `flag` -> its value, times the factor -> rows."""
    groups = {}
    for row in rows:
        flags = flags_of(row)
        number = factor * float(flags.pop(flag, DEFAULTS[flag]))
        groups.setdefault(tuple(flags.items()), {}).setdefault(number, []).append(row)
    return groups


def draw_lines(axes, numbers, name, looks, color):
    """The columns of one configuration, number -> rows; in one colour if that is given, else each in its own."""
    for column, label, marker, size, own_color in looks:
        points = [(number, *mean_and_error(values_of(group, column))) for number, group in sorted(numbers.items())]
        points = [point for point in points if not math.isnan(point[1])]  # of one hypothesis there is no average
        if not points:
            continue
        x, means, errors = zip(*points)
        style = {"color": color or own_color, "linestyle": "-" if column == looks[0][0] else "--"}
        style |= {"marker": marker, "markersize": size, "label": f"{label}, {name}" if name else label}
        axes.errorbar(x, means, yerr=errors, capsize=3, **style)


def scale_by_ticks(axes, ticks):
    """A logarithmic x axis with these ticks alone, which are sorted."""
    axes.set(xscale="log", xlim=(ticks[0] / 1.2, ticks[-1] * 1.2))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def draw_mean_line(axes, rows, flag, factor):
    """The training mean: against the budget at each budget, against another number as a level line."""
    means = training_means(rows)
    if flag == "--budget" and len(means) > 1:
        axes.plot([factor * budget for budget, _ in means], [mean for _, mean in means], **MEAN_STYLE)
        return
    for _, mean in means:
        axes.axhline(mean, **MEAN_STYLE)


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
    draw_budgets(groups, rmse, folder / "efficiency.png", sharey="all")
    draw_budgets(groups, others, folder / "coverage_gap.png", sharey="col")
    draw_curves(groups, curves, folder / "curves.png")


def draw_budgets(groups, columns, path, sharey):
    """A row of panels per pack, a panel per (column, title): against the budget, mean ± SD over seeds."""
    packs = sorted({pack for pack, *_ in groups} - {BOTH_PACKS})
    ticks = sorted({100 * budget for _, budget, *_ in groups})
    figure = Figure(figsize=(5.5 * len(columns), 3.8 * len(packs)), layout="constrained")
    panels = figure.subplots(len(packs), len(columns), squeeze=False, sharex=True, sharey=sharey)
    for pack, row_of_panels in zip(packs, panels):
        for (column, title), axes in zip(columns, row_of_panels):
            for label, init in sorted({key[2:] for key in groups}):
                points = budget_points(groups, pack, label, init, column)
                shares, means, errors = zip(*points) if points else ((), (), ())
                style = arm_style(label, init)
                axes.errorbar(shares, means, yerr=errors, capsize=3, marker="o", markersize=4, **style)
            axes.set(xlabel="share of the training objects (%)", ylabel=title, title=f"pack {pack}")
            scale_by_ticks(axes, ticks)
            axes.grid(alpha=0.3)
            axes.tick_params(labelbottom=True, labelleft=True)
    figure.suptitle(title_of("", all_rows(groups)), fontsize=8)
    add_legend(figure)
    save_figure(figure, path)


def all_rows(groups):
    """The rows of all arms, each once."""
    return list({row["command"]: row for group in groups.values() for row in group}.values())


def budget_points(groups, pack, label, init, column):
    """[(budget in %, mean, SD)] of an arm, by budget, where it has any values."""
    points = []
    for key, group in groups.items():
        values = values_of(group, column)
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
    for (pack, budget, label, init), group in groups.items():
        if pack == BOTH_PACKS:
            continue
        axes = panels[packs.index(pack), budgets.index(budget)]
        for row in group:
            steps, values = zip(*points.get(row["command"], [(0, math.nan)]))
            axes.plot(steps, values, linewidth=0.9, **arm_style(label, init))
        axes.set(title=f"pack {pack}, {100 * budget:g} %", xlabel="step", ylabel="val top-logit RMSE (rad)")
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True, labelleft=True)
    for axes in panels.flat:
        axes.set_visible(axes.has_data())
    figure.suptitle(title_of("", all_rows(groups)), fontsize=8)
    add_legend(figure)
    save_figure(figure, path)


# ---------------------------------------------------------------- controls


def draw_controls(rows, path):
    """Top-logit RMSE on test of every arm, from knowing no shape to knowing all labels: a panel per K, by budget."""
    groups = grouped(rows)
    counts, budgets = sorted({-k for _, k, _ in groups}, reverse=True), sorted({budget for budget, *_ in groups})
    shown = [arm for arm in ARMS if any(arm == key[2] for key in groups)]
    figure = Figure(figsize=(1 + 5 * len(counts), 4.5), layout="constrained")
    for count, axes in zip(counts, figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]):
        for i, budget in enumerate(budgets):
            found = {arm: groups.get((budget, -count, arm), []) for arm in shown}
            means, errors = zip(*(mean_and_error(values_of(group, "test_top_logit_rmse")) for group in found.values()))
            places = [place + 0.15 * (i - (len(budgets) - 1) / 2) for place in range(len(shown))]
            axes.errorbar(places, means, yerr=errors, fmt="o", capsize=3, label=f"{100 * budget:g} % of the labels")
        axes.set_xticks(range(len(shown)), shown)
        axes.set(title=f"K = {count}", ylabel="test top-logit RMSE (rad), mean and SD over seeds")
        axes.grid(axis="y", alpha=0.3)
    common = set.intersection(*(set(flags_of(row).items()) for row in rows))
    shared = " ".join(f"{flag} {value}" for flag, value in flags_of(rows[0]).items() if (flag, value) in common)
    figure.suptitle(title_of(shared, rows), fontsize=8)
    add_legend(figure)
    save_figure(figure, path)


# ---------------------------------------------------------------- the published protocol


def draw_published(rows, path):
    """Relative improvements of every draw, by budget: scratch against itself, jepa over scratch, and Table I."""
    looks = {
        "scratch again": ("scratch against itself, other seed", "0.5", -0.17),
        "jepa": ("jepa over scratch", "C0", 0.17),
    }
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    budgets = sorted({float(row["budget"]) for row in rows})
    for arm, (label, color, shift) in looks.items():
        for budget, values in improvements(rows, arm, "scratch").items():
            x = budgets.index(budget) + shift
            places = [x + 0.16 * (i / max(1, len(values) - 1) - 0.5) for i in range(len(values))]  # side by side
            axes.plot(places, values, "o", color=color, alpha=0.5, label=label)
            axes.plot([x - 0.1, x + 0.1], [statistics.mean(values)] * 2, color=color, linewidth=3)
    axes.plot(range(len(budgets)), [PAPER[budget] for budget in budgets], "*", markersize=14, color="C3", label="paper")
    axes.axhline(0, color="black", linewidth=0.8)
    names = {
        float(row["budget"]): f"{100 * float(row['budget']):g} %\n{row['val_objects']} objects validate" for row in rows
    }
    axes.set_xticks(range(len(budgets)), [names[budget] for budget in budgets])
    axes.set(ylabel="relative improvement (%), bars: means")
    title = " ".join(lengths(rows)).replace("**", "")
    axes.set_title(f"A point per draw. {title} The paper: {PUBLISHED_STEPS:,} steps on its own data.", fontsize="small")
    axes.grid(axis="y", alpha=0.3)
    add_legend(figure)
    save_figure(figure, path)
