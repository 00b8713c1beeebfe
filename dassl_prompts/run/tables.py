"""Tables of studies: a row per variant with mean and deviation over seeds, and the differences of paired seeds.

Rows come one per variant and seed, ``{"variant": ..., "seed": 1, "Base": 80.0, ...}``; what is averaged and how is
:mod:`dassl_prompts.results.statistics`, as in the report.
"""

from __future__ import annotations

from collections.abc import Sequence

from dassl_prompts.results.statistics import (
    Difference,
    Value,
    harmonic_mean,
    hm_over_seeds,
    paired,
    paired_hm,
)

__all__ = ["harmonic_mean", "mean_over_seeds", "over_sets", "paired_differences", "study_text", "table"]

#: what HM is made of
SIDES = ("Base", "New")


def table(rows: Sequence[dict]) -> str:
    """Rows with equal columns as Markdown; numbers with two decimals, text as it is."""
    from tabulate import tabulate

    columns = list(rows[0]) if rows else []
    cells = [[shown(row[column]) for column in columns] for row in rows]
    # tabulate would reprint text that looks like a number: 83.10 as 83.1, the class 1234e56 as inf
    return tabulate(cells, columns, tablefmt="github", disable_numparse=True)


def shown(cell: object) -> str:
    """A cell as text."""
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def by_seed(rows: Sequence[dict], column: str) -> dict[int, float]:
    """A column of the rows of one variant, by seed.

    Raises:
        ValueError: a seed occurs twice: the rows are not one variant's.
    """
    found = {row["seed"]: row[column] for row in rows}
    if len(found) < len(rows):
        raise ValueError(f"the rows of one variant repeat a seed: {sorted(row['seed'] for row in rows)}")
    return found


def groups(rows: Sequence[dict], keys: Sequence[str]) -> dict[tuple, list[dict]]:
    """Rows by the values of ``keys``, in order of first appearance."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def measured(row: dict, keys: Sequence[str]) -> list[str]:
    """The columns that hold measurements."""
    return [column for column in row if column != "seed" and column not in keys]


def over_sets(rows: Sequence[dict], key: str) -> list[dict]:
    """Rows of a ``dataset`` each, averaged over the sets seed by seed, as the papers do; HM is that of the averages."""
    out = []
    for (name, seed), same in groups(rows, (key, "seed")).items():
        mean = {c: sum(row[c] for row in same) / len(same) for c in measured(same[0], [key, "dataset"])}
        for suffix in ("", " in all"):
            if f"HM{suffix}" in mean:
                mean[f"HM{suffix}"] = harmonic_mean(*(mean[side + suffix] for side in SIDES))
        out.append({"seed": seed, key: name, **mean})
    return out


def mean_over_seeds(rows: Sequence[dict], *keys: str) -> list[dict]:
    """Mean and deviation of the measured columns over the rows that agree in ``keys``, as :class:`Value`.

    HM is that of the two means, with the deviation of the seeds' own HMs.

    Raises:
        ValueError: rows that agree in ``keys`` repeat a seed.
    """
    out = []
    for values, same in groups(rows, keys).items():
        mean: dict[str, object] = {c: Value.over(by_seed(same, c).values()) for c in measured(same[0], keys)}
        if "HM" in mean:
            mean["HM"] = hm_over_seeds(*(by_seed(same, side) for side in SIDES))
        out.append({**dict(zip(keys, values)), "seeds": len(same), **mean})
    return out


def paired_differences(rows: Sequence[dict], key: str, reference: object) -> list[dict]:
    """Difference of every other variant to the one called ``reference``, over the seeds that both have.

    Raises:
        ValueError: there is no such variant.
    """
    found = {name: same for (name,), same in groups(rows, [key]).items()}
    if reference not in found:
        raise ValueError(f"no row has {key} {reference!r}, with which the others are to be compared")
    theirs, out = found.pop(reference), []
    for name, same in found.items():
        common = sorted({row["seed"] for row in same} & {row["seed"] for row in theirs})
        columns = [c for c in measured(same[0], [key]) if c in theirs[0]]
        differ: dict[str, Difference | None] = {c: paired(by_seed(same, c), by_seed(theirs, c)) for c in columns}
        if "HM" in differ:
            differ["HM"] = paired_hm(*(tuple(by_seed(some, side) for side in SIDES) for some in (same, theirs)))
        out.append({key: name, "seeds": len(common), **differ})
    return out


def study_text(rows: Sequence[dict], key: str, reference: object = None) -> str:
    """The table of a study and, with ``reference``, the differences to that variant, as Markdown."""
    means = mean_over_seeds(rows, key)
    several = any(row["seeds"] > 1 for row in means)
    spread = "Mean ± standard deviation over the seeds" if several else "One seed: there is no spread to judge by"
    hm = ", HM of the means" if "HM" in means[0] else ""
    parts = [f"{spread}{hm}.", table(means)]
    if reference is not None and len(means) > 1:
        note = "mean ± standard deviation of the differences" if several else "a single difference each"
        parts += [
            f'Difference to "{reference}", seed by seed ({note}):',
            table(paired_differences(rows, key, reference)),
        ]
    return "\n\n".join(parts)
