"""Tables of finished jobs, one row per seed, and their means."""

from __future__ import annotations


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), 0 for two zeros."""
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def table(rows: list[dict]) -> str:
    """Rows with equal columns as Markdown."""
    from tabulate import tabulate

    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f")


def mean_over_seeds(rows: list[dict], *keys: str) -> list[dict]:
    """Means of the numeric columns over the rows that agree in ``keys``; HM is recomputed from the means."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    out = []
    for values, same in groups.items():
        columns = [c for c in same[0] if c != "seed" and c not in keys]
        mean = {c: sum(r[c] for r in same) / len(same) for c in columns}
        if "HM" in mean:
            mean["HM"] = harmonic_mean(mean["Base"], mean["New"])
        out.append({**dict(zip(keys, values)), "seeds": len(same), **mean})
    return out
