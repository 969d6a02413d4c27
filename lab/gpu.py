"""All that needs a GPU, in order of value, for a machine that is at hand for minutes only.

    python -m lab.gpu --out results/speed            tests, timings of all steps, the first command from start to result
    python -m lab.gpu train_small tests --out DIR    these parts only, so that a call may be short
    python -m lab.gpu --paper --out results/gpu      instead: is an encoder of the paper's size worth its pretraining?
    python -m lab.gpu --out runs/gpu --tiny          the same in small on a CPU: does it work?

Every part is a process of its own with a time limit; its output goes to OUT/<part>.log, and OUT/gpu.json, written
after every part, holds the commands, exit codes and seconds, and what the first command found to the last digit. A
part that fails or is cut off does not stop the next; at its limit it hears Ctrl-C first, so that it can say how far
it came. The first part also tells whether a step can be captured at all: where not, its log says why, and the others
need --no-graph.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from cli.errors import UserError, command
from cli.flags import Parser
from files.writing import read_json, write_json

LIMIT = 150  # seconds for a part
LIMITS = {"tests": 300, "paper_scratch": 240, "paper_jepa_0": 240, "paper_jepa_1": 240, "paper_input": 240}
GRACE = 20  # seconds between Ctrl-C and the end
FOUND = ("eager_steps", "ms_per_step", "seconds", "device", "precision")  # of the first command's result.json


def parts(out, tiny):
    """Part -> command, in order of value; `tiny`: everything in small, without a GPU."""
    python = [sys.executable]
    small = ["--preset", "tiny", "--steps", "3"] if tiny else []
    speed = [*python, "-m", "lab.speed"]
    paper = ["--preset", "paper"] if not tiny else []
    batch = ["--batch", "8" if tiny else "512"]
    first = [*python, "train.py", "--budget", "0.1", "--init", "scratch" if tiny else "jepa", "--overwrite", *small]
    alone = [*first, "--no-baseline"]
    return {
        "first_command": [*first, "--name", "gpu-first"],  # with the data, if that is to be made
        "train_small": [*speed, "train", *small, "--json", f"{out}/train_small_cuda.json"],
        "train_paper": [*speed, "train", *paper, *small, "--json", f"{out}/train_paper_cuda.json"],
        "first_command_again": [*alone, "--name", "gpu-again"],  # equal numbers to the first?
        "first_command_no_graph": [*alone, "--name", "gpu-no-graph", "--no-graph"],
        "tests": [*python, "-m", "pytest", "-v", "--tb=short", "--maxfail=5", "-k", "gpu and not compiled"],
        "pretrain_paper": [
            *speed, "pretrain", *paper, *small, *batch, "--json", f"{out}/pretrain_paper_cuda.json",
        ],
        "train_paper_64": [
            *speed, "train", *paper, *small, "--objects-per-batch", "64", "--json", f"{out}/train_paper_64_cuda.json",
        ],
        "pretrain_small": [*speed, "pretrain", *small, "--json", f"{out}/pretrain_small_cuda.json"],
        "one_percent": [
            *python, "train.py", "--budget", "0.01", "--overwrite", "--no-baseline", "--name", "gpu-few", *small,
        ],
        "compile_test": [*python, "-m", "pytest", "-v", "--tb=short", "-k", "gpu and compiled"],
    }  # fmt: skip


def paper_parts(out, tiny):
    """Part -> command: the encoder of the paper's size, from two seeds, beside scratch and the paper's own input."""
    python = [sys.executable]
    preset, steps, data = ("tiny", "3", "data/synthetic") if tiny else ("paper", "2000", "data/full")
    encoder = [*python, "pretrain_jepa.py", "--preset", preset, "--overwrite"]
    encoder += ["--steps", "3", "--batch", "4", "--num-clouds", "8"] if tiny else ["--steps", "1500", "--batch", "256"]
    rows = [*python, "sweep.py", "grid", "--data", data, "--preset", preset, "--steps", steps]
    rows += ["--lr-backbone", "1e-4", "--lr-head", "2e-3", "--threads", "2", "--jobs", "2", "--out", f"{out}/paper"]
    both = ["--budget", "0.1,1"]
    own_input = ["--budget", "0.1", "--normalize", "metric", "--scale", "0.1", "--group", "ball", "--radius", "0.05"]
    return {
        "data": [*python, "splits.py", "--data", data],  # makes it where it is missing
        "paper_encoder_0": [*encoder, "--seed", "0", "--out", "runs/paper_0.pt"],
        "paper_scratch": [*rows, *both, "--init", "scratch", "--seeds", "0,1"],
        "paper_jepa_0": [*rows, *both, "--init", "jepa", "--jepa-ckpt", "runs/paper_0.pt", "--seeds", "0"],
        "paper_encoder_1": [*encoder, "--seed", "1", "--out", "runs/paper_1.pt"],
        "paper_jepa_1": [*rows, *both, "--init", "jepa", "--jepa-ckpt", "runs/paper_1.pt", "--seeds", "1"],
        "paper_input": [*rows, "--init", "scratch", *own_input],
    }


def run_part(words, log, limit):
    """Run a command with its output in a file; -> its exit code, or that it was cut off."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with open(log, "w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return "over the limit"


def found_by(words):
    """What a part that is a training found, from its result.json; {} for other parts, and where there is none."""
    if "--name" not in words:
        return {}
    try:
        result = read_json(Path("runs") / words[words.index("--name") + 1] / "result.json", "suites")
    except UserError:
        return {}
    found = {name: result[name] for name in FOUND if name in result}
    return {"top_logit_rmse": result["suites"]["val"]["top_logit_rmse"]} | found


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="the parts to run (default: all)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    paper = "the paper's size instead: data, two pretrainings, fine-tunings at 10 and 100 %% of the labels"
    parser.add_argument("--paper", action="store_true", help=paper)
    parser.add_argument("--tiny", action="store_true", help="tiny networks and three steps: does it work?")
    args = parser.parse_args(argv)
    out, planned = Path(args.out), (paper_parts if args.paper else parts)(args.out, args.tiny)
    unknown = set(args.parts) - set(planned)
    if unknown:
        raise UserError(f"no part {', '.join(sorted(unknown))}; there are {', '.join(planned)}")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "gpu.json"
    done = {row["part"]: row for row in read_json(file)["parts"]} if file.exists() else {}
    for name in tqdm(args.parts or planned, desc="parts", unit="part", disable=None):
        words, started = planned[name], time.perf_counter()
        code = run_part(words, out / f"{name}.log", LIMITS.get(name, LIMIT))
        row = {"part": name, "command": shlex.join(["python", *words[1:]]), "exit": code}
        done[name] = row | {"seconds": round(time.perf_counter() - started, 1)} | {"found": found_by(words)}
        write_json(file, {"parts": list(done.values())})
        print(f"{name}: exit {code}, {done[name]['seconds']} s")
    return list(done.values())


if __name__ == "__main__":
    main()
