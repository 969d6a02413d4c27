"""The method step by step: one object goes through the network, every stage printed with its shape and drawn.

    python walkthrough.py                    a mug through the encoder that ships, and how that was pretrained
    python walkthrough.py --shape hammer     another object; --mesh FILE: one of your own
    python walkthrough.py --encoder FILE     another encoder; FILE.last.pt and the official file hold its predictor too
    python walkthrough.py --patchings        instead: what --patching of train.py does with the object (variants.py)
    python walkthrough.py RUN                an object of a run that train.py wrote, and one of its recorded grasps

Read it beside model.py: it calls what PointEncoder, PointJEPA and GraspModel call, in the same order. A stage has the
same number in the text and in the pictures.
"""

import copy
import dataclasses
from pathlib import Path
from typing import NamedTuple

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
import torch.nn.functional as F

from benchmark.shapes import CATEGORIES, procedural_mesh
from cli.errors import UserError, command
from cli.flags import Parser, number
from data import read_cloud, sample_surface
from evaluate import open_run
from files.checkpoints import check_run, jepa_from, kind_of, load_encoder, load_run, read_checkpoint
from files.reading import mesh_in, read_array, read_mesh
from files.writing import read_json, stable_seed
from hand.kinematics import JOINT_NAMES
from model import (
    POOLS,
    Nearest,
    AttentionPool,
    PointEncoder,
    PointJEPA,
    from_z_up,
    gather_points,
    normalize_clouds,
    sequence_patches,
    to_z_up,
)
from pictures import sheet
from pictures.draw import view_of_hand
from variants import TEMPERATURES, HandPool, local_shape

SHIPPED = Path(__file__).parent / "checkpoints" / "small.pt"
SHAPES = {maker.__name__: synset for synset, (maker, *_) in CATEGORIES.items()}


def say(stage, name, shape, sentence):
    """One line of the walk: its number, the name in the code, the shape of what comes out, what it is."""
    shape = tuple(shape.shape) if hasattr(shape, "shape") else shape
    print(f"{stage:>2}  {name:<21}  {shape!s:<14}  {sentence}")


# ---------------------------------------------------------------- the object


class Thing(NamedTuple):
    """One object, and what the network gets of it."""

    name: str
    vertices: np.ndarray  # (V, 3) m
    faces: np.ndarray | None  # (F, 3); None where the object came as a cloud
    cloud: torch.Tensor  # (1, N, 3) m


def made_thing(shape, num_points, seed):
    """An object of a category, upright, that no dataset and no pretraining holds."""
    vertices, faces = procedural_mesh(SHAPES[shape], np.random.default_rng(stable_seed("walkthrough", shape, seed)))
    cloud = sample_surface(vertices, faces, num_points, seed)
    return Thing(f"a {shape}", vertices, faces, torch.from_numpy(cloud)[None])


def read_thing(path, num_points):
    """The object of a mesh file or of an .npy cloud, in metres."""
    cloud = read_cloud(path, num_points)
    mesh = (read_array(path, 3), None) if Path(path).suffix.lower() == ".npy" else read_mesh(path)
    return Thing(Path(path).name, *mesh, torch.from_numpy(cloud)[None])


def walk_object(thing):
    """What the network gets."""
    corners = thing.vertices if thing.faces is None else thing.vertices[thing.faces.ravel()]
    sides = " x ".join(f"{100 * side:.1f}" for side in np.ptp(corners, axis=0))
    print("The object (data.py)")
    say(1, "vertices", thing.vertices, f"{thing.name}, {sides} cm, z up")
    say(2, "sample_surface", thing.cloud, "points of its surface, uniform by area: all that the network sees of it")


# ---------------------------------------------------------------- the encoder


class Seen(NamedTuple):
    """What the encoder makes of a cloud on its way."""

    centers: torch.Tensor  # (1, G, 3) in units of the encoder, as are patches
    patches: torch.Tensor  # (1, G, S, 3)
    tokens: torch.Tensor  # (1, G, D)
    position: torch.Tensor  # (1, G, D)
    features: torch.Tensor  # (1, G, D)
    centers_m: torch.Tensor  # (G, 3) m, in the frame of the mesh


@torch.no_grad()
def walk_encoder(encoder, cloud):
    """The lines of GraspModel.encode and PointEncoder.forward, cloud (1, N, 3) m -> `Seen`."""
    config = encoder.config
    print("\nThe encoder (PointEncoder, Sec. III-B and III-C)")
    units, centroid, radius = normalize_clouds(cloud, config)
    units = from_z_up(units, config.up)
    centred = "the centroid moves to 0, and " if config.normalize == "unit_sphere" else ""
    say(3, "normalize_clouds", units, f"{centred}{100 * radius.item():.1f} cm become 1")
    patches, centers = encoder.group(units)
    say(4, "farthest_point_sample", centers, "centers: each is the point farthest from those before it")
    ball = config.radius / config.scale if config.normalize == "metric" else config.radius
    near = "nearest each center" if config.group == "knn" else f"within {ball * radius.item():.3f} m of each center"
    say(5, "group_points", patches, f"patches: the {config.patch_size} points {near}, relative to it")
    say(6, "patches[0, 0]", patches[0, 0], "one of them, all that the next stage sees of it")
    tokens = encoder.embed(patches)
    say(7, "PatchEmbed", tokens, "tokens: one MLP for every point, then the maximum over each patch")
    position = encoder.position(centers)
    say(8, "position_encoding", position, "where the centers are; every block of the transformer adds it")
    features = encoder.transformer(tokens, position)
    say(9, "TransformerEncoder", features, f"features: in {config.depth} blocks every patch has looked at all others")
    centers_m = to_z_up(centers, config.up) * radius[:, None] + centroid[:, None]
    return Seen(centers, patches, tokens, position, features, centers_m[0])


@torch.no_grad()
def walk_patchings(config, cloud):
    """Where centers lie and how far patches reach with every --patching, for an encoder of that configuration.

    cloud (1, N, 3) m -> surface variation (N,), {patching: (centers (G, 3) m, patches (G, S, 3) m)}.
    """
    print("\nPatches that know the surface (variants.py)")
    units, centroid, radius = normalize_clouds(cloud, config)
    _, variation = local_shape(units, Nearest())
    say(3, "local_shape", variation, f"surface variation: 0 where flat, here up to {variation.max():.2f}")
    about = {
        "fps": "Point-JEPA's: farthest points and their nearest neighbours",
        "curvature": "centers lie up to four times closer where the surface bends",
        "overlap": "patches reach as far as twice their points, every other one is taken",
        "multiscale": "every other patch reaches as far as four times its points",
    }
    found = {}
    for stage, name in enumerate(about, 4):
        encoder = PointEncoder(dataclasses.replace(config, patching=name, group="knn", tokenizer="pointnet"))
        patches, centers = encoder.group(units)
        say(stage, name, patches, about[name])
        found[name] = centers[0] * radius + centroid, patches[0] * radius
    return variation[0], found


# ---------------------------------------------------------------- how it is pretrained


def open_jepa(path, seed):
    """The PointJEPA of a checkpoint, or of an encoder alone; and whether the checkpoint held its predictor."""
    content = read_checkpoint(path)
    if kind_of(content, path) == "encoder":
        return jepa_around(load_encoder(path), seed), False
    return jepa_from(content, path), True


def jepa_around(encoder, seed):
    """A PointJEPA with this encoder, as at the first step of a pretraining that starts from it."""
    torch.manual_seed(seed)
    jepa = PointJEPA(encoder.config)
    jepa.encoder, jepa.target = encoder, copy.deepcopy(encoder.transformer)
    return jepa.eval()


@torch.no_grad()
def walk_pretraining(jepa, seen, trained, seed):
    """The lines of PointJEPA.forward -> order of the patches (G,), and places in it: targets (M, T), context (C,)."""
    print("\nHow an encoder is pretrained (PointJEPA, without the random changes that each cloud undergoes first)")
    order = sequence_patches(seen.centers)
    say(10, "sequence_patches", order, "a path through the patches: always on to the nearest one not yet visited")
    tokens, position, centers = (gather_points(x, order) for x in (seen.tokens, seen.position, seen.centers))
    hidden, visible = jepa.sample_blocks(torch.Generator().manual_seed(seed))
    say(11, "sample_blocks", hidden, f"targets: {len(hidden)} blocks of the path are hidden; they may overlap")
    say("", "", visible, "context: this part of the path stays visible")
    targets = jepa.make_targets(tokens, position)[:, hidden]
    say(12, "make_targets", targets, "what a slowly following copy of the encoder, seeing all, makes of the hidden")
    context = jepa.encoder.transformer(tokens[:, visible], position[:, visible])
    say(13, "TransformerEncoder", context, "what the encoder makes of the context alone")
    predictions = jepa.predictor(context, centers[:, visible], centers[:, hidden])
    say(14, "Predictor", predictions, "the targets as they are guessed from that and from where they are")
    loss = F.smooth_l1_loss(predictions, targets, beta=2.0)
    zero = F.smooth_l1_loss(torch.zeros_like(targets), targets, beta=2.0)
    say(15, "smooth_l1_loss", loss, f"loss {loss:.4f}; guessing the average, zero, costs {zero:.4f}")
    if not trained:
        say("", "", "", "(an encoder alone was kept: its copy equals it, the predictor is untrained)")
    return order[0], hidden, visible


# ---------------------------------------------------------------- a grasp


def patch_weights(run, encoded, pose):
    """How much the run's pooling counts each patch, mean over its heads, (1, G); None where it does not attend."""
    if isinstance(run.pool, AttentionPool):
        return run.pool.attention(run.pool.query, encoded.tokens, encoded.tokens)[1][:, 0]
    if isinstance(run.pool, HandPool):
        scores = []
        hook = run.pool.score.register_forward_hook(lambda layer, inputs, output: scores.append(output))
        run.pool(encoded, torch.zeros(1, dtype=torch.long), pose)
        hook.remove()
        return scores[0].softmax(1).mean(2)
    return None


def loss_terms(run, joints_hat, logits, joints, alpha):
    """The terms whose sum is GraspModel.loss for one grasp: [(value, what it is)]."""
    errors, chances = (joints_hat - joints[:, None]).square().mean(2)[0], logits.softmax(1)[0]  # (K,) each
    if run.config.loss == "mdn":
        return [(run.loss(joints_hat, logits, joints, alpha), "-log of the mixture's density, per joint")]
    if run.config.loss in ("relaxed", "annealed"):
        return [(run.loss(joints_hat, logits, joints, alpha), "errors of all hypotheses, weighted, and of the choice")]
    if run.config.loss == "hedged":
        expected = alpha * (chances * errors).sum()
        first, rest = (errors[0], "error of 0, the average"), (errors[1:].min(), "least error of the others")
        return [first, rest, (expected, f"{alpha:g} x expected error")]
    winner = errors.argmin()
    chosen = alpha * F.cross_entropy(logits[0], winner).abs()  # never negative; abs makes 0 of the -0 of K = 1
    return [(errors[winner], "error of the winner"), (chosen, f"{alpha:g} x -log of its probability")]


class Grasp(NamedTuple):
    """What the run makes of one recorded wrist pose."""

    weights: torch.Tensor | None  # (1, G) of the patches
    joints: torch.Tensor  # (K, J) rad
    chances: torch.Tensor  # (K,)
    degrees: torch.Tensor  # (K,) RMS error over joints
    terms: list  # [(value, what it is)] of the loss
    loss: torch.Tensor  # ()


@torch.no_grad()
def walk_grasp(run, cloud, pose, joints, alpha):
    """The lines of GraspModel.decode and its loss; cloud (1, N, 3) m, pose (1, 7), joints (1, J) rad -> `Grasp`."""
    config, pool = run.config, run.pool
    print("\nA grasp (GraspModel, Sec. III-B to III-D)")
    say(16, "recording.npz", pose, "a recorded wrist pose: x y z in m and a unit quaternion")
    encoded = run.encode(cloud)
    weights = patch_weights(run, encoded, pose)
    if weights is not None:
        least, most = weights.min(), weights.max()
        alike = f"(if all were alike: {1 / config.patches:.3f})"
        say(17, type(run.pool).__name__, weights, f"how much each patch counts, {least:.3f} to {most:.3f} {alike}")
    width = run.head[0].in_features
    size = 4 * getattr(pool, "sees_size", False)
    embedding = getattr(pool, "widths", 0) * config.width
    parts = [(embedding, "embedding"), (size, "centroid and radius"), (7, "pose")]
    parts.insert(2, (width - sum(size for size, _ in parts), "distances to the surface"))
    say(18, "torch.cat", (1, width), " + ".join(f"{size} {name}" for size, name in parts if size))
    joints_hat, logits = run.decode(encoded, torch.zeros(1, dtype=torch.long), pose)
    say(19, "GraspModel.decode", joints_hat, f"joints: K = {config.k} hypotheses of J = {config.joints} angles in rad")
    chances = logits.softmax(1)[0]
    say("", "", logits, "logits, as probabilities " + " ".join(f"{chance:.2f}" for chance in chances))
    degrees = (joints_hat - joints[:, None]).square().mean(2).sqrt().rad2deg()[0]
    rms = " ".join(f"{error:.0f}" for error in degrees)
    say(20, "argmin", degrees, f"RMS error over joints {rms} degrees: the winner is {degrees.argmin()} (Eq. 1)")
    loss = run.loss(joints_hat, logits, joints, alpha)
    terms = loss_terms(run, joints_hat, logits, joints, alpha)
    say(21, f"{config.loss}_loss", loss, f"loss {loss:.4f}, the sum of" + " (Eq. 2)" * (config.loss == "wta"))
    for value, what in terms:
        say("", "", "", f"     {value:.4f}  {what}")
    return Grasp(weights, joints_hat[0], chances, degrees, terms, loss)


def open_grasp(folder, seed):
    """A run and one grasp of its validation: model, alpha, `Thing`, pose (1, 7), joints (1, J) rad, joint names."""
    check_run(folder)
    run, path = load_run(folder), Path(folder) / "config.json"
    if run.config.loss == "annealed":
        run.loss.temperature.fill_(TEMPERATURES[-1])  # as at the end of its training
    alpha = read_json(path, "settings")["settings"].get("alpha")
    if not isinstance(alpha, (int, float)):
        raise UserError(f"{path}: names no alpha; give a folder that train.py wrote")
    data, split = open_run(folder)
    if not len(split.rows["val"]):
        raise UserError(f"{folder}: its data has no validation grasps to show; train on more objects")
    row = np.random.default_rng(seed).choice(split.rows["val"])
    name = data.scenes[data.scene[row]]
    vertices, faces = read_mesh(mesh_in(Path(data.root) / name))
    recorded = data.clouds[data.scene[row]], data.poses[row], data.joints[row]
    cloud, pose, joints = (torch.from_numpy(array[None]) for array in recorded)
    return run, alpha, Thing(name, vertices, faces, cloud), pose, joints, data.joint_names


# ---------------------------------------------------------------- command line


def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    flag("--shape", choices=tuple(SHAPES), metavar="NAME", help=f"the object, of {', '.join(SHAPES)} (default: mug)")
    flag("--mesh", metavar="FILE", help="an object of your own: a mesh or .npy cloud (n, 3), in metres, z up")
    patchings = "draw what the patchings of variants.py make of the object, and nothing else"
    flag("--patchings", action="store_true", help=patchings)
    flag("--encoder", metavar="FILE", help="a pretrained encoder (default: the one that ships)")
    flag("--out", metavar="FILE", default="walkthrough.png", help="where the pictures go (.png)")
    flag("--seed", type=number(int, 0), default=13, help="of the object's form, of the blocks, of the run's grasp")
    return parser


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    if args.run and (args.shape or args.mesh or args.encoder):
        raise UserError("a RUN has its own encoder and objects; leave out --shape, --mesh and --encoder")
    if args.run and args.patchings:
        raise UserError("--patchings goes with an object of its own; leave RUN out")
    if args.shape and args.mesh:
        raise UserError("--shape does not go with --mesh; leave one out")
    if args.run:
        run, alpha, thing, pose, joints, joint_names = open_grasp(args.run, args.seed)
        jepa, trained = POOLS[run.config.pool].encoder is PointEncoder and jepa_around(run.encoder, args.seed), False
    else:
        jepa, trained = open_jepa(args.encoder or SHIPPED, args.seed)
        size = jepa.config.points
        thing = read_thing(args.mesh, size) if args.mesh else made_thing(args.shape or "mug", size, args.seed)
    has_hand = bool(args.run) and joint_names == list(JOINT_NAMES)
    surface = sheet.surface_of(thing.vertices, thing.faces)
    view = view_of_hand(surface, pose[0], joints[0]) if has_hand else sheet.VIEW
    walk_object(thing)
    photo, panels = sheet.object_panels(surface, thing.cloud[0], view)
    if args.patchings:
        panels = sheet.patching_panels(photo, surface, thing.cloud[0], *walk_patchings(jepa.config, thing.cloud))
    elif jepa:
        seen = walk_encoder(jepa.encoder, thing.cloud)
        panels += sheet.encoder_panels(photo, surface, seen)
        blocks = walk_pretraining(jepa, seen, trained, args.seed)
        panels += sheet.pretraining_panels(photo, surface, seen, *blocks)
    if args.run:
        grasp = walk_grasp(run, thing.cloud, pose, joints, alpha)
        hands = sheet.hand_panels(surface, view, pose[0], joints[0], grasp) if has_hand else []
        panels += hands[:1]
        if grasp.weights is not None and jepa:
            panels += sheet.weights_panels(photo, surface, seen, grasp.weights[0])
        panels += hands[1:] + sheet.loss_panels(grasp)
        if not has_hand:
            print("\nNo hands in the pictures: the joints of this run are not those of hand/kinematics.py")
    sheet.draw(panels, args.out)
    print(f"\ndrawn: {args.out}")


if __name__ == "__main__":
    main()
