"""Ways to make scores of base classes under P' comparable with those of new classes under P, none of which sees a new class.

Two need nothing but the scores of the picture itself (``chain`` and ``gate`` of :func:`~dassl_prompts.trainers.dpc.union.join`);
the others fit a constant or temperatures on the training images of base classes. `study union` compares them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.trainers.dpc.union import join

Way = Callable[[Tensor, Tensor], Tensor]
TEMPERATURES = torch.logspace(-1.5, 1.5, 61).tolist()


def ways(base_scores: Tensor, scores: Tensor, labels: Tensor, is_base: Tensor) -> dict[str, Way]:
    """Every way by its name: from logits as in :func:`join` to logits of all classes.

    Args:
        base_scores, scores: of training images of base classes. labels: their classes, ``[N]``, counted among base classes.
        is_base: ``[C]``.
    """

    def shifted(constant: float) -> Way:
        return lambda base, every: join(base + constant, every, is_base, "none")

    t_base, t_new = (temperature(s, labels) for s in (base_scores, scores[:, is_base]))
    return {
        "none": lambda base, every: join(base, every, is_base, "none"),
        "mean of P and P'": lambda base, every: join((base + every[:, is_base]) / 2, every, is_base, "none"),
        "level of wrong classes": shifted(level(base_scores, scores[:, is_base], labels)),
        "share of base pictures": shifted(share(base_scores, scores, is_base)),
        "temperatures": lambda base, every: join(base * t_new / t_base, every, is_base, "none"),
        "gate": lambda base, every: join(base, every, is_base, "gate"),
        "chain": lambda base, every: join(base, every, is_base, "chain"),
    }


def level(base_scores: Tensor, tuned_scores: Tensor, labels: Tensor) -> float:
    """The constant after which the best wrong base class scores as high under P' as under P, on average.

    A picture of a new class meets wrong base classes only.

    Args:
        base_scores, tuned_scores: ``[N, C_b]`` under P' and under P.
    """
    own = F.one_hot(labels, base_scores.shape[1]).bool()
    best_wrong = [s.masked_fill(own, float("-inf")).amax(1).mean() for s in (tuned_scores, base_scores)]
    return float(best_wrong[0] - best_wrong[1])


def share(base_scores: Tensor, scores: Tensor, is_base: Tensor) -> float:
    """The constant after which as many base pictures go to base classes as when P scores them all."""
    best_new = scores[:, ~is_base].amax(1)
    kept = (scores[:, is_base].amax(1) >= best_new).double().mean()
    return float(torch.quantile((best_new - base_scores.amax(1)).double(), kept))


def temperature(scores: Tensor, labels: Tensor) -> float:
    """The divisor of logits ``[N, C_b]`` with the least cross-entropy, on a grid."""
    return min(TEMPERATURES, key=lambda t: float(F.cross_entropy(scores / t, labels)))
