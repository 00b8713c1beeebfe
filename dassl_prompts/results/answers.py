"""Measures of an evaluation's answers: per class, calibration, likelihood, two runs on the same pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BINS = 15


def class_accuracies(label: np.ndarray, answer: np.ndarray) -> dict[int, tuple[float, int]]:
    """Accuracy in percent and number of pictures of every class that occurs.

    >>> class_accuracies(np.array([0, 0, 2]), np.array([0, 1, 2]))
    {0: (50.0, 2), 2: (100.0, 1)}
    """
    return {int(c): (100 * float((answer[label == c] == c).mean()), int((label == c).sum())) for c in np.unique(label)}


def confusion(label: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """Counts ``[C, C]``: row the label, column the answer.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(label * classes + answer, minlength=classes * classes).reshape(classes, classes)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): the mean gap of accuracy and confidence over ``bins`` equal bins.

    The bins are (0, 1/n], ..., (1 - 1/n, 1]: a confidence of exactly 1, which fp32 gives to every easy picture, belongs to the last
    one. torchmetrics 1.9 puts it into a bin of its own, where it no longer meets its neighbours
    (findings/torchmetrics_ece_extra_bin.sh).

    >>> round(calibration_error(np.array([1.0, 0.95]), np.array([True, True]), 10), 3)
    0.025
    """
    index = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, right.astype(np.float64) - confidence, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def likelihood_loss(log_label: np.ndarray) -> float:
    """Mean negative log likelihood of the labels, in nats.

    >>> likelihood_loss(np.array([0.0, -2.0]))
    1.0
    """
    return float(-log_label.astype(np.float64).mean())


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of an accuracy by Wilson's score, in percent.

    >>> [round(bound, 1) for bound in wilson(90, 100)]
    [82.6, 94.5]
    """
    share, squared = right / total, z * z / total
    centre = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / total + squared / (4 * total))
    return 100 * (centre - half), 100 * (centre + half)


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same pictures: how many are right in both, in one, in neither; ``p`` is McNemar's exact two-sided value."""

    both: int
    first: int
    second: int
    neither: int
    p: float


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """
    Args:
        first, second: ``[N]`` whether each run is right, in one order of pictures.

    >>> compare(np.array([True, True, False]), np.array([True, False, False]))
    Comparison(both=1, first=1, second=0, neither=1, p=1.0)
    """
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((~first & second).sum())
    p = float(binomtest(one, one + other).pvalue) if one + other else 1.0
    return Comparison(int((first & second).sum()), one, other, int((~first & ~second).sum()), p)
