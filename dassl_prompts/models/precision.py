"""Which precision a run really uses."""

from __future__ import annotations

import torch


def resolve_precision(prec: str, device) -> str:
    """``fp32``, ``amp`` or ``fp16`` for a device; the half precisions fall back to fp32 on CPU.

    Raises:
        ValueError: unknown precision.
    """
    if prec not in ("fp32", "amp", "fp16"):
        raise ValueError(f"PREC is {prec!r}; choose one of fp16, fp32, amp")
    if torch.device(device).type == "cpu":
        return "fp32"
    return prec
