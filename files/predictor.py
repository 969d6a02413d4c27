"""The predictor that an encoder was pretrained with: ENCODER_predictor.pt beside ENCODER.pt, for the walk alone."""

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


def save_predictor(jepa, encoder_path):
    """Keep the predictor of a PointJEPA beside the encoder that it was trained for."""
    content = {"predictor": jepa.predictor.state_dict(), "encoder_sha256": file_hash(encoder_path)}
    save_checkpoint(predictor_path(encoder_path), content)


def load_with_predictor(path):
    """The encoder of a checkpoint, and its PointJEPA; None where no predictor was kept, in the file or beside it."""
    content = read_checkpoint(path)
    if kind_of(content, path) in ("jepa", "official"):
        jepa = jepa_from(content, path)
        return jepa.encoder, jepa
    encoder, beside = load_encoder(path), predictor_path(path)
    if not beside.exists():
        return encoder, None
    content = read_checkpoint(beside, "predictor", "encoder_sha256")
    refuse(content["encoder_sha256"] != file_hash(path), f"{beside}: the predictor of another encoder; remove it")
    jepa = PointJEPA(encoder.config)
    jepa.encoder, jepa.target = encoder, copy.deepcopy(encoder.transformer)  # what the moving average has come to
    load_strictly(jepa.predictor, content["predictor"], beside)
    return encoder, jepa.eval()
