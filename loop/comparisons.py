"""What a run is compared with: a baseline, trained once for its data."""

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

from cli.errors import UserError
from cli.flags import as_flags
from files.writing import read_json

# what tells one row "pose and size only" from another; and what else it takes over from a run
BASELINE = ("pack", "budget", "held_out", "min_score", "steps", "k", "loss")
SAME_AS_RUN = ("data", "skip_bad", "cache_dir", "no_graph", *BASELINE)


def pose_and_size(args, data, points, train):
    """The val summary of `--pool size`: pose, centroid and radius, no shape; trained once per `BASELINE`.

    train(flags): a run on this data. -> None where it cannot be trained, which is said.
    """
    key = [data.fingerprint, *(getattr(args, name) for name in BASELINE), points]
    name = f"pose-and-size-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}"
    folder = Path(args.runs) / name
    try:
        if not (folder / "result.json").exists():
            print("\npose and size only, once for this data, budget, length, K and loss:", file=sys.stderr)
            same = as_flags({name: getattr(args, name) for name in SAME_AS_RUN} | {"points": points})
            more = ["--quiet"] * args.quiet + ["--resume"] * (folder / "config.json").exists()
            with contextlib.redirect_stdout(io.StringIO()):
                train([*same, "--pool", "size", "--runs", args.runs, "--name", name, *more])
        return read_json(folder / "result.json", "suites")["suites"]["val"]
    except UserError as error:
        print(f"pose and size only: left out ({error})", file=sys.stderr)
    except KeyboardInterrupt:
        goes_on = "pose and size only: stopped; the next run on this data and budget goes on with it"
        raise KeyboardInterrupt(goes_on) from None
