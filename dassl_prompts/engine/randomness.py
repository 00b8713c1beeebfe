"""Random number generators: seeding, saving, restoring, and isolating them."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def rng_state() -> dict:
    """State of all global generators, as tensors and plain values (readable with ``weights_only=True``)."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict) -> None:
    """Restore what :func:`rng_state` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def view_seed(seed: int, epoch: int) -> int:
    """Where the streams of an epoch's training images start: image i is augmented from ``view_seed(...) + i``.

    Of the run's seed and the epoch (from 0) alone, so that every method sees the same views.
    """
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8).digest(), "big") >> 2


def start_stream(seed: int) -> None:
    """Seed the global CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def own_stream(seed: int) -> Iterator[None]:
    """Run a block on generators seeded with ``seed`` and put the global CPU generators back afterwards."""
    saved = random.getstate(), np.random.get_state(), torch.get_rng_state()
    start_stream(seed)
    try:
        yield
    finally:
        random.setstate(saved[0])
        np.random.set_state(saved[1])
        torch.set_rng_state(saved[2])


@contextmanager
def kept_streams() -> Iterator[None]:
    """Put all global generators back after a block, which thereby draws nothing that follows it would have drawn."""
    saved = rng_state()
    try:
        yield
    finally:
        set_rng_state(saved)


@functools.cache
def collect_env_info() -> str:
    """Versions and hardware, as torch reports them, plus Pillow."""
    import PIL
    from torch.utils.collect_env import get_pretty_env_info

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"
