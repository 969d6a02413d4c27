"""Does any of it pay? The paper's Section VI as variants.py has it, each variant against the default.

Another tokenizer or other patches want an encoder that was pretrained with them. Those encoders are made here where
they are missing, all equally short, and so is one with the default's patches, to which they are compared.
"""

import concurrent.futures
import shlex
import subprocess
import sys
from pathlib import Path

from cli.errors import UserError
from lab.rows import as_words, check_one_setting, flags_of, split_command
from lab.runner import choose, plan_runs, refuse_flags
from lab.table1 import averaged_errors, improvement_cells, read_errors
from lab.tables import column_cell, count_runs, markdown

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
SHARED = {"--pack": "A", "--budget": "0.1", "--steps": "1000", "--lr-backbone": "1e-4", "--lr-head": "2e-3"}
SHORT = "1000"  # steps of the pretrainings
TINY = {"--preset": "tiny", "--steps": "2", "--num-clouds": "16", "--batch": "8"}  # the same with --smoke
VARIED = ("--loss", "--lora", "--schedule", "--patching", "--tokenizer", "--init", "--jepa-ckpt")
OWN_ENCODER = ("--patching", "--tokenizer")  # what an encoder must have been pretrained with
SUITES = ("val", "test", "test_grasp", "test_category")


# ---------------------------------------------------------------- runs


def short_encoder(flags, given, args):
    """Path of the short pretraining with the tokenizer and patches that `flags` name; it tells how it was made."""
    name = next((flags[flag] for flag in OWN_ENCODER if flag in flags), "default")
    made = "smoke" if args.smoke else f"{SHORT}-{given.get('--precision', 'auto')}"
    return Path(args.runs) / "encoders" / f"{name}-{made}.pt"


def plan_future(names, given, args):
    """Flags of all runs, all of a seed before the next: every variant from scratch and with a pretrained encoder.

    The default is always there, with both pretrained encoders, the one that ships and a short one. Adapters from
    scratch start from random weights whose BatchNorm is calibrated, since they leave them as they are.
    """
    refuse_flags(given, (*VARIED, "--preset"), "future")
    if "," in given.get("--precision", ""):
        raise UserError("future: one --precision at a time")
    planned = []
    for flags in choose(names and ["default", *names], VARIANTS, "future").values():
        starts = [{"--init": "random" if "--lora" in flags else "scratch"}]
        if not any(flag in flags for flag in OWN_ENCODER):
            starts.append({"--init": "jepa"})
        if not flags or any(flag in flags for flag in OWN_ENCODER):
            starts.append({"--init": "jepa", "--jepa-ckpt": str(short_encoder(flags, given, args))})
        for start in starts:
            planned += plan_runs([SHARED | flags | start], given, args.seeds, args)
    return sorted(planned, key=lambda flags: args.seeds.index(flags["--seed"]))


def pretrain_missing(planned, args):
    """Make the encoders that planned runs start from and that are not there yet, `args.jobs` at a time.

    -> whether all are there now: --list only prints the commands of those that are not.
    """
    waiting = {}
    for flags in planned:
        path = flags.get("--jepa-ckpt", "")
        if Path(path).parent == Path(args.runs) / "encoders" and not Path(path).exists():
            kept = (*OWN_ENCODER, "--threads", "--precision", "--device")
            own = {flag: flags[flag] for flag in kept if flag in flags}
            waiting[path] = own | (TINY if args.smoke else {"--steps": SHORT}) | {"--out": path}
    commands = [["pretrain_jepa.py", *as_words(flags)] for flags in waiting.values()]
    if args.list:
        for command in commands:
            print("python", shlex.join(command))
        return not commands
    executor = concurrent.futures.ThreadPoolExecutor(args.jobs)
    try:
        if any(executor.map(pretrain, commands)):
            raise UserError("future: a pretraining has failed, see above; the same command goes on")
    finally:
        executor.shutdown(cancel_futures=True)
    return True


def pretrain(command):
    """Run a pretraining in a process of its own, which Ctrl-C reaches too, or go on with it; -> its exit code."""
    print("future: python", shlex.join(command), file=sys.stderr)
    return subprocess.call([sys.executable, Path(__file__).parent.parent / command[0], *command[1:], "--resume"])


# ---------------------------------------------------------------- the table


def variant_of(row):
    """Name of the variant that a row's flags are of."""
    flags = flags_of(row)
    own = {flag: flags[flag] for flag in ("--loss", "--lora", "--schedule", *OWN_ENCODER) if flag in flags}
    return next((name for name, variant in VARIANTS.items() if variant == own), " ".join(map(" ".join, own.items())))


def start_of(row):
    """What a row's run started from: scratch, jepa (the encoder that ships) or jepa, short."""
    flags = flags_of(row)
    short = "/encoders/" in flags.get("--jepa-ckpt", "")
    return flags["--init"].replace("random", "scratch") + ", short" * short


def seed_of(row):
    return split_command(row["command"])[1]["--seed"]


def arms(rows):
    """Rows by (start, variant), in the order of VARIANTS."""
    groups = {}
    for row in rows:
        groups.setdefault((start_of(row), variant_of(row)), []).append(row)
    places = list(VARIANTS)
    return dict(sorted(groups.items(), key=lambda item: (item[0][0], places.index(item[0][1]))))


def better_than_default(groups, errors, suite, key):
    """By how many % an arm's RMSE is lower than the default's of the same start and seeds, and the interval."""
    runs = {seed_of(row): row for row in groups[key] if row["top_logit_rmse"]}
    others = {seed_of(row): row for row in groups.get((key[0], "default"), []) if row["top_logit_rmse"]}
    both = sorted(runs.keys() & others.keys())
    new, old = (averaged_errors(errors, [found[seed] for seed in both], suite) for found in (runs, others))
    cells = improvement_cells(new, old)
    return f"{cells[0]} ({cells[1]})" if cells and key[1] != "default" else ""


def future_text(rows, out):
    """Markdown: what each variant gives on val and on the test suites, and what it costs."""
    check_one_setting(rows, VARIED, out / "rows.csv")
    groups, errors = arms(rows), read_errors(out)
    header = ["init", "variant", "seeds", "top-logit RMSE (rad)", "better than the default, % (95 % over objects)"]
    header += ["best-of-K", "gap", "diversity (rad)", "coverage@15°", "top logit within 15°", "holds"]
    shown = {"best_of_k_rmse": 4, "selection_gap": 4, "diversity": 3}
    shown |= {"coverage_15": 3, "top_coverage_15": 3, "holds": 3}
    lines = [
        [*key, count_runs(group), column_cell(group, "top_logit_rmse", 4)]
        + [better_than_default(groups, errors, "val", key)]
        + [column_cell(group, name, digits) for name, digits in shown.items()]
        for key, group in groups.items()
    ]
    sections = ["## val\n\n" + markdown(header, lines)]
    suites = SUITES[1:]
    header = ["init", "variant", *suites, *(f"better on {suite}, %" for suite in ("test", "test_category"))]
    lines = [
        [*key, *(column_cell(group, f"{suite}_top_logit_rmse", 4) for suite in suites)]
        + [better_than_default(groups, errors, suite, key) for suite in ("test", "test_category")]
        for key, group in groups.items()
    ]
    sections.append("## Other suites, top-logit RMSE (rad)\n\n" + markdown(header, lines))
    header = ["init", "variant", "M parameters trained", "ms per step", "memory, MB"]
    lines = [
        [*key, f"{float(group[0]['parameters_trained']) / 1e6:.2f}", column_cell(group, "ms_per_step", 0),
         column_cell(group, "memory_mb", 0)]
        for key, group in groups.items() if group[0].get("parameters_trained")
    ]  # fmt: skip
    sections.append("## Costs\n\n" + markdown(header, lines))
    return "\n".join(sections)
