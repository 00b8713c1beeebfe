"""Digest of a backbone's weights: results.json keeps it, so that a run with other weights is seen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dassl_prompts.engine.digest import DIGITS

#: numbers that are read of a tensor, evenly spread
SAMPLE = 1024


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Digest of the names, shapes and a sample of the values of tensors.

    Training, rounding and damage change nearly every tensor, so a sample of each tells two backbones apart
    without reading them whole. File format and order do not count: the same weights as .pt and .safetensors
    have one digest.
    """
    found = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().reshape(-1)
        found.update(f"{name} {tuple(state[name].shape)}\n".encode())
        sample = values[:: max(1, -(-values.numel() // SAMPLE))]
        found.update(sample.cpu().float().numpy().tobytes())
    return found.hexdigest()[:DIGITS]


def digest_now(name: str) -> str:
    """Digest of the weights that a backbone's name stands for at present, without building a CLIP.

    Returns:
        "" for names whose weights their publisher fixes (open_clip's and Hugging Face's), and for random ones.

    Raises:
        FileNotFoundError, ValueError: the file is not there or damaged.
    """
    from dassl_prompts.models.blip import is_blip, load_blip
    from dassl_prompts.models.clip import SCALARS, read_state_dict, weights_file

    if is_blip(name):
        return load_blip(name).digest if Path(name).is_dir() else ""
    file = weights_file(name)
    if file is None:
        return ""
    return weights_digest({k: v for k, v in read_state_dict(file).items() if k not in SCALARS})
