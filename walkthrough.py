"""The method step by step: one object goes through the network, every stage printed with its shape and drawn.

    python walkthrough.py                    a mug through the encoder that ships, and how that was pretrained
    python walkthrough.py --shape hammer     another object; --mesh FILE: one of your own
    python walkthrough.py --encoder FILE     another encoder, beside its _predictor.pt; or a .last.pt, the official file
    python walkthrough.py RUN                an object of a run that train.py wrote, and one of its recorded grasps

Read it beside model.py: it calls what PointEncoder, PointJEPA and GraspModel call, in the same order. A stage has the
same number in the text and in the pictures.
"""

from pathlib import Path
from typing import NamedTuple

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import numpy as np
import torch
import torch.nn.functional as F

from benchmark.shapes import CATEGORIES, procedural_mesh
from cli.errors import command, refuse
from cli.flags import Parser, file_name, number
from data import read_cloud, sample_surface
from evaluate import open_run
from files.checkpoints import check_run, load_run, load_with_predictor, shipped_encoder
from files.predictions import check_predictions
from files.reading import read_mesh
from files.writing import read_json, stable_seed
from hand.described import NO_HAND
from hand.scenes import scene_mesh
from model import PointEncoder, from_z_up, gather_points, normalize_clouds, sequence_patches, to_z_up
from pictures import sheet
from pictures.draw import object_surface, view_of_hand
from pictures.panels import write_panels

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
    faces: np.ndarray  # (F, 3)
    cloud: torch.Tensor  # (1, N, 3) m


def made_thing(shape, num_points, seed):
    """An object of a category, upright, that no dataset and no pretraining holds."""
    vertices, faces = procedural_mesh(SHAPES[shape], np.random.default_rng(stable_seed("walkthrough", shape, seed)))
    cloud = sample_surface(vertices, faces, num_points, seed)
    return Thing(f"a {shape}", vertices, faces, torch.from_numpy(cloud)[None])


def read_thing(path, num_points):
    """The object of a mesh file, in metres."""
    return Thing(Path(path).name, *read_mesh(path), torch.from_numpy(read_cloud(path, num_points))[None])


def walk_object(thing):
    """What the network gets."""
    sides = " x ".join(f"{100 * side:.1f}" for side in np.ptp(thing.vertices[thing.faces.ravel()], axis=0))
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


# ---------------------------------------------------------------- how it is pretrained
class Guess(NamedTuple):
    """What pretraining hides of a cloud, and how it is predicted."""

    order: torch.Tensor  # (G,) the path through the patches
    hidden: torch.Tensor  # (M, T) places in it, as is visible
    visible: torch.Tensor  # (C,)
    targets: torch.Tensor  # (1, M, T, D), as are predictions
    predictions: torch.Tensor


@torch.no_grad()
def walk_pretraining(jepa, seen, seed):
    """The lines of PointJEPA.forward -> `Guess`."""
    print("\nHow an encoder is pretrained (PointJEPA, without the random changes that each cloud undergoes first)")
    order = sequence_patches(seen.centers)
    say(10, "sequence_patches", order, "a path through the patches: always on to the nearest one not yet visited")
    tokens, position, centers = (gather_points(x, order) for x in (seen.tokens, seen.position, seen.centers))
    hidden, visible = jepa.sample_blocks(torch.Generator().manual_seed(seed))
    say(11, "sample_blocks", hidden, f"targets: {len(hidden)} blocks of the path are hidden; they may overlap")
    say("", "", visible, "context: this part of the path stays visible")
    targets = jepa.make_targets(tokens, position)[:, hidden]
    say(12, "make_targets", targets, "what a slow copy of the transformer, seeing all, makes of the hidden")
    context = jepa.encoder.transformer(tokens[:, visible], position[:, visible])
    say(13, "TransformerEncoder", context, "what the encoder makes of the context alone")
    predictions = jepa.predictor(context, centers[:, visible], centers[:, hidden])
    say(14, "Predictor", predictions, "the targets as they are guessed from that and from where they are")
    loss = F.smooth_l1_loss(predictions, targets, beta=2.0)
    zero = F.smooth_l1_loss(torch.zeros_like(targets), targets, beta=2.0)
    say(15, "smooth_l1_loss", loss, f"loss {loss:.4f}; guessing the average, zero, costs {zero:.4f}")
    return Guess(order[0], hidden, visible, targets, predictions)


# ---------------------------------------------------------------- a grasp
class Grasp(NamedTuple):
    """What the run makes of one recorded wrist pose."""

    weights: torch.Tensor | None  # (G,) of the patches, where the pooling attends to them
    joints: torch.Tensor  # (K, J) rad
    chances: torch.Tensor  # (K,)
    degrees: torch.Tensor  # (K,) RMS error over joints


@torch.no_grad()
def walk_grasp(run, cloud, pose, joints, alpha):
    """The lines of GraspModel.decode and its loss; cloud (1, N, 3) m, pose (1, 7), joints (1, J) rad -> `Grasp`."""
    config, weights = run.config, None
    print("\nA grasp (GraspModel, Sec. III-B to III-D)")
    say(16, "recording.npz", pose, "a recorded wrist pose: x y z in m and a unit quaternion")
    encoded = run.encode(cloud)
    if config.pool == "attention":
        attention = run.pool.attention(run.pool.query, encoded.tokens, encoded.tokens)
        weights = attention[1][0, 0]  # (G,), mean over its heads
        alike = f"(if all were alike: {1 / config.patches:.3f})"
        least, most = weights.min(), weights.max()
        say(17, "AttentionPool", weights, f"how much each patch counts, {least:.3f} to {most:.3f} {alike}")
    size = ", centroid and radius too," if getattr(run.pool, "sees_size", False) else ""
    seen = f"the head sees {run.pool.width} of the object{size} and 7 of the pose"
    say(18, "torch.cat", (1, run.pool.width + 7), seen)
    joints_hat, logits = run.decode(encoded, torch.zeros(1, dtype=torch.long), pose)
    say(19, "GraspModel.decode", joints_hat, f"joints: K = {config.k} hypotheses of J = {config.joints} angles in rad")
    chances = logits.softmax(1)[0]
    written = " ".join(f"{chance:.2f}" for chance in chances)
    say("", "", logits, f"logits, as probabilities {written}: chosen is {chances.argmax()}")
    errors = (joints_hat - joints[:, None]).square().mean(2)[0]  # (K,) rad²
    degrees, winner = errors.sqrt().rad2deg(), errors.argmin()
    rms = " ".join(f"{error:.0f}" for error in degrees)
    say(20, "argmin", degrees, f"RMS error over joints {rms} degrees: the winner is {winner} (Eq. 1)")
    loss = run.loss(joints_hat, logits, joints, alpha)
    terms = " (Eq. 2), the sum of" if config.loss == "wta" else ""
    say(21, f"{config.loss}_loss", loss, f"loss {loss:.4f}{terms}")
    if terms:
        choice = alpha * F.cross_entropy(logits[0], winner).abs()  # abs makes 0 of the -0 of K = 1
        say("", "", "", f"     {errors[winner]:.4f}  error of the winner")
        say("", "", "", f"     {choice:.4f}  {alpha:g} x -log of its probability")
    return Grasp(weights, joints_hat[0], chances, degrees)


@torch.no_grad()
def open_grasp(folder, seed, root=None):
    """A run and one grasp of its validation: model, alpha, `Thing`, pose (1, 7), joints (1, J) rad, joint names."""
    check_run(folder)
    run = load_run(folder)
    data, split = open_run(folder, root, model=run)
    alpha = read_json(Path(folder) / "config.json")["settings"]["alpha"]
    rows = split.rows["val"]
    refuse(not len(rows), f"{folder}: its data has no validation grasps to show; train on more objects")
    row = np.random.default_rng(seed).choice(rows)
    scene = data.scene[row]
    arrays = data.clouds[scene], data.poses[row], data.joints[row]
    cloud, pose, joints = (torch.from_numpy(array[None]) for array in arrays)
    check_predictions(folder, *run(cloud, torch.zeros(1, dtype=torch.long), pose))
    thing = Thing(data.scenes[scene], *read_mesh(scene_mesh(data, scene)), cloud)
    return run, alpha, thing, pose, joints, data.hand


# ---------------------------------------------------------------- command line
def build_parser():
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", metavar="RUN", help="folder of a run, as train.py printed it")
    flag("--data", metavar="ROOT", help="the dataset of the RUN, where it has moved since the training")
    flag("--shape", choices=tuple(SHAPES), metavar="NAME", help=f"the object, of {', '.join(SHAPES)} (default: mug)")
    flag("--mesh", metavar="FILE", help="an object of your own: a mesh in metres, z up")
    flag("--encoder", metavar="FILE", help="a pretrained encoder (default: the one that ships)")
    flag("--out", type=file_name(".png"), metavar="FILE", default="walkthrough.png", help="where pictures go (.png)")
    flag("--seed", type=number(int, 0), default=13, help="of the object's form, of the blocks, of the run's grasp")
    return parser


def walk_alone(args):
    """An object by itself: encoder and pretraining; -> panels of the sheet."""
    path = args.encoder or shipped_encoder("small")
    encoder, jepa = load_with_predictor(path)
    size = encoder.config.points
    thing = read_thing(args.mesh, size) if args.mesh else made_thing(args.shape or "mug", size, args.seed)
    surface = object_surface(thing.vertices, thing.faces)
    walk_object(thing)
    photo, panels = sheet.object_panels(surface, thing.cloud[0], sheet.VIEW)
    seen = walk_encoder(encoder, thing.cloud)
    check_predictions(path, seen.features)
    panels += sheet.encoder_panels(photo, seen)
    if jepa is None:
        print("\nThis encoder was kept without its predictor, so how it was pretrained is not shown")
        return panels
    return panels + sheet.pretraining_panels(photo, seen, walk_pretraining(jepa, seen, args.seed))


def walk_run(args):
    """An object of a run and a grasp of it; -> panels of the sheet."""
    run, alpha, thing, pose, joints, hand = open_grasp(args.run, args.seed, args.data)
    surface = object_surface(thing.vertices, thing.faces)
    view = view_of_hand(surface, np.concatenate((pose[0], joints[0])), hand) if hand else sheet.VIEW
    walk_object(thing)
    photo, panels = sheet.object_panels(surface, thing.cloud[0], view)
    seen = None
    if isinstance(run.encoder, PointEncoder):
        seen = walk_encoder(run.encoder, thing.cloud)
        panels += sheet.encoder_panels(photo, seen)
    grasp = walk_grasp(run, thing.cloud, pose, joints, alpha)
    hands = sheet.hand_panels(thing, photo, pose[0], joints[0], grasp, hand) if hand else []
    weights = sheet.weights_panels(photo, seen, grasp.weights) if grasp.weights is not None and seen else []
    if not hand:
        print(f"\nNo hands in the pictures: {NO_HAND}")
    return panels + hands[:1] + weights + hands[1:]


@command
def main(argv=None):
    args = build_parser().parse_args(argv)
    of_its_own = "a RUN has its own encoder and objects; leave out --shape, --mesh and --encoder"
    refuse(args.run and (args.shape or args.mesh or args.encoder), of_its_own)
    refuse(args.data and not args.run, "--data goes with a RUN; leave it out")
    refuse(args.shape and args.mesh, "--shape does not go with --mesh; leave one out")
    panels = walk_run(args) if args.run else walk_alone(args)
    write_panels(panels, args.out)
    print(f"\ndrawn: {args.out}")
    return [title for title, _ in panels]


if __name__ == "__main__":
    main()
