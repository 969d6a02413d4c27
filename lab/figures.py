"""Figures from rows, of two kinds: configurations side by side, and lines against a number."""

import itertools
import statistics
import textwrap

from files.writing import atomic
from lab.rows import DEFAULTS, RATE_FLAGS, TRAINING, differences, read_rows
from lab.table1 import at_papers_rates
from lab.tables import BOTH_PACKS, PREFIXES, arms_of, values_of

LOOKS = {  # label of a panel -> column, label, marker and its size, colour; the smaller one shows on the larger
    "RMSE on val (rad)": (
        ("top_logit_rmse", "top logit", "o", 8, "C0"),
        ("best_of_k_rmse", "best of K", "s", 4, "C2"),
    ),
    "share of val grasps that hold once closed": (
        ("holds", "top logit", "o", 8, "C0"),
        ("holds_best_of_k", "best of K", "s", 4, "C2"),
        ("holds_average", "average of K", "D", 4, "C3"),
    ),
}
OF_PANELS = ("--pack", "--budget")  # of curves: a panel for each


# ---------------------------------------------------------------- any figure
def new_figure(rows, columns, width, height, **shared):
    """A figure and its axes (rows, columns)."""
    from matplotlib.figure import Figure  # here: no run needs it

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def mean_and_deviation(values):
    """Numbers that have values, ascending, the means there, and SD (n - 1), or None where all are single."""
    found = sorted((number, some) for number, some in values.items() if some)
    deviations = [statistics.stdev(some) if len(some) > 1 else 0 for _, some in found]
    means = [statistics.mean(some) for _, some in found]
    return [number for number, _ in found], means, deviations if any(deviations) else None


def save(figure, path, title):
    """Write a figure as PNG, with its title and below all panels a legend in which each label stands once."""
    once = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        once |= dict(zip(labels, handles))
    if once:
        columns = int(11 * figure.get_figwidth() / (8 + max(map(len, once))))  # 11 letters to the inch
        figure.legend(once.values(), once, loc="outside lower center", ncols=max(1, columns))
    figure.suptitle("\n".join(textwrap.fill(line, 120) for line in title.splitlines()), fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


# ---------------------------------------------------------------- any grid
def draw_grid(rows, args):
    """RMSE, and where rows have them the shares of grasps that hold, into OUT/figure.png; curves into curves.png.

    A line for each arm: mean ± SD (n - 1) of each column.
    """
    arms, title = arms_of(rows), "\n".join(differences(rows))
    panels = {label: looks for label, looks in LOOKS.items() if "RMSE" in label or values_of(rows, looks[0][0])}
    figure, (row,) = new_figure(1, len(panels), 5 + 4 * len(panels), 2.2 + 0.4 * len(arms), sharey=True)
    for axes, (label, looks) in zip(row, panels.items()):
        for column, name, marker, size, color in looks:
            found = {place: values_of(arm.rows, column) for place, arm in enumerate(arms)}
            places, means, deviations = mean_and_deviation(found)
            style = {"label": name, "marker": marker, "markersize": size, "color": color, "linestyle": ""}
            axes.errorbar(means, places, xerr=deviations, capsize=3, **style)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    for mean in sorted({round(mean, 4) for mean in values_of(rows, "training_mean")}):
        row[0].axvline(mean, color="0.5", linestyle=":", label="training mean")
    for axes in row[1:]:  # of shares
        axes.set_xlim(left=0)
    row[0].set_yticks(range(len(arms)), [textwrap.fill(words_of(arm), 60, break_on_hyphens=False) for arm in arms])
    row[0].set_ylim(len(arms) - 0.5, -0.5)  # the first on top
    save(figure, args.out / "figure.png", title)
    draw_curves(rows, args.out, title, grid_style)


def words_of(arm, told=()):
    """An arm in a figure: "init jepa, loss wta", without flags that are told elsewhere."""
    start = f"({arm.start}) " * (arm.start != TRAINING)
    return start + ", ".join(f"{flag[2:]} {value}" for flag, value in arm.own.items() if flag not in told)


def curve_name(arm):
    """An arm where panels tell pack and budget: the default rate counts as not given, as in `arms_of`."""
    rate = float(arm.flags.get("--lr-backbone", "nan"))
    return words_of(arm, (*OF_PANELS, *["--lr-backbone"] * (rate == float(DEFAULTS["--lr-backbone"]))))


def grid_style(arm, number):
    """How the lines of an arm of any grid are drawn: ten colours, then the same dashed and dotted."""
    return {"label": curve_name(arm), "color": f"C{number}", "linestyle": ("-", "--", ":")[number // 10 % 3]}


# ---------------------------------------------------------------- lines
def draw_lines(panels, label, path, title, ticks=()):
    """Lines against a number, their mean ± SD (n - 1), into panels that share their axes.

    panels: (row, column) -> suite, title, lines; a line: number -> values, and its style. ticks: of a logarithmic axis
    of numbers, sorted; none: a plain axis.
    """
    rows, columns = (list(dict.fromkeys(place[i] for place in panels)) for i in (0, 1))
    shape = len(rows), len(columns)
    figure, all_axes = new_figure(*shape, 1 + 5 * shape[1], 1 + 3.5 * shape[0], sharex=True, sharey=True)
    for place, axes in zip(itertools.product(rows, columns), all_axes.flat):
        axes.set_visible(place in panels)
        suite, of_panel, lines = panels.get(place, ("", "", ()))
        for values, style in lines:
            numbers, means, deviations = mean_and_deviation(values)
            axes.errorbar(numbers, means, yerr=deviations, capsize=3, **style)
        axes.set(xlabel=label, ylabel=f"{suite} top-logit RMSE (rad)", title=of_panel)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True, labelleft=True)
        if ticks:
            axes.set(xscale="log", xlim=(ticks[0] / 1.2, ticks[-1] * 1.2))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    save(figure, path, title)


def draw_curves(rows, out, title, style_of):
    """Validation RMSE against the step, mean ± SD over seeds, into OUT/curves.png: has it flattened?

    A panel for each pack and budget; style_of(arm, its number): how its lines are drawn.
    """
    curves, lines, numbers = {}, {}, {}  # command -> step -> RMSE; pack, budget -> lines; words -> number
    first = {"jepa": 0, "scratch": 1}  # the same two colours in every figure
    for row in read_rows(out / "curves.csv"):
        curves.setdefault(row["command"], {})[int(row["step"])] = float(row["val_top_logit_rmse"])
    for arm in arms_of(rows):
        pack, budget = (arm.flags.get(flag, DEFAULTS[flag]) for flag in OF_PANELS)
        words = curve_name(arm)
        if words not in numbers:
            numbers[words] = first.pop(arm.flags.get("--init"), 2 + len(numbers))
        style = style_of(arm, numbers[words]) | {"linewidth": 0.9}
        found = [curves[row["command"]] for row in arm.rows if row["command"] in curves]
        if found and pack != BOTH_PACKS:
            values = {step: [curve[step] for curve in found if step in curve] for step in set().union(*found)}
            lines.setdefault((float(budget), pack), []).append((values, style))
    panels = {}
    for budget, pack in sorted(lines):
        panels[pack, budget] = "val", f"pack {pack}, {100 * budget:g} %", lines[budget, pack]
    if panels:
        draw_lines(panels, "step", out / "curves.png", title)


# ---------------------------------------------------------------- Table I
def table1_style(arm, number=0):
    """How one arm of table1 is drawn."""
    init, *rates = (arm.flags[flag] for flag in ("--init", *RATE_FLAGS))
    told = ("--pack", "--budget", "--init", *RATE_FLAGS)
    others = {flag: value for flag, value in arm.flags.items() if flag in ("--pool", "--loss")} | arm.own
    words = [f"{flag[2:]} {value}" for flag, value in others.items() if flag not in told]
    papers = at_papers_rates(arm.flags)
    return {
        "color": "C0" if init == "jepa" else "C1",
        "linestyle": "--" if papers else "-",
        "label": ", ".join([init, "the paper's " * papers + "rates " + " and ".join(rates), *words]),
    }


def draw_table1(rows, args):
    """RMSE on val and test against the budget, a row of panels per pack; and every run's validation curve."""
    arms, title = [arm for arm in arms_of(rows) if arm.flags["--pack"] != BOTH_PACKS], "\n".join(differences(rows))
    panels = {}
    for pack, suite in itertools.product(sorted({arm.flags["--pack"] for arm in arms}), ("val", "test")):
        lines = {}  # label -> line
        for arm in arms:
            if arm.flags["--pack"] == pack:
                style = table1_style(arm) | {"marker": "o", "markersize": 4}
                values, _ = lines.setdefault(style["label"], ({}, style))
                values[100 * float(arm.flags["--budget"])] = values_of(arm.rows, PREFIXES[suite] + "top_logit_rmse")
        panels[pack, suite] = suite, f"{suite}, pack {pack}: mean and SD over seeds", list(lines.values())
    ticks = sorted({100 * float(arm.flags["--budget"]) for arm in arms})
    draw_lines(panels, "share of the training objects (%)", args.out / "efficiency.png", title, ticks)
    draw_curves(rows, args.out, title, table1_style)
