"""Train a predictor for an encoder that was kept alone, so that walkthrough.py can show what Point-JEPA predicts.

    python -m lab.predictor                    for checkpoints/small.pt, 10 minutes on one core
    python -m lab.predictor --encoder FILE     for another encoder

pretrain_jepa.py keeps the encoder only. Here that encoder is frozen, its copy makes the targets, and a new predictor
learns from the shapes, the augmentation and the blocks of pretraining. Writes ENCODER_predictor.pt and its card,
ENCODER_predictor.json; fine-tuning needs neither.
"""

import shlex
import sys
import time

import cli  # noqa: F401 - before torch, which reads the environment that it sets
import torch
import torch.nn.functional as F
from tqdm import trange

from benchmark.clouds import synthetic_clouds
from benchmark.shapes import TRAIN_SYNSETS
from cli.errors import command
from cli.flags import Parser, number
from files.checkpoints import load_encoder
from files.predictor import jepa_around, save_predictor
from files.writing import stable_seed, write_json
from loop.machine import set_up_torch
from loop.pace import adamw, set_rate
from pretrain_jepa import augment, draw_augmentation, rate_at


def draw_loss(jepa, clouds, count, generator):
    """Loss on `count` augmented clouds of `clouds` (n, N, 3), and what guessing the average, zero, costs."""
    index = torch.randint(len(clouds), (count,), generator=generator)
    views = augment(clouds[index], jepa.config, *draw_augmentation(count, generator))
    loss, targets, _ = jepa(views, generator)
    return loss, F.smooth_l1_loss(torch.zeros_like(targets), targets, beta=2.0)


@command
def main(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("--encoder", default="checkpoints/small.pt", metavar="FILE", help="the encoder, which stays as it is")
    flag("--shapes", type=number(int, 1), default=4000, metavar="N", help="synthetic shapes, those of pretraining")
    flag("--new-shapes", type=number(int, 1), default=256, metavar="N", help="others, for the loss in the card")
    flag("--steps", type=number(int, 1), default=1500, metavar="N", help="optimiser steps")
    flag("--batch", type=number(int, 2), default=32, metavar="N", help="clouds per step")
    flag("--lr", type=number(float, above=0), default=2e-3, help="peak learning rate")
    flag("--log-every", type=number(int, 1), default=100, metavar="N", help="steps between rows of the curve")
    flag("--seed", type=number(int, 0), default=0, help="of shapes, weights, augmentation and blocks")
    args = parser.parse_args(argv)
    device = set_up_torch("cpu", 1)
    torch.manual_seed(args.seed)
    jepa = jepa_around(load_encoder(args.encoder))  # in eval mode: nothing is dropped
    jepa.encoder.requires_grad_(False)
    shapes, new = (
        torch.from_numpy(synthetic_clouds(count, jepa.config.points, seed, jepa.config.up, TRAIN_SYNSETS))
        for count, seed in ((args.shapes, args.seed), (args.new_shapes, args.seed + 1))
    )
    optimizer = adamw([{"params": list(jepa.predictor.parameters())}], 0.05, graph=False)
    generator = torch.Generator().manual_seed(stable_seed("predictor", args.seed))
    started, curve = time.perf_counter(), []
    for step in (bar := trange(args.steps, desc="training the predictor", unit="step", disable=None)):
        set_rate(optimizer.param_groups[0], rate_at(step, args.steps, args.lr))
        loss, average = draw_loss(jepa, shapes, args.batch, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % args.log_every == 0:
            curve.append({"step": step + 1, "loss": loss.item(), "average": average.item()})
            bar.set_postfix(loss=f"{loss.item():.4f}")
    seconds = time.perf_counter() - started
    with torch.no_grad():
        loss, average = torch.tensor([draw_loss(jepa, new, 64, generator) for _ in range(20)]).mean(0).tolist()

    out = save_predictor(jepa, args.encoder)
    write_json(out.with_suffix(".json"), {
        "command": shlex.join(["python", "-m", "lab.predictor", *(sys.argv[1:] if argv is None else argv)]),
        "settings": vars(args), "clouds_seen": args.steps * args.batch, "seconds": round(seconds),
        "device": device.type, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "loss_on_new_shapes": loss, "loss_of_guessing_the_average": average, "curve": curve,
    })  # fmt: skip
    print(f"saved {out} after {seconds:.0f} s: loss {loss:.4f} on new shapes, guessing the average costs {average:.4f}")


if __name__ == "__main__":
    main()
