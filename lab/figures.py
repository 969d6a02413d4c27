"""Figures from rows, of two kinds: configurations side by side, and lines against a number."""

import statistics
import textwrap
from typing import NamedTuple

from files.writing import atomic
from lab import published
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


class Series(NamedTuple):
    """Values at places, which are names of configurations or numbers, and how they are drawn."""

    values: dict  # place -> list of numbers, one per run
    style: dict


class Panel(NamedTuple):
    """One pair of axes."""

    series: list
    label: str  # of the axis of values
    title: str = ""
    means: tuple = ()  # levels of the training mean


# ---------------------------------------------------------------- the two kinds
def draw_places(panels, places, path, title=""):
    """Panels side by side, a line for each place: mean ± SD (n - 1) of each series, and values if many."""
    width, height = 5 + 4 * len(panels), 2.2 + 0.4 * len(places)
    figure, (row,) = new_figure(1, len(panels), width, height, sharey=True)
    for axes, panel in zip(row, panels):
        for series in panel.series:
            color = series.style["color"]
            numbered = {places.index(place): some for place, some in series.values.items()}
            at, means, deviations = mean_and_deviation(numbered)
            axes.errorbar(means, at, xerr=deviations, capsize=3, linestyle="", **series.style)
            for place, some in series.values.items():
                if len(some) > 5:
                    axes.plot(some, [places.index(place)] * len(some), ".", color=color, alpha=0.4)
        for mean in panel.means:
            axes.axvline(mean, color="0.5", linestyle=":", label="training mean")
        axes.set_xlabel(panel.label)
        axes.grid(axis="x", alpha=0.3)
    for axes in row[1:]:  # of shares
        axes.set_xlim(left=0)
    row[0].set_yticks(range(len(places)), [textwrap.fill(place, 60, break_on_hyphens=False) for place in places])
    row[0].set_ylim(len(places) - 0.5, -0.5)  # the first on top
    save(figure, path, title)


def draw_lines(rows_of_panels, label, path, title="", ticks=()):
    """Rows of panels (None: nothing) against a number: mean ± SD (n - 1) of every series over its axis.

    ticks: of a logarithmic axis of numbers, sorted; none: a plain axis.
    """
    shape = len(rows_of_panels), len(rows_of_panels[0])
    figure, all_axes = new_figure(*shape, 1 + 5 * shape[1], 1 + 3.5 * shape[0], sharex=True, sharey=True)
    for axes, panel in zip(all_axes.flat, (panel for row in rows_of_panels for panel in row)):
        axes.set_visible(panel is not None)
        if panel is None:
            continue
        for series in panel.series:
            numbers, means, deviations = mean_and_deviation(series.values)
            axes.errorbar(numbers, means, yerr=deviations, capsize=3, **series.style)
        axes.set(xlabel=label, ylabel=panel.label, title=panel.title)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True, labelleft=True)
        if ticks:
            axes.set(xscale="log", xlim=(ticks[0] / 1.2, ticks[-1] * 1.2))
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    save(figure, path, title)


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
    """RMSE, and where rows have them the shares of grasps that hold, into OUT/figure.png; curves into curves.png."""
    groups, title = {words_of(arm): arm.rows for arm in arms_of(rows)}, "\n".join(differences(rows))
    means = sorted({round(mean, 4) for mean in values_of(rows, "training_mean")})
    panels = []
    for label, looks in LOOKS.items():
        series = []
        for column, name, marker, size, color in looks:
            values = {place: values_of(group, column) for place, group in groups.items()}
            series.append(Series(values, {"label": name, "marker": marker, "markersize": size, "color": color}))
        if not panels or values_of(rows, looks[0][0]):
            panels.append(Panel(series, label, means=() if panels else means))
    draw_places(panels, list(groups), args.out / "figure.png", title)
    draw_curves(rows, args.out, title, grid_style)


def grid_style(arm, number):
    """How the lines of an arm of any grid are drawn: ten colours, then the same dashed and dotted."""
    return {"label": words_of(arm), "color": f"C{number}", "linestyle": ("-", "--", ":")[number // 10 % 3]}


def words_of(arm):
    """An arm in a figure: "init jepa, loss wta"."""
    start = f"({arm.start}) " * (arm.start != TRAINING)
    return start + ", ".join(f"{flag[2:]} {value}" for flag, value in arm.own.items())


# ---------------------------------------------------------------- curves
def draw_curves(rows, out, title, style_of):
    """Validation RMSE against the step, a line per run, into OUT/curves.png: has it flattened?

    A panel for each pack and budget; style_of(arm, its number): how its lines are drawn.
    """
    curves, panels = {}, {}  # command -> step -> [RMSE]; pack, budget -> series
    for row in read_rows(out / "curves.csv"):
        curves.setdefault(row["command"], {})[int(row["step"])] = [float(row["val_top_logit_rmse"])]
    for number, arm in enumerate(arms_of(rows)):
        pack, budget = (arm.flags.get(flag, DEFAULTS[flag]) for flag in ("--pack", "--budget"))
        style = style_of(arm, number) | {"linewidth": 0.9}
        series = [Series(curves[row["command"]], style) for row in arm.rows if row["command"] in curves]
        if series and pack != BOTH_PACKS:
            panels.setdefault((pack, float(budget)), []).extend(series)
    packs, budgets = (sorted({place[i] for place in panels}) for i in (0, 1))
    found = [[curve_panel(panels, pack, budget) for budget in budgets] for pack in packs]
    if found:
        draw_lines(found, "step", out / "curves.png", title)


def curve_panel(panels, pack, budget):
    series, title = panels.get((pack, budget)), f"pack {pack}, {100 * budget:g} %"
    return Panel(series, "val top-logit RMSE (rad)", title) if series else None


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
    packs, title = {}, "\n".join(differences(rows))  # pack -> budget -> arms
    for arm in arms_of(rows):
        if arm.flags["--pack"] != BOTH_PACKS:
            packs.setdefault(arm.flags["--pack"], {}).setdefault(float(arm.flags["--budget"]), []).append(arm)
    budgets = sorted(set().union(*packs.values()))
    panels = [[budget_panel(pack, packs[pack], suite) for suite in ("val", "test")] for pack in sorted(packs)]
    ticks = [100 * budget for budget in budgets]
    draw_lines(panels, "share of the training objects (%)", args.out / "efficiency.png", title, ticks)
    draw_curves(rows, args.out, title, table1_style)


def budget_panel(pack, budgets, suite):
    """RMSE against the budget, a line for each start and rates; budgets: budget -> arms."""
    lines = {}
    for budget, arms in budgets.items():
        for arm in arms:
            style = table1_style(arm) | {"marker": "o", "markersize": 4}
            values = lines.setdefault(style["label"], Series({}, style)).values
            values[100 * budget] = values_of(arm.rows, PREFIXES[suite] + "top_logit_rmse")
    return Panel(list(lines.values()), f"{suite} top-logit RMSE (rad)", f"{suite}, pack {pack}: mean and SD over seeds")


# ---------------------------------------------------------------- the published protocol
def draw_published(rows, args):
    """Relative improvements of every draw, by budget: scratch against itself, jepa over scratch, and Table I."""
    found, paper = {}, {}
    for arm, name in published.COMPARED.items():
        for budget, values in published.improvements(rows, arm).items():
            place = f"{100 * float(budget):g} %, {published.VALIDATED[budget]} objects validate: {name}"
            found[place] = values
            if arm == "jepa":
                paper[place] = [published.PAPER[budget]]
    draws = Series(found, {"marker": "o", "color": "C0", "label": "draws here, mean and SD"})
    table1 = Series(paper, {"marker": "*", "markersize": 14, "color": "C3", "label": "paper, 25,000 steps"})
    panel = Panel([draws, table1], "relative improvement (%)")
    draw_places([panel], sorted(found), args.out / "figure.png", "\n".join(differences(rows)))
