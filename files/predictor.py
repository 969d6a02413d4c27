"""The predictor of an encoder that was kept alone: ENCODER_predictor.pt beside ENCODER.pt, by lab/predictor.py."""

import copy
import hashlib
from pathlib import Path

from cli.errors import refuse
from files.checkpoints import jepa_from, kind_of, load_encoder, load_strictly, read_checkpoint, save_checkpoint
from model import PointJEPA


def predictor_path(encoder_path):
    """Where the predictor of an encoder's file is kept."""
    return Path(encoder_path).with_name(f"{Path(encoder_path).stem}_predictor.pt")


def file_hash(path):
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def jepa_around(encoder):
    """A PointJEPA with this encoder, its copy for the targets and a new predictor, in eval mode."""
    jepa = PointJEPA(encoder.config)
    jepa.encoder, jepa.target = encoder, copy.deepcopy(encoder.transformer)
    return jepa.eval()


def save_predictor(jepa, encoder_path):
    """Keep the predictor of a PointJEPA beside the encoder that it was trained for; -> its path."""
    path = predictor_path(encoder_path)
    save_checkpoint(path, {"predictor": jepa.predictor.state_dict(), "encoder_sha256": file_hash(encoder_path)})
    return path


def load_with_predictor(path):
    """The encoder of a checkpoint, and its PointJEPA; None where no predictor was kept, in the file or beside it."""
    content = read_checkpoint(path)
    if kind_of(content, path) in ("jepa", "official"):
        jepa = jepa_from(content, path)
        return jepa.encoder, jepa
    encoder, beside = load_encoder(path), predictor_path(path)
    if not beside.exists():
        return encoder, None
    jepa, content = jepa_around(encoder), read_checkpoint(beside, "predictor", "encoder_sha256")
    again = f"make it again: python -m lab.predictor --encoder {path}"
    refuse(content["encoder_sha256"] != file_hash(path), f"{beside}: the predictor of another encoder; {again}")
    load_strictly(jepa.predictor, content["predictor"], beside)
    return encoder, jepa
