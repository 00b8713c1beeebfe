"""Mean and deviation over seeds, differences of paired runs, the harmonic mean: the only aggregation there is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """Mean and sample standard deviation over seeds (nan for one seed).

    >>> str(Value.over([80.0, 82.5, 90.0]))
    '84.17 ± 5.20'
    >>> str(Value.over([80.0]))
    '80.00'
    """

    mean: float
    std: float = math.nan
    count: int = 1

    @classmethod
    def over(cls, values: Iterable[float]) -> Value | None:
        """None for no values."""
        values = list(values)
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))

    @property
    def ci95(self) -> float:
        """Half the 95 % confidence interval of the mean by Student's t, which assumes normal seeds; nan for one seed.

        >>> round(Value.over([80.0, 82.5, 90.0]).ci95, 2)
        12.93
        """
        if math.isnan(self.std):
            return math.nan
        from scipy.stats import t

        return float(t.ppf(0.975, self.count - 1)) * self.std / math.sqrt(self.count)

    def text(self, sign: str = "") -> str:
        """Mean, and where there are several seeds the deviation; within :func:`intervals` also the interval."""
        if math.isnan(self.std):
            return f"{self.mean:{sign}.2f}"
        shown = f"{self.mean:{sign}.2f} ± {self.std:.2f}"
        return f"{shown} (CI95 ± {self.ci95:.2f})" if _intervals.get() else shown

    def __str__(self) -> str:
        return self.text()


#: whether values are written with their confidence interval
_intervals: ContextVar[bool] = ContextVar("intervals", default=False)


@contextmanager
def intervals(shown: bool = True) -> Iterator[None]:
    """Values written meanwhile have their confidence interval beside the deviation."""
    token = _intervals.set(shown)
    try:
        yield
    finally:
        _intervals.reset(token)


@dataclass(frozen=True)
class Difference(Value):
    """Mean and sample standard deviation of differences, seed by seed.

    >>> str(Difference.over([1.0, 2.0]))
    '+1.50 ± 0.71'
    """

    def __str__(self) -> str:
        return self.text("+")


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), 0 for two zeros."""
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


#: accuracies on base and new classes, by seed
BySeed = Mapping[int, float]


def hm_over_seeds(base: BySeed, new: BySeed) -> Value:
    """HM of the two means over the seeds, as the papers define it, with the deviation of the seeds' own HMs."""
    each = [harmonic_mean(base[s], new[s]) for s in base]
    spread = Value.over(each)
    return Value(harmonic_mean(statistics.fmean(base.values()), statistics.fmean(new.values())), spread.std, len(each))


def paired(ours: BySeed, theirs: BySeed) -> Difference | None:
    """Difference over the seeds that both have, so that what a seed draws for both of them cancels out.

    Its deviation says whether the seeds agree on the sign; that of either value does not.

    >>> str(paired({1: 60.0, 2: 81.0, 3: 5.0}, {1: 59.0, 2: 79.0}))
    '+1.50 ± 0.71'
    """
    return Difference.over(ours[s] - theirs[s] for s in sorted(ours.keys() & theirs.keys()))


def paired_hm(ours: tuple[BySeed, BySeed], theirs: tuple[BySeed, BySeed]) -> Difference | None:
    """Difference of two HMs over the seeds that both have; its deviation is that of the seeds' HM differences.

    Args:
        ours, theirs: (base, new) accuracies.
    """
    seeds = sorted(set.intersection(*(set(side) for side in (*ours, *theirs))))
    if not seeds:
        return None
    ours, theirs = (tuple({s: side[s] for s in seeds} for side in pair) for pair in (ours, theirs))
    of_seeds = Difference.over(
        harmonic_mean(ours[0][s], ours[1][s]) - harmonic_mean(theirs[0][s], theirs[1][s]) for s in seeds
    )
    return Difference(hm_over_seeds(*ours).mean - hm_over_seeds(*theirs).mean, of_seeds.std, len(seeds))
