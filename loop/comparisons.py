"""What makes runs comparable: from which encoder each may start, and the baseline that is trained beside them."""

import contextlib
import hashlib
import io
import json
import sys
from pathlib import Path

from cli.errors import UserError, refuse
from cli.flags import as_flags
from files.checkpoints import kind_of, read_checkpoint
from files.writing import read_json

# what tells one row "pose and size only" from another; and what else it takes over from a run
BASELINE = ("pack", "budget", "held_out", "min_score", "steps", "k", "loss")
SAME_AS_RUN = ("data", "skip_bad", "cache_dir", "no_graph", *BASELINE)


def check_start(init, path):
    """Stop where the encoder `path` saw labels and --init is jepa, or saw none and it is oracle."""
    labelled = kind_of(read_checkpoint(path), path) == "run"
    seen = f"{path}: this encoder was trained with labels; give --init oracle, or a pretrained one"
    refuse(labelled and init != "oracle", seen)
    unseen = f"{path}: this encoder saw no labels; give --init jepa, or best.pt of a run with all of them"
    refuse(not labelled and init == "oracle", unseen)


def check_oracle(args, fingerprint, held_out):
    """Stop where the encoder that --init oracle names was not trained with all labels of the same split.

    fingerprint: of this run's data; held_out: the synsets that never train where --held-out is not given.
    """
    folder = Path(args.jepa_ckpt).parent
    config = read_json(folder / "config.json", "settings")
    theirs = config["settings"]
    away = [sorted(held_out if synsets is None else synsets) for synsets in (theirs.get("held_out"), args.held_out)]
    for name, found, wanted in (
        ("budget", theirs.get("budget"), 1.0), ("pack", theirs.get("pack"), args.pack), ("held_out", *away),
    ):  # fmt: skip
        refuse(found != wanted, f"{folder}: an oracle's {name} must be {wanted}, not {found}; give another run")
    unfinished = not (folder / "result.json").exists()
    refuse(unfinished, f"{folder}: this run has not finished; go on with it by --resume first")
    refuse(config.get("fingerprint") != fingerprint, f"{folder}: was trained on other data; give another run")
    print(f"oracle: the encoder of {folder}, {theirs.get('steps')} steps with all labels", file=sys.stderr)


def pose_and_size(args, data, points, train):
    """The val summary of `--pool size`: pose, centroid and radius, no shape; trained once per data, pack and budget.

    train(flags): a run on this data. -> None where it cannot be trained, which is said.
    """
    key = [data.fingerprint, *(getattr(args, name) for name in BASELINE), points]
    name = f"pose-and-size-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}"
    folder = Path(args.runs) / name
    try:
        if not (folder / "result.json").exists():
            print("\npose and size only, once for this data and budget:", file=sys.stderr)
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
