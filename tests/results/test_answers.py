"""Measures of answers against plain loops."""

import math

import numpy as np
import pytest

from dassl_prompts.results.answers import calibration_error, compare, wilson


def plain_ece(confidence, right, bins):
    total = 0.0
    for i in range(bins):
        inside = [k for k, c in enumerate(confidence) if i / bins < c <= (i + 1) / bins]
        if inside:
            gap = np.mean([right[k] for k in inside]) - np.mean([confidence[k] for k in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_that_of_the_definition(bins):
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(1e-6, 1, 200), np.ones(50), [0.2, 0.4, 0.6]])
    right = rng.random(len(confidence)) < confidence
    assert calibration_error(confidence, right, bins) == pytest.approx(plain_ece(confidence, right, bins), abs=1e-9)


def test_confidence_of_exactly_one_shares_the_last_bin():
    """50 pictures at 1.0 of which 45 are right, 50 at 0.95 which all are."""
    confidence = np.array([1.0] * 50 + [0.95] * 50)
    right = np.array([True] * 45 + [False] * 5 + [True] * 50)
    assert calibration_error(confidence, right, 10) == pytest.approx(0.025)


@pytest.mark.parametrize("one, other", [(9, 2), (0, 5), (4, 4), (0, 0)])
def test_mcnemar_counts_coin_tosses(one, other):
    first = np.array([True] * one + [False] * other + [True] * 3 + [False])
    second = np.array([False] * one + [True] * other + [True] * 3 + [False])
    found, n = compare(first, second), one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1)) / 2**n
    assert (found.both, found.first, found.second, found.neither) == (3, one, other, 1)
    assert found.p == pytest.approx(min(1.0, 2 * tail))


def test_wilsons_interval_stays_within_0_and_100():
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-9) and wilson(10, 10)[1] == pytest.approx(100)
