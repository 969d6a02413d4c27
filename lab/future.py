"""Does any of it pay? The paper's Section VI as variants.py has it, each variant against the default."""

from cli.errors import refuse
from lab.by_object import arm_errors, better_cell, keep_errors, read_errors
from lab.rows import check_one_setting, flags_of, seed_of
from lab.runner import choose, plan_runs, refuse_flags, run_all, seed_by_seed
from lab.tables import count_runs, markdown, mean_cell

VARIANTS = {  # name -> what differs from the default
    "default": {},
    "relaxed": {"--loss": "relaxed"},
    "annealed": {"--loss": "annealed"},
    "lora": {"--lora": "8"},
    "constant": {"--schedule": "constant"},
    "layerwise": {"--schedule": "layerwise"},
    "curvature": {"--patching": "curvature"},
    "multiscale": {"--patching": "multiscale"},
    "overlap": {"--patching": "overlap"},
    "geometric": {"--tokenizer": "geometric"},
}
TODAY = {name: VARIANTS[name] for name in ("default", "annealed", "lora")}  # of the others no more than rows are left
SHARED = {"--pack": "A", "--budget": "0.1", "--steps": "1000", "--lr-backbone": "1e-4", "--lr-head": "2e-3"}
VARIED = ("--loss", "--lora", "--schedule", "--patching", "--tokenizer", "--init", "--jepa-ckpt", "--preset")
SUITES = ("val", "test", "test_grasp", "test_category")


# ---------------------------------------------------------------- runs
def run_future(names, given, args):
    """Run every variant on every suite; -> rows."""
    return run_all(plan_future(names, given, args), args.out / "rows.csv", args, SUITES, [keep_errors])


def plan_future(names, given, args):
    """Flags of all runs, all of a seed before the next: every variant from scratch and with a pretrained encoder.

    The default is always there. Adapters from scratch start from random weights whose BatchNorm is calibrated, since
    they leave them as they are.
    """
    refuse_flags(given, VARIED, "future")
    refuse("," in given.get("--precision", ""), "future: one --precision at a time")
    planned = []
    for flags in choose(names and ["default", *names], TODAY, "future").values():
        for init in ("random" if "--lora" in flags else "scratch", "jepa"):
            planned += plan_runs([SHARED | flags | {"--init": init}], given, args.seeds, args)
    return seed_by_seed(planned, args)


# ---------------------------------------------------------------- the table
def variant_of(row):
    """Name of the variant that a row's flags are of: the default's are no more than every other one's."""
    flags = flags_of(row)
    return next(name for name, own in reversed(VARIANTS.items()) if own.items() <= flags.items())


def start_of(row):
    """What a row's run started from: scratch, jepa (the encoder that ships) or, of former variants, a short jepa."""
    flags = flags_of(row)
    short = "/encoders/" in flags.get("--jepa-ckpt", "")
    return flags["--init"].replace("random", "scratch") + ", short" * short


def grouped(rows):
    """Rows by (start, variant), in the order of VARIANTS."""
    groups = {}
    for row in rows:
        groups.setdefault((start_of(row), variant_of(row)), []).append(row)
    places = list(VARIANTS)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], places.index(item[0][1]))))


def better_than_default(groups, errors, suite, key):
    """By how many % an arm's RMSE is lower than the default's of the same start and seeds, and the interval."""
    runs, others = (
        {seed_of(row): row for row in groups.get(place, []) if row["top_logit_rmse"]}
        for place in (key, (key[0], "default"))
    )
    both = sorted(runs.keys() & others.keys())
    new, old = (arm_errors(errors, [found[seed] for seed in both], suite) for found in (runs, others))
    return better_cell(new, old) if key[1] != "default" else ""


def section(title, groups, columns):
    """Markdown: a line per arm; columns: header -> text of (key, its rows)."""
    lines = [[*key, *(cell(key, group) for cell in columns.values())] for key, group in groups.items()]
    return f"## {title}\n\n" + markdown(["init", "variant", *columns], lines)


def future_text(rows, args):
    """Markdown: what each variant gives on val and on the test suites, and what it costs."""
    check_one_setting(rows, VARIED, args.out / "rows.csv")
    groups, errors = grouped(rows), read_errors(args.out)

    def mean(column):
        return lambda key, group: mean_cell(group, column)

    def better(suite):
        return lambda key, group: better_than_default(groups, errors, suite, key)

    def millions(key, group):
        return f"{float(group[0]['parameters_trained']) / 1e6:.2f}"

    val = {
        "seeds": lambda key, group: count_runs(group), "top-logit RMSE (rad)": mean("top_logit_rmse"),
        "better than the default, % (95 % over objects, and seeds if several)": better("val"),
        "best-of-K": mean("best_of_k_rmse"), "gap": mean("selection_gap"), "diversity (rad)": mean("diversity"),
        "coverage@15°": mean("coverage_15"), "top logit within 15°": mean("top_coverage_15"), "holds": mean("holds"),
    }  # fmt: skip
    others = {suite: mean(f"{suite}_top_logit_rmse") for suite in SUITES[1:]}
    others |= {f"better on {suite}, %": better(suite) for suite in ("test", "test_category")}
    costs = {"M parameters trained": millions, "ms per step": mean("ms_per_step"), "memory, MB": mean("memory_mb")}
    counted = {key: group for key, group in groups.items() if group[0]["parameters_trained"]}
    return "\n".join([
        section("val", groups, val),
        section("Other suites, top-logit RMSE (rad)", groups, others),
        section("Costs", counted, costs),
    ])  # fmt: skip
