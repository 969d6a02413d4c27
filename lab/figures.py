"""Figures from rows, of two kinds: configurations side by side, and lines against a number."""

import statistics
import textwrap
from typing import NamedTuple

from files.writing import atomic
from lab import published
from lab.rows import RATE_FLAGS, TRAINING, differences, flags_of, read_rows
from lab.table1 import at_papers_rates
from lab.tables import BOTH_PACKS, arms_of, values_of

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
def draw_places(panels, places, path, title="", apart=0.0):
    """Panels side by side, a line for each place: mean ± SD (n - 1) of every series, and its values if they are many.

    apart: by how much of a line two series are shifted; without, the smaller marker shows on the larger.
    """
    width, height = 5 + 4 * len(panels), 2.2 + 0.4 * len(places)
    figure, (row,) = new_figure(1, len(panels), width, height, sharey=True)
    for axes, panel in zip(row, panels):
        for i, series in enumerate(panel.series):
            shift = apart * (i - (len(panel.series) - 1) / 2)
            shown = [(places.index(place) + shift, values) for place, values in series.values.items() if values]
            if not shown:
                continue
            at, values = zip(*shown)
            for y, some in shown:
                if len(some) > 5:
                    axes.plot(some, [y] * len(some), ".", color=series.style.get("color"), alpha=0.4)
            axes.errorbar(list(map(statistics.mean, values)), at, xerr=list(map(deviation, values)), capsize=3,
                          linestyle="", **series.style)  # fmt: skip
        for mean in panel.means:
            axes.axvline(mean, **MEAN_STYLE)
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
    figure, all_axes = new_figure(*shape, 1 + 5 * shape[1], 1 + 3.5 * shape[0], sharex=True, sharey="col")
    for axes, panel in zip(all_axes.flat, (panel for row in rows_of_panels for panel in row)):
        axes.set_visible(panel is not None)
        if panel is None:
            continue
        for series in panel.series:
            numbers = sorted(number for number, values in series.values.items() if values)
            values = [series.values[number] for number in numbers]
            errors = list(map(deviation, values)) if any(len(some) > 1 for some in values) else None
            axes.errorbar(numbers, list(map(statistics.mean, values)), yerr=errors, capsize=3, **series.style)
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


def deviation(values):
    return statistics.stdev(values) if len(values) > 1 else 0


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
    """Top-logit and best-of-K RMSE, and where rows have them the shares of grasps that hold, into OUT/figure.png."""
    panels = [(LOOKS, "RMSE on val (rad)")]
    if values_of(rows, "holds"):
        panels.append((HOLD_LOOKS, "share of val grasps that hold once closed"))
    groups = {}  # "init jepa, loss wta" -> rows
    for arm in arms_of(rows)[0]:
        start = f"({arm.start}) " * (arm.start != TRAINING)
        groups[start + ", ".join(f"{flag[2:]} {value}" for flag, value in arm.own.items())] = arm.rows
    means = sorted({round(mean, 4) for mean in values_of(rows, "training_mean")})
    found = []
    for looks, label in panels:
        series = []
        for column, name, marker, size, color in looks:
            values = {place: values_of(group, column) for place, group in groups.items()}
            series.append(Series(values, {"label": name, "marker": marker, "markersize": size, "color": color}))
        found.append(Panel(series, label, means=() if found else means))
    draw_places(found, list(groups), args.out / "figure.png", "\n".join(differences(rows)))


# ---------------------------------------------------------------- Table I
TABLE1 = {  # file -> column -> its label
    "efficiency.png": {
        "top_logit_rmse": "val top-logit RMSE (rad)",
        "test_top_logit_rmse": "test top-logit RMSE (rad)",
    },
    "coverage_gap.png": {"test_coverage_15": "test coverage@15°", "test_selection_gap": "test selection gap (rad)"},
}


def style_of(arm):
    """How one arm of table1 is drawn."""
    init, *rates = (arm.flags[flag] for flag in ("--init", *RATE_FLAGS))
    label = f"{init}, {' and '.join(rates)}"
    return {
        "color": "C0" if init == "jepa" else "C1",
        "linestyle": "--" if at_papers_rates(arm.flags) else "-",
        "label": label + ", the paper's rates" * at_papers_rates(arm.flags),
    }


def draw_table1(rows, args):
    """Metrics against the budget, a row of panels per pack; and every run's validation curve."""
    arms, title = [arm for arm in arms_of(rows)[0] if arm.flags["--pack"] != BOTH_PACKS], "\n".join(differences(rows))
    packs = sorted({arm.flags["--pack"] for arm in arms})
    budgets = sorted({float(arm.flags["--budget"]) for arm in arms})
    of_pack = [[arm for arm in arms if arm.flags["--pack"] == pack] for pack in packs]
    for name, columns in TABLE1.items():
        panels = [[budget_panel(some, *column) for column in columns.items()] for some in of_pack]
        ticks = [100 * budget for budget in budgets]
        draw_lines(panels, "share of the training objects (%)", args.out / name, title, ticks)
    curves = {}  # command -> step -> [RMSE]
    for row in read_rows(args.out / "curves.csv"):
        curves.setdefault(row["command"], {})[int(row["step"])] = [float(row["val_top_logit_rmse"])]
    panels = [
        [curve_panel([arm for arm in some if float(arm.flags["--budget"]) == budget], curves) for budget in budgets]
        for some in of_pack
    ]
    draw_lines(panels, "step", args.out / "curves.png", title)


def budget_panel(arms, column, label):
    """A metric against the budget, a line for each start and rates."""
    lines = {}
    for arm in arms:
        style = style_of(arm) | {"marker": "o", "markersize": 4}
        line = lines.setdefault(style["label"], Series({}, style))
        line.values[100 * float(arm.flags["--budget"])] = values_of(arm.rows, column)
    return Panel(
        list(lines.values()), label, f"{label.split()[0]}, pack {arms[0].flags['--pack']}: mean and SD over seeds"
    )


def curve_panel(arms, curves):
    """Validation RMSE against the step, a line per run: has it flattened?"""
    series = [
        Series(curves[row["command"]], style_of(arm) | {"linewidth": 0.9})
        for arm in arms for row in arm.rows if row["command"] in curves
    ]  # fmt: skip
    title = f"pack {arms[0].flags['--pack']}, {100 * float(arms[0].flags['--budget']):g} %" if arms else ""
    return Panel(series, "val top-logit RMSE (rad)", title) if series else None


# ---------------------------------------------------------------- the published protocol
def draw_published(rows, args):
    """Relative improvements of every draw, by budget: scratch against itself, jepa over scratch, and Table I."""
    looks = {"scratch again": ("scratch against itself, other seed", "0.5"), "jepa": ("jepa over scratch", "C0")}
    names = {
        budget: f"{100 * float(budget):g} %, {count} objects validate" for budget, count in published.VALIDATED.items()
    }
    series = []
    for arm, (label, color) in looks.items():
        found = {names[budget]: values for budget, values in published.improvements(rows, arm).items()}
        series.append(Series(found, {"marker": "o", "color": color, "label": label}))
    drawn = {flags_of(row)["--budget"] for row in rows}
    paper = {name: [published.PAPER[budget]] for budget, name in names.items() if budget in drawn}
    series.append(Series(paper, {"marker": "*", "markersize": 14, "color": "C3", "label": "paper, 25,000 steps"}))
    panel = Panel(series, "relative improvement (%): every draw, mean and SD")
    draw_places([panel], list(paper), args.out / "figure.png", "\n".join(differences(rows)), apart=0.2)
