"""Files of weights, read without trust: plain tensors and plain types, every key checked, no code in them ever run.

    load_run(folder)            the GraspModel of a run of train.py
    load_encoder(path)          the PointEncoder of any checkpoint without labels
    load_with_predictor(path)   and the PointJEPA that it was pretrained in

Skip this file when you read for the method. It also reads the file that Point-JEPA's authors publish (Lightning's
format, other names, other layouts) without Lightning.
"""

import copy
import dataclasses
import hashlib
import io
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import torch

from cli.errors import UserError, refuse
from files.config import config_from, listed
from files.writing import atomic
from loop.fast import speed_up
from model import PRETRAINING, GraspModel, ModelConfig, PointEncoder, PointJEPA
from variants import merged, put_hand

SHIPPED = Path(__file__).parents[1] / "checkpoints"  # a file per preset that has one


def shipped_encoder(preset):
    """Path of the encoder that ships for a preset."""
    path = SHIPPED / f"{preset}.pt"
    have = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.pt") if "_" not in p.stem)) or "none"  # no predictors
    none = f"--init jepa: no encoder ships for --preset {preset} (presets with weights: {have})"
    refuse(not path.exists(), f"{none}; give --jepa-ckpt FILE")
    return path


def check_run(folder, which="best"):
    """Stop with what to give instead where a folder is not that of a run, or of one that has nothing to show yet."""
    folder = Path(folder)
    if not (folder / "config.json").exists():
        runs = sorted(path.parent.name for path in folder.glob("*/config.json"))
        refuse(runs, f"{folder}: holds {len(runs)} runs and is none; give one of these: {' '.join(runs[:3])}")
        raise UserError(f"{folder}: no run (no config.json in it); give the folder that train.py printed")
    early = f"{folder}: this run has not come to its first validation; go on with it by --resume first"
    refuse(not (folder / "best.pt").exists(), early)
    gone = f"--checkpoint {which}: {folder} has no {which}.pt; train.py keeps it with --keep-last"
    refuse(not (folder / f"{which}.pt").exists(), gone)


def save_checkpoint(path, content):
    """Write a dict of tensors and plain types atomically."""
    buffer = io.BytesIO()  # torch.save to a full disk is an internal error, not an OSError
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_checkpoint(path, *keys):
    """Read any .pt or .ckpt file into a dict of tensors and plain types that has `keys`; no code in it ever runs."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol: what is not read is an error anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a checkpoint") from None
    except pickle.UnpicklingError:  # a class that torch does not trust: read what there is besides it
        content = read_inertly(path)
    except Exception as error:
        raise UserError(f"{path}: broken or cut short ({type(error).__name__}); fetch or make it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} where a checkpoint holds a dict; give another file")
    missing = set(keys) - set(content)
    refuse(missing, f"{path}: not such a checkpoint, has no {listed(missing)}; give one that these scripts wrote")
    return content


class Inert(dict):
    """Stands for an object of another class: takes what a pickle does to it, keeps only dict items."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def ignore(self, *args):
        pass

    append = extend = add = __setstate__ = ignore


class InertUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain containers of torch's zip format; every other global becomes an Inert class."""

    DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
              "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
              "ByteStorage": torch.uint8, "BoolStorage": torch.bool}  # fmt: skip

    def __init__(self, archive):
        self.archive, self.unknown = archive, set()
        self.root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        super().__init__(archive.open(f"{self.root}/data.pkl"))

    def persistent_load(self, reference):
        _, dtype, key, _, count = reference
        data = self.archive.read(f"{self.root}/data/{key}")
        return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def find_class(self, module, name):
        def tensor(data, offset, size, stride, *_):
            return data.as_strided(size, stride, offset)

        known = {"torch._utils._rebuild_tensor_v2": tensor, "collections.OrderedDict": Inert,
                 "torch._utils._rebuild_parameter": lambda data, *_: data}  # fmt: skip
        if f"{module}.{name}" in known:
            return known[f"{module}.{name}"]
        if module == "torch" and name in self.DTYPES:
            return self.DTYPES[name]
        self.unknown.add(f"{module}.{name}")
        return type(name, (Inert,), {})


def read_inertly(path):
    """Read a checkpoint that names classes of other packages; what is of such a class is dropped, with a warning."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpickler = InertUnpickler(archive)
            content = unpickler.load()
        weights = content.get("state_dict", {}).values()
        content = without_inert(content)
    except Exception as error:
        kind = type(error).__name__
        raise UserError(f"{path}: broken, or not a PyTorch checkpoint ({kind}); fetch or make it again") from None
    names = ", ".join(sorted(unpickler.unknown))
    if not all(isinstance(value, torch.Tensor) for value in weights):
        raise UserError(f"{path}: state_dict holds other things than tensors ({names}); fetch or make it again")
    refuse(not content, f"{path}: holds objects of code ({names}) and nothing else; give another file")
    print(f"warning: {path}: ignored values of classes that are not tensors or plain types: {names}", file=sys.stderr)
    return content


def without_inert(value):
    """A copy of nested containers without objects of unknown class; a dict of unknown class stays, as a dict."""

    def plain(item):
        return not isinstance(item, type) and (type(item) is Inert or not isinstance(item, Inert) or len(item) > 0)

    if isinstance(value, dict):
        return {key: without_inert(item) for key, item in value.items() if plain(item)}
    if isinstance(value, (list, tuple)):
        return [without_inert(item) for item in value if plain(item)]
    return value


def build(make, stored, path):
    """`make(config)` with fast layers, for the configuration `stored` in a checkpoint; a fault in it names `path`."""
    try:
        return speed_up(make(config_from(stored)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def kind_of(content, path):
    """Which checkpoint with an encoder `read_checkpoint` returned: "jepa", "official", "encoder" or "run"."""
    for key, kind in (("jepa", "jepa"), ("state_dict", "official"), ("encoder", "encoder"), ("model", "run")):
        if key in content:
            return kind
    other = f"{path}: no checkpoint of an encoder, of a pretraining or of a run; it holds {listed(content)}"
    raise UserError(f"{other}; give one that pretrain_jepa.py or train.py wrote")


def check_tensors(state, path):
    """Stop with one line if `state` is not a dict of tensors."""
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    whole = named and all(isinstance(value, torch.Tensor) for value in state.values())
    refuse(not whole, f"{path}: its weights are not a dict of tensors; give another file")


def check_keys(expected, state, path):
    """Stop with one line if `state` is not a dict of tensors under exactly the expected names."""
    check_tensors(state, path)
    missing, leftover = set(expected) - set(state), set(state) - set(expected)
    wrong = f"missing keys: {listed(missing)}; leftover keys: {listed(leftover)}"
    refuse(missing or leftover, f"{path}: {wrong}; give a checkpoint of this network")


def load_strictly(module, state, path):
    """Load weights into `module` and put it in eval mode; a wrong key, shape or number is an error that names it."""
    expected = module.state_dict()
    check_keys(expected, state, path)
    wrong = [f"{name} {tuple(state[name].shape)}" for name in expected if state[name].shape != expected[name].shape]
    refuse(wrong, f"{path}: shapes contradict its settings: {listed(wrong)}; fetch or make it again")
    wild = [name for name, values in state.items() if not torch.isfinite(values).all()]
    wild += [name for name, values in state.items() if name.endswith("running_var") and (values < 0).any()]
    refuse(wild, f"{path}: numbers that are not finite, or negative variances: {listed(wild)}; fetch or make it again")
    module.load_state_dict(state)
    return module.eval()


# ---------------------------------------------------------------- the official Point-JEPA file, in our names
OFFICIAL_NAMES = {  # part of our names -> of those in the official checkpoint
    "encoder.embed.first.": "tokenizer.embedding.encoder.first_conv.",
    "encoder.embed.second.": "tokenizer.embedding.encoder.second_conv.",
    "encoder.position.": "positional_encoding.", "encoder.transformer.": "student.", "target.": "teacher.ema_model.",
    "predictor.transformer.": "predictor.predictor.", "predictor.position.": "predictor.positional_encoding.",
    "predictor.inward.": "predictor.predictor_embed.", "predictor.outward.": "predictor.predictor_proj.",
    ".mlp.0.": ".mlp.fc1.", ".mlp.3.": ".mlp.fc2.",
}  # fmt: skip


def official_config(content, path):
    """Fields of a ModelConfig from an official checkpoint: sizes by tensor shapes, the rest by hyper-parameters."""
    state, hyper = content["state_dict"], content.get("hyper_parameters") or {}
    check_tensors(state, path)
    kind = type(hyper).__name__
    refuse(not isinstance(hyper, dict), f"{path}: its hyper_parameters are a {kind}, not a dict; fetch it again")

    def width(name):
        refuse(name not in state or state[name].ndim == 0, f"{path}: not a Point-JEPA checkpoint, missing {name}")
        return len(state[name])

    def depth(prefix):
        return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})

    pointnet, radius = "tokenizer.embedding.encoder.", hyper.get("tokenizer_group_radius")
    sizes = {"width": width("student.norm.weight"), "depth": depth("student.blocks."),
             "w1": width(pointnet + "first_conv.0.weight"), "w2": width(pointnet + "first_conv.3.weight"),
             "w3": width(pointnet + "second_conv.0.weight"), "predictor_depth": depth("predictor.predictor.blocks."),
             "predictor_width": width("predictor.predictor_embed.weight")}  # fmt: skip
    settings = {"points": hyper.get("transformation_subsample_points", 1024),
                "patches": hyper.get("tokenizer_num_groups", 64), "patch_size": hyper.get("tokenizer_group_size", 32),
                "group": "knn" if radius is None else "ball", "radius": radius or 0.0,
                "normalize": "unit_sphere", "up": "y", "target_norm": "layer", "context_low": 0.4, "context_high": 0.75,
                "heads": hyper.get("encoder_heads", 6),
                "predictor_heads": hyper.get("predictor_heads", 6)}  # fmt: skip
    needed = {"encoder_add_pos_at_every_layer": True, "predictor_add_target_pos": True,
              "predictor_add_pos_at_every_layer": False}  # fmt: skip
    for name, value in needed.items():
        other = hyper.get(name, value)
        refuse(other != value, f"{path}: its setting {name} is {other}, which is not read here; give another file")
    return sizes | settings


def official_weights(state, ours, path):
    """The tensors of an official checkpoint under our names (`ours`), less what the original stores but never uses."""
    names = {name: name for name in ours}  # ours -> theirs
    for ours, theirs in OFFICIAL_NAMES.items():
        names = {name: official.replace(ours, theirs) for name, official in names.items()}
    copies = [name.replace("ema_model", "online_model") for name in names.values() if "ema_model" in name]
    unused = ["mask_token", "predictor.predictor_norm.weight", "predictor.predictor_norm.bias", "teacher.initted"]
    check_keys([*names.values(), *copies, *unused, "teacher.step"], state, path)
    # its linear layers over points are Conv1d layers: weights (out, in, 1)
    return {name: state[theirs].flatten(1) if state[theirs].ndim == 3 and "_conv." in theirs else state[theirs]
            for name, theirs in names.items()}  # fmt: skip


# ---------------------------------------------------------------- networks
def run_content(model):
    """What a checkpoint must hold to be a GraspModel again, see `load_run`."""
    return {
        "config": dataclasses.asdict(model.config), "model": model.state_dict(),
        "joint_names": model.joint_names, "joint_range": model.joint_range, "hand": model.hand,
    }  # fmt: skip


def load_run(folder, which="best"):
    """The GraspModel of a run folder, `best` or `last`, in eval mode.

    Its `joint_names` (J strings), `joint_range` (lowest and highest angles of its training, 2 lists of J rad) and
    `hand` (what hand/described.py makes one of, None for the benchmark's) are None in files that lack them.
    """
    path = Path(folder) / f"{which}.pt"
    content = read_checkpoint(path, "model")
    check_tensors(content["model"], path)
    weights = merged(content["model"])  # last.pt may hold adapters
    model = load_strictly(build(GraspModel, content.get("config"), path), weights, path)
    model.joint_names, model.joint_range = content.get("joint_names"), content.get("joint_range")
    try:
        put_hand(model, content.get("hand"))
    except Exception as error:  # whatever it is that stands for a hand
        raise UserError(f"{path}: holds no description of a hand ({error!r}); fetch or make it again") from None
    return model


def jepa_from(content, path):
    """The PointJEPA in what `read_checkpoint` returned of a pretraining or the official file, in eval mode."""
    if kind_of(content, path) == "official":
        stored = dataclasses.asdict(ModelConfig(**PRETRAINING)) | official_config(content, path)
        jepa = build(PointJEPA, stored, path)
        weights = official_weights(content["state_dict"], jepa.state_dict(), path)
    else:
        jepa, weights = build(PointJEPA, content.get("config"), path), content["jepa"]
    return load_strictly(jepa, weights, path)


def load_encoder(path):
    """The PointEncoder of an encoder's or a pretraining's checkpoint or of the official file, in eval mode."""
    content = read_checkpoint(path)
    kind = kind_of(content, path)
    if kind in ("jepa", "official"):
        return jepa_from(content, path).encoder
    refuse(kind == "run", f"{path}: is of a run, and so trained with labels; give a pretrained encoder")
    return load_strictly(build(PointEncoder, content.get("config"), path), content["encoder"], path)


# ---------------------------------------------------------------- ENCODER_predictor.pt beside ENCODER.pt, for the walk
def predictor_path(encoder_path):
    """Where the predictor that an encoder was pretrained with is kept."""
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
