"""Scores of base classes under one prompt beside those of new classes under another: how they are made comparable.

The task is not known, so nothing says which prompt a picture wants. Base classes are scored under P' and new ones under P, whose
scores have levels of their own: P' was trained to raise those of base classes. No picture of a new class is used to mend that.
"""

from __future__ import annotations

import math

from torch import Tensor


def join(base_scores: Tensor, scores: Tensor, is_base: Tensor, how: str) -> Tensor:
    """Logits of all classes.

    Args:
        base_scores: ``[B, C_b]`` logits of the base classes under the prompts of base classes.
        scores: ``[B, C]`` logits of all classes under the prompts of new ones.
        is_base: ``[C]`` which of them are base classes, in the order of ``base_scores``.
        how: ``none`` puts them side by side. ``chain`` lets P say how probable the base classes are together and P' which of
            them it is: p(c) = p_P(base) p_P'(c | base). ``gate`` lets P say whether the best class is a base class: the best
            base class has under P' the score that the best one has under P.

    Returns:
        ``[B, C]``; columns of new classes as in ``scores``.
    """
    among_base = scores.masked_fill(~is_base, -math.inf)  # masks alone: an ONNX file cannot assign to chosen columns
    if how == "chain":
        base_scores = base_scores - base_scores.logsumexp(1, keepdim=True) + among_base.logsumexp(1, keepdim=True)
    elif how == "gate":
        base_scores = base_scores - base_scores.amax(1, keepdim=True) + among_base.amax(1, keepdim=True)
    return scores.masked_scatter(is_base.expand_as(scores), base_scores)
