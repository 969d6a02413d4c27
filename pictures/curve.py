"""The learning curve of a run: loss, error and coverage against the step, from the rows of its metrics.csv."""

from files.writing import atomic

PANELS = (  # label of the axis, {column: (label, colour)}
    ("training loss", {"train_loss": ("training loss", "0.3")}),
    ("val RMSE (rad)", {"val_top_logit_rmse": ("top logit", "C0"), "val_best_of_k_rmse": ("best of K", "C2")}),
    ("val coverage at 15°", {"val_coverage_15": ("coverage", "C1")}),
)


def draw_curve(rows, path, title, best_step, mean_rmse):
    """Write the curve as PNG; rows: dicts as in metrics.csv, numbers or their text.

    best_step: of best.pt; mean_rmse: rad, of the training mean. Both are lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    steps = [float(row["step"]) for row in rows]
    panels = figure.subplots(1, len(PANELS))
    panels[1].axhline(mean_rmse, color="0.5", linestyle="--", label="training mean")
    for ax, (label, columns) in zip(panels, PANELS):
        for column, (name, colour) in columns.items():
            ax.plot(steps, [float(row[column]) for row in rows], color=colour, marker="o", markersize=3, label=name)
        ax.axvline(best_step, color="0.6", linestyle=":", label=f"step {best_step}: best.pt")
        ax.set(xlabel="step", ylabel=label, xlim=(0, None))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
