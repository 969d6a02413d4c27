"""A file in the format that Point-JEPA's authors publish, of any size, with random weights."""

import torch
from samples import seeded


def official_state(width=24, depth=2, w1=8, w2=12, w3=20, predictor_width=12, predictor_depth=2, seed=0, gain=0.3):
    """A state_dict in the official format with random weights of standard deviation `gain`; 0: without memory."""
    generator, state = seeded(seed), {}

    def put(name, *shape):
        state[name] = gain * torch.randn(*shape, generator=generator) if gain else torch.zeros(()).expand(shape)

    def affine(name, size_out, size_in, *rest):
        put(f"{name}.weight", size_out, size_in, *rest)
        put(f"{name}.bias", size_out)

    def blocks(prefix, size, count):
        for i in range(count):
            for norm in ("norm1", "norm2"):
                put(f"{prefix}.blocks.{i}.{norm}.weight", size), put(f"{prefix}.blocks.{i}.{norm}.bias", size)
            affine(f"{prefix}.blocks.{i}.attn.qkv", 3 * size, size)
            affine(f"{prefix}.blocks.{i}.attn.proj", size, size)
            affine(f"{prefix}.blocks.{i}.mlp.fc1", 4 * size, size)
            affine(f"{prefix}.blocks.{i}.mlp.fc2", size, 4 * size)
        put(f"{prefix}.norm.weight", size), put(f"{prefix}.norm.bias", size)

    affine("positional_encoding.0", 128, 3)
    affine("positional_encoding.2", width, 128)
    pointnet = "tokenizer.embedding.encoder"
    for stage, size_in, middle, size_out in (("first_conv", 3, w1, w2), ("second_conv", 2 * w2, w3, width)):
        put(f"{pointnet}.{stage}.0.weight", middle, size_in, 1)
        for name in ("weight", "bias", "running_mean"):
            put(f"{pointnet}.{stage}.1.{name}", middle)
        state[f"{pointnet}.{stage}.1.running_var"] = torch.rand(middle, generator=generator) + 0.5
        state[f"{pointnet}.{stage}.1.num_batches_tracked"] = torch.tensor(40500)
        affine(f"{pointnet}.{stage}.3", size_out, middle, 1)
    blocks("student", width, depth)
    put("mask_token", width)
    put("predictor.mask_token", 1, 1, predictor_width)
    affine("predictor.predictor_embed", predictor_width, width)
    affine("predictor.positional_encoding.0", 128, 3)
    affine("predictor.positional_encoding.2", predictor_width, 128)
    affine("predictor.predictor_proj", width, predictor_width)
    put("predictor.predictor_norm.weight", predictor_width), put("predictor.predictor_norm.bias", predictor_width)
    blocks("predictor.predictor", predictor_width, predictor_depth)
    state["teacher.initted"], state["teacher.step"] = torch.tensor([True]), torch.tensor([40500])
    blocks("teacher.online_model", width, depth)
    blocks("teacher.ema_model", width, depth)
    return state


def official_file(path, hyper=None, state=None, **sizes):
    """Write such a file, by default with `official_state(**sizes)`; -> its state_dict."""
    state = official_state(**sizes) if state is None else state
    content = {"epoch": 499, "global_step": 40500, "pytorch-lightning_version": "1.9.0", "state_dict": state}
    torch.save(content if hyper is None else {**content, "hyper_parameters": hyper}, path)
    return state
