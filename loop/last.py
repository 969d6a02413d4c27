"""last.pt, from which --resume goes on to the bit."""

import sys

import torch

from cli.errors import UserError
from files.checkpoints import load_strictly, read_checkpoint, save_checkpoint

# ---------------------------------------------------------------- last.pt


def save_last(path, content, optimizer, generator, progress):
    """Everything that --resume needs to go on to the bit.

    content: what makes the network again, its weights and the run's settings; generator: the torch.Generator of the
    loop; progress: a dict of plain types.
    """
    content = content | {
        "optimizer": optimizer.state_dict(), "progress": progress,
        "rng": torch.get_rng_state(), "generator": generator.get_state(),
    }  # fmt: skip
    if torch.cuda.is_available():
        content["cuda_rng"] = torch.cuda.get_rng_state()
    save_checkpoint(path, content)


def load_last(path, settings, key, network, optimizer, generator, progress):
    """Restore what `save_last` saved, the network's weights from content[key]; -> the progress, typed as the given one.

    settings: those of this run, which must be the ones that the file was started with.
    """
    content = read_checkpoint(path, key, "settings", "optimizer", "progress", "rng", "generator")
    check_same_settings(content["settings"], settings, path)
    load_strictly(network, content[key], path)
    try:
        kept = [{name: group[name] for name in ("lr", "capturable")} for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
        for group, of_this_run in zip(optimizer.param_groups, kept):  # whose steps may run as graphs, or no longer
            group.update(of_this_run)
        torch.set_rng_state(content["rng"])
        generator.set_state(content["generator"])
        if "cuda_rng" in content and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])
        if set(content["progress"]) != set(vars(progress)):
            raise ValueError("its progress has other fields")
        return type(progress)(**content["progress"])
    except Exception as error:  # torch raises whatever does not fit
        raise UserError(f"{path}: is not of this run ({error}); give --overwrite to start anew") from None


def warn_if_moved(started, device, precision, path):
    """Say where a run goes on on another device than it was started on, or in another precision: its bits change.

    started: what the run's file says of that, a dict. --device and --precision may both have been "auto".
    """
    here = {"device": device.type, "precision": precision}
    there = {name: started.get(name) or value for name, value in here.items()}
    if there != here:
        print(
            f"warning: {path}: was started on {there['device']} in {there['precision']} and goes on on "
            f"{device.type} in {precision}: its numbers will not be those of an undisturbed run",
            file=sys.stderr,
        )


def check_same_settings(old, new, path):
    """Stop where a run would be resumed with other settings than it was started with; two dicts."""
    changed = [name for name in new if not isinstance(old, dict) or old.get(name) != new[name]]
    if changed:
        raise UserError(f"{path}: was started with other settings ({', '.join(changed)}); repeat them to --resume")
