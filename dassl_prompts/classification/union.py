"""Base and new classes scored together, when nobody says which of the two a picture belongs to.

The base-to-new protocol tells the classifier which half of the classes a picture is from. Here every test picture is scored
against all classes (generalised zero-shot learning). Accuracy on base pictures and on new pictures then depends on the level of
the two groups of scores, so besides the scores as they are a constant is added to those of base classes and swept from minus to
plus infinity: the curve of both accuracies, and the area under it, tell what no choice of that constant can hide (Chao et al.,
ECCV 2016, "An empirical study and analysis of generalized zero-shot learning for object recognition in the wild").
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor

from dassl_prompts.engine import EvaluatorBase, register_evaluator

#: points of a curve that are kept for plots
KEPT = 201


def count_base(classes: int) -> int:
    """How many of ``classes`` are base classes: CoOp's split, the first half, rounded up."""
    return math.ceil(classes / 2)


def harmonic(a: Tensor, b: Tensor) -> Tensor:
    """2ab / (a + b), 0 where both are 0."""
    return torch.where(a + b > 0, 2 * a * b / (a + b).clamp_min(1e-12), torch.zeros_like(a))


def seen_unseen_curve(logits: Tensor, labels: Tensor, base: int) -> Tensor:
    """Accuracy on base and on new pictures for every constant that makes a difference.

    Args:
        logits: ``[N, C]`` with the base classes first. labels: ``[N]``. base: how many classes are base classes.

    Returns:
        ``[M, 3]``: the constant added to base scores (from -inf on, growing), accuracy on base and on new pictures in percent.

    Raises:
        ValueError: no picture of base or none of new classes, or no class of either kind.
    """
    of_base = labels < base
    if not 0 < base < logits.shape[1]:
        raise ValueError(f"of {logits.shape[1]} classes {base} are base classes: both kinds are needed")
    if not of_base.any() or of_base.all():
        raise ValueError("pictures of base and of new classes are needed")
    best_base, best_new = logits[:, :base].max(1), logits[:, base:].max(1)
    right = torch.where(of_base, best_base.indices == labels, best_new.indices + base == labels)
    # a picture goes to base classes when the constant exceeds this; equal scores are the lower class's, a base class
    gap, order = (best_new.values - best_base.values).double().sort(stable=True)
    won = torch.where(of_base, right, False)[order].cumsum(0)  # base pictures that are right from here on
    lost = torch.where(of_base, False, right)[order].cumsum(0)  # new pictures that are wrong from here on
    last = torch.ones_like(gap, dtype=torch.bool)
    last[:-1] = gap[1:] != gap[:-1]  # equal gaps flip together
    zero = torch.zeros(1, dtype=won.dtype)
    right_base = torch.cat([zero, won[last]]) / of_base.sum()
    right_new = (torch.where(of_base, False, right).sum() - torch.cat([zero, lost[last]])) / (~of_base).sum()
    constants = torch.cat([torch.tensor([-math.inf], dtype=gap.dtype), gap[last]])
    return torch.stack([constants, 100 * right_base, 100 * right_new], dim=1)


def area(curve: Tensor) -> float:
    """Area under base accuracy over new accuracy, in percent of the square (trapezoids)."""
    base, new = curve[:, 1] / 100, curve[:, 2] / 100
    return 100 * float(torch.trapezoid(base.flip(0), new.flip(0)))


def measure(logits: Tensor, labels: Tensor) -> tuple[OrderedDict[str, float], Tensor]:
    """The results that :class:`Union` reports, and the whole curve; for ``[N, C]`` logits and ``[N]`` labels.

    Raises:
        ValueError: pictures of one kind only.
    """
    split = count_base(logits.shape[1])
    curve = seen_unseen_curve(logits, labels, split)
    right, of_base = logits.argmax(1) == labels, labels < split
    base, new, every = (100 * chosen.double().mean() for chosen in (right[of_base], right[~of_base], right))
    results = OrderedDict(
        accuracy=float(every),
        base=float(base),
        new=float(new),
        hm=float(harmonic(base, new)),
        area=area(curve),
        best_hm=float(harmonic(curve[:, 1], curve[:, 2]).max()),
    )
    return results, curve


@register_evaluator
class Union(EvaluatorBase):
    """``TEST.EVALUATOR Union``: a model trained on base classes, tested with base and new classes together.

    Results, in percent: ``accuracy`` over all pictures; ``base`` and ``new``, the accuracies on pictures of base and of new
    classes, and ``hm``, their harmonic mean; ``area`` under the seen-unseen curve; ``best_hm``, the highest harmonic mean on the
    curve, which nobody can know how to reach without pictures of new classes. ``curve`` holds the curve, thinned.

    Raises:
        ValueError: ``DATASET.SUBSAMPLE_CLASSES`` is not ``all``.
    """

    def __init__(self, cfg, lab2cname=None, **kwargs):
        super().__init__(cfg)
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(
                "TEST.EVALUATOR Union tests base and new classes together: give DATASET.SUBSAMPLE_CLASSES all"
            )
        self.curve: list[list[float]] = []
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch: logits ``[B, C]``, labels ``[B]``."""
        self._logits.append(mo.float().cpu())
        self._labels.append(gt.cpu())

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the results.

        Raises:
            ValueError: nothing was processed, or pictures of one kind only.
        """
        if not self._logits:
            raise ValueError(f"{self.cfg.DATASET.NAME}: nothing to evaluate, the split has no image")
        logits, labels = torch.cat(self._logits), torch.cat(self._labels)
        results, curve = measure(logits, labels)
        kept = torch.linspace(0, len(curve) - 1, min(KEPT, len(curve))).round().long()
        self.curve = [[round(float(value), 4) for value in point[1:]] for point in curve[kept]]
        split = count_base(logits.shape[1])
        print(f"=> result, {split} base and {logits.shape[1] - split} new classes together\n* total: {len(labels):,}")
        print("\n".join(f"* {name}: {value:.1f}%" for name, value in results.items()))
        return results
