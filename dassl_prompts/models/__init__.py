"""Frozen towers with prompt slots."""

from dassl_prompts.models.precision import resolve_precision


def load_clip(*args, **kwargs):
    from dassl_prompts.models.clip import load_clip as load

    return load(*args, **kwargs)


def build_clip(*args, **kwargs):
    from dassl_prompts.models.clip import build_clip as build

    return build(*args, **kwargs)
