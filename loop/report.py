"""What is printed of a run of train.py: its table, how to read it, what its curve says, what it took."""

import time

import cli

LATE, FELL = 0.75, 0.01  # share of the steps after which a curve should be flat; how much it may still fall
EARLY, ROSE = 0.5, 0.02  # share of the steps before which the lowest error is early; how much it may rise afterwards


# ---------------------------------------------------------------- the table
def bracket(result, metric):
    """The interval of a metric of a `summarize`, as text; "" where there is none."""
    found = result.get("interval_95", {}).get(metric)
    return f"[{found[0]:.3f}, {found[1]:.3f}]" if found else ""


def metrics_table(results):
    """Aligned rows of results, name -> `summarize`: rad and shares, 100 columns where names have 21 or fewer."""
    width = max(19, *map(len, results))
    header = f"{'':<{width}} grasps  top-logit RMSE (rad)  best-of-K    gap cov@10°   15°   20°"
    lines = [header + "  free holds" * any("holds" in result for result in results.values())]
    for name, r in results.items():
        errors = f"{r['top_logit_rmse']:.4f} {bracket(r, 'top_logit_rmse'):<14}{r['best_of_k_rmse']:10.4f}"
        cover = f"{r['coverage_10']:8.3f}{r['coverage_15']:6.3f}{r['coverage_20']:6.3f}"
        closed = f"{r['free']:6.3f}{r['holds']:6.3f}" if "holds" in r else ""
        lines.append(f"{name:<{width}}{r['num_grasps']:7d}  {errors}{r['selection_gap']:7.4f}{cover}{closed}")
    return "\n".join(lines)


def run_rows(result, again=None):
    """The rows of a run's table, name -> `summarize`, from what its result.json holds.

    again: what `evaluate.compare` has just found. Its numbers stand above those that were kept, which fill what it
    lacks: whether grasps hold, and the row of the baseline.
    """
    kept = {
        "training mean": result["training_mean"], "pose and size only": result.get("pose_and_size"),
        "run": result["suites"]["val"], "recorded": result["recorded"],
    }  # fmt: skip
    names = {"run": f"this run, step {result['best_step']}"}
    return {names.get(name, name): row | (again or {}).get(name, {}) for name, row in kept.items() if row}


def how_to_read(results):
    """Lines on the columns of a `metrics_table`, those on holding where there are any."""
    lines = [
        "top-logit RMSE: error of the hypothesis that a run trusts most; brackets: 95 % over objects",
        "cov@15°: share with one of the K hypotheses within 15° (RMS over joints) of the recording",
    ]
    closed = " or ".join(str(n) for n in sorted({r["grasps_closed"] for r in results.values() if "holds" in r}))
    holds = f"holds: share whose hand, closed from the prediction, would hold the object; of {closed} grasps"
    return lines + [holds] * (closed != "")


# ---------------------------------------------------------------- what the curve says
def remarks(curve):
    """Sentences on a run from its validations, the rows of metrics.csv with numbers; [] where it ended well.

    Still falling: the last quarter of the steps lowered the lowest top-logit RMSE by over 1 %. (Not the last tenth: by
    then the rates are next to zero, and every curve is flat.) Overfitted: best of K was lowest in the first half of the
    steps and ended over 2 % higher, while the training loss went on falling. (Not the top logit: a network starts at
    the training mean, from which its hypotheses then part.)
    """
    last, best, said = curve[-1], min(curve, key=lambda row: row["val_best_of_k_rmse"]), []
    errors = {row["step"]: row["val_top_logit_rmse"] for row in curve}
    earlier = [error for step, error in errors.items() if step <= LATE * last["step"]]
    fell = 1 - min(errors.values()) / min(earlier, default=min(errors.values()))
    if fell > FELL:
        how_far = f"the last quarter of the steps lowered the RMSE by {100 * fell:.0f} %"
        said.append(f"Still falling: {how_far}; more --steps may help.")
    rise = last["val_best_of_k_rmse"] / best["val_best_of_k_rmse"] - 1
    if best["step"] <= EARLY * last["step"] and rise > ROSE and last["train_loss"] < best["train_loss"]:
        when = f"best-of-K was lowest at step {best['step']:.0f}"
        said.append(f"Overfitted: {when} and ended {100 * rise:.0f} % higher; the training loss fell on.")
    return said


# ---------------------------------------------------------------- all of it
def print_run(result, curve, pack):
    """The table of a finished run, how to read it, what its curve says, what it took.

    result: what result.json holds; curve: rows of metrics.csv.
    """
    rows = run_rows(result)
    print(f"\nval of pack {pack}\n{metrics_table(rows)}\n")
    print("\n".join(how_to_read(rows)), end="\n\n")
    said = remarks(curve)
    if result["suites"]["val"]["top_logit_rmse"] > result["training_mean"]["top_logit_rmse"]:
        said.append("The mean's RMSE is hard to beat: a squared error rewards averages of grasps, which seldom hold.")
    in_all = time.perf_counter() - cli.STARTED
    said.append(f"{result['seconds']:.0f} s of training and validation; {in_all:.0f} s since this command was given")
    trained, total = result["parameters_trained"] / 1e6, result["parameters"] / 1e6
    print(*said, f"{trained:.2f} of {total:.2f} M parameters trained", sep="\n")
