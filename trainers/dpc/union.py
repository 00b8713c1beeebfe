"""Scores of base classes under one prompt beside those of new classes under another: how they are made comparable.

The task is not known, so nothing says which prompt a picture wants. Base classes are scored under P' and new ones under P, whose
scores have levels of their own: P' was trained to raise those of base classes. No picture of a new class is used to mend that.
"""

from __future__ import annotations

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
    if how == "chain":
        base_scores = (
            base_scores - base_scores.logsumexp(1, keepdim=True) + scores[:, is_base].logsumexp(1, keepdim=True)
        )
    elif how == "gate":
        base_scores = base_scores - base_scores.amax(1, keepdim=True) + scores[:, is_base].amax(1, keepdim=True)
    joint = scores.clone()
    joint[:, is_base] = base_scores
    return joint
