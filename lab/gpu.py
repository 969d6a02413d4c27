"""All that needs a GPU, in order of value, for a machine that is at hand for minutes only.

    python -m lab.gpu --out results/speed            tests, timings of all steps, the first command from start to result
    python -m lab.gpu --out runs/gpu --tiny          the same in small on a CPU: does it work?

Every part is a process of its own with a time limit; its output goes to OUT/<part>.log, and OUT/gpu.json, written
after every part, holds the commands, exit codes and seconds. A part that fails or is cut off does not stop the next.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from plumbing.common import Parser, command, write_json

LIMIT = 150  # seconds for a part


def parts(out, tiny):
    """[(name, command)] in order of value; `tiny`: everything in small, without a GPU."""
    python = [sys.executable]
    small = ["--preset", "tiny", "--steps", "3"] if tiny else []
    speed = [*python, "-m", "lab.speed"]
    paper = ["--preset", "paper"] if not tiny else []
    first = ["--budget", "0.1", "--init", "scratch" if tiny else "jepa", "--overwrite", "--name", "gpu-first", *small]
    return [
        ("tests", [*python, "-m", "pytest", "-q", "-k", "gpu"]),
        ("train_small", [*speed, "train", *small, "--json", f"{out}/train_small_cuda.json"]),
        ("train_paper", [*speed, "train", *paper, *small, "--json", f"{out}/train_paper_cuda.json"]),
        (
            "train_paper_64",
            [*speed, "train", *paper, *small, "--objects-per-batch", "64", "--json", f"{out}/train_paper_64_cuda.json"],
        ),
        ("pretrain_small", [*speed, "pretrain", *small, "--json", f"{out}/pretrain_small_cuda.json"]),
        (
            "pretrain_paper",
            [*speed, "pretrain", *paper, *small, "--batch", "8" if tiny else "512", "--json",
             f"{out}/pretrain_paper_cuda.json"],
        ),
        ("first_command", [*python, "train.py", *first]),
        ("first_command_no_graph", [*python, "train.py", *first, "--no-graph"]),
        ("first_command_again", [*python, "train.py", *first]),  # equal numbers to the first?
    ]  # fmt: skip


@command
def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and three steps: does it work?")
    args = parser.parse_args(argv)
    out, done = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    for name, words in tqdm(parts(args.out, args.tiny), desc="parts", unit="part", disable=None):
        started = time.perf_counter()
        with open(out / f"{name}.log", "w") as log:
            try:
                code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT).returncode
            except subprocess.TimeoutExpired:
                code = "over the limit"
        row = {"part": name, "command": shlex.join(["python", *words[1:]]), "exit": code}
        done.append(row | {"seconds": round(time.perf_counter() - started, 1)})
        write_json(out / "gpu.json", {"parts": done})
        print(f"{name}: exit {code}, {done[-1]['seconds']} s")
    return done


if __name__ == "__main__":
    main()
