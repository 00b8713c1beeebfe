"""Mean, deviation and paired differences against numpy and plain loops."""

import doctest
import math

import numpy as np
import pytest

from dassl_prompts.results import answers, statistics
from dassl_prompts.results.statistics import Value, harmonic_mean, hm_over_seeds, paired, paired_hm

BASE, NEW = {1: 80.0, 2: 82.5, 3: 90.0}, {1: 60.0, 2: 71.0, 3: 50.5}


@pytest.mark.parametrize("module", [statistics, answers])
def test_examples(module):
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


def test_mean_and_sample_deviation():
    value = Value.over(BASE.values())
    assert value.mean == pytest.approx(np.mean(list(BASE.values())))
    assert value.std == pytest.approx(np.std(list(BASE.values()), ddof=1)) and value.count == 3
    assert Value.over([]) is None and math.isnan(Value.over([5.0]).std)


def test_hm_is_that_of_the_means_and_spreads_as_the_seeds_own():
    value = hm_over_seeds(BASE, NEW)
    base, new = np.array(list(BASE.values())), np.array(list(NEW.values()))
    assert value.mean == pytest.approx(2 * base.mean() * new.mean() / (base.mean() + new.mean()))
    assert value.std == pytest.approx(np.std(2 * base * new / (base + new), ddof=1))
    assert abs(value.mean - np.mean(2 * base * new / (base + new))) > 0.1  # the mean of HMs is another number


def test_a_paired_difference_spreads_less_than_its_sides_where_seeds_move_together():
    ours = {seed: value + shift for (seed, value), shift in zip(BASE.items(), (1.0, 1.5, 0.5))}
    difference = paired(ours, BASE)
    assert difference.mean == pytest.approx(1.0) and difference.std == pytest.approx(0.5) and difference.count == 3
    assert difference.std < Value.over(BASE.values()).std / 5
    assert str(difference) == "+1.00 ± 0.50" and str(paired(BASE, ours)) == "-1.00 ± 0.50"


def test_pairs_are_seeds_and_not_places():
    ours, theirs = {3: 30.0, 1: 10.0}, {1: 9.0, 2: 99.0, 3: 28.0}
    assert paired(ours, theirs).mean == pytest.approx(1.5) and paired(ours, theirs).count == 2
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_a_paired_hm_is_the_difference_of_the_hms_over_common_seeds():
    theirs = {1: 70.0, 2: 72.0}, {2: 60.0, 3: 61.0, 1: 58.0}
    difference = paired_hm((BASE, NEW), theirs)
    ours_hm = harmonic_mean((80 + 82.5) / 2, (60 + 71) / 2)
    assert difference.mean == pytest.approx(ours_hm - harmonic_mean(71.0, 59.0)) and difference.count == 2
    each = [harmonic_mean(BASE[s], NEW[s]) - harmonic_mean(theirs[0][s], theirs[1][s]) for s in (1, 2)]
    assert difference.std == pytest.approx(np.std(each, ddof=1))
    assert paired_hm(({1: 1.0}, {2: 1.0}), theirs) is None
