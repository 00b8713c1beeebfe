"""A small random CLIP for tests."""

import torch

from dassl_prompts.models import build_clip


def tiny_clip(seed=0, **changes):
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
    }
    clip = build_clip(config, seed=seed)
    with torch.no_grad():
        for p in clip.parameters():
            p.copy_(p.half().float())
        clip.logit_scale.fill_(4.6052)
    return clip
