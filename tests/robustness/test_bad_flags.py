"""Flags that no script can mean: each is named in one clear line, and nothing is written."""

import numpy as np
import torch
from rules import rejected

import data
import pretrain_jepa
import splits
import synthesize
import train

TINY = "--preset tiny --steps 2 --batch 2 --quiet"  # of the pretraining
WHOLE_NUMBERS = {  # flags that take whole numbers of at least 1, and how many of the values below each must refuse
    "train": ("k points patches patch-size steps objects-per-batch grasps-per-object eval-every save-every threads", 4),
    "pretrain": ("steps batch points patches patch-size save-every log-every num-clouds threads", 3),
}
NO_WHOLE_NUMBERS = ("0", "-1", "1.5", "x", "nan", "inf", "")
NO_AMOUNTS = ("-1", "-1e-9", "nan", "inf", "x", "")
WRONG = {  # script: flags, and as the last word what the message must name
    "train": """
        --patches 65                            patches
        --patch-size 65                         patch_size
        --points 7                              points
        --group ball                            radius
        --jepa-ckpt x.pt                        --jepa-ckpt
        --init jepa                             --jepa-ckpt
        --init jepa --jepa-ckpt nowhere.pt      nowhere.pt
        --warmup 1.5                            --warmup
        --loss hedged --k 1                     hedged
        --resume --overwrite                    --overwrite
        --json x.json                           --benchmark
        --precision tf32                        --precision
        --unknown                               --unknown
        extra                                   extra
        --from nowhere.json                     nowhere.json
        --seed -1                               --seed""",
    "pretrain": """
        --batch 1               --batch
        --batch 99              --batch
        --lr 0                  --lr
        --lr nan                --lr
        --tau 1.1               --tau
        --tau -0.1              --tau
        --up x                  --up
        --normalize none        --normalize
        --patches 65            patches
        --clouds nowhere        nowhere
        --synsets 03948459      --synsets
        --preset huge           --preset
        --patches 1             --patches
        --weight-decay -1       --weight-decay
        --device tpu            --device
        --precision tf32        --precision""",
    "data": """
        --points 0          --points
        --points x          --points
        --min-score nan     --min-score
        --unknown           --unknown
        extra               extra""",
    "synthesize": """
        --preset huge       --preset
        --meshes nowhere    --meshes
        --up y              --up
        --rescale           --rescale
        --unknown           --unknown""",
}


def flag_cases():
    """(script, flags, what the message names)."""
    rng = np.random.default_rng(3)
    for script in ("train", "splits"):
        for value in ("0", "-0.1", "1.0001", "2", "nan", "inf", "-inf", "", "10%", "a", "1e400", "0,1"):
            yield script, (f"--budget={value}",), "--budget"
        for value in ("C", "a", "AB", ""):
            yield script, (f"--pack={value}",), "--pack"
        for value in ("nan", "inf", "x", ""):
            yield script, (f"--min-score={value}",), "--min-score"
        yield script, ("--budge", "0.1"), "--budge"
        yield script, ("--budget",), "--budget"
        yield script, ("--seed", "x"), "--seed"
    for script, (flags, count) in WHOLE_NUMBERS.items():
        for flag in flags.split():
            for value in rng.choice(NO_WHOLE_NUMBERS, count, replace=False):
                yield script, (f"--{flag}={value}",), f"--{flag}"
    for flag in ("radius", "alpha", "lr-backbone", "lr-head", "weight-decay", "warmup"):
        for value in rng.choice(NO_AMOUNTS, 3, replace=False):
            yield "train", (f"--{flag}={value}",), f"--{flag}"
    for flag in ("init", "preset", "pool", "group", "loss", "device", "precision"):
        yield "train", (f"--{flag}=other",), f"--{flag}"
    for flag in ("objects", "grasps", "scenes", "workers", "seed"):
        for value in rng.choice(("-1", "1.5", "x", "nan", "", "1e9"), 3, replace=False):
            yield "synthesize", (f"--{flag}={value}",), f"--{flag}"
    for script, lines in WRONG.items():
        for line in lines.strip().splitlines():
            *flags, name = line.split()
            yield script, flags, name
    if not torch.cuda.is_available():
        for script in ("train", "pretrain"):
            yield script, ("--device", "cuda"), "--device"


def test_bad_flags(box_root, tmp_path, capsys, problems):
    rng = np.random.default_rng(4)
    shapes, out = tmp_path / "shapes", tmp_path / "out"
    shapes.mkdir()
    out.mkdir()
    for i in range(4):
        np.save(shapes / f"{i}.npy", rng.normal(size=(64, 3)) * 0.1)
    commands = {
        "train": (train.main, f"--data {box_root} --runs {out} --preset tiny --steps 2 --quiet".split()),
        "splits": (splits.main, ["--data", box_root, "--json", out / "split.json"]),
        "data": (data.main, [box_root, "--cache-dir", out]),
        "pretrain": (pretrain_jepa.main, f"--clouds {shapes} --out {out}/e.pt {TINY}".split()),
        "synthesize": (synthesize.main, ["--out", out / "root", "--quiet"]),
    }
    cases = list(flag_cases())
    assert len(cases) >= 190  # with the scenes of test_bad_datasets.py over 400
    for script, flags, name in cases:
        main, argv = commands[script]
        with problems.of(f"{script} {' '.join(flags)}"):
            rejected(main, [*argv, *flags], (name,), capsys, out, shapes)
