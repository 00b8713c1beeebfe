"""Frozen towers with prompt slots. open_clip and transformers are imported when a model is built, not before."""

from __future__ import annotations

from dassl_prompts.models.precision import resolve_precision

__all__ = ["build_clip", "load_clip", "resolve_precision"]


def load_clip(name: str, precision: str = "fp32", device="cpu", activation: str = "", **names):
    """See :func:`dassl_prompts.models.clip.load_clip`."""
    from dassl_prompts.models import clip

    return clip.load_clip(name, precision, device, activation, **names)


def build_clip(config, seed: int | None = None, precision: str = "fp32", device="cpu"):
    """See :func:`dassl_prompts.models.clip.build_clip`."""
    from dassl_prompts.models import clip

    return clip.build_clip(config, seed, precision, device)
