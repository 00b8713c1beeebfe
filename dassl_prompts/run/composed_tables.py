"""Tables of composed retrieval: the evaluations in results files as rows, one table per evaluation set.

A row is ``{"query": ..., "set": ..., "label": ..., metric: number}``; what is averaged and how is
:mod:`dassl_prompts.results.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dassl_prompts.results.statistics import Value, paired
from dassl_prompts.run.steps import Step
from dassl_prompts.run.tables import table as markdown

#: what an evaluation's row says besides its metrics
LABELS = ("query", "set", "label", "seed", "mean")


def metric_rows(step: Step, name: str = "") -> list[dict]:
    """The evaluations in a run's results: ``{"query": ..., "set": ..., metrics}``; ``name`` instead of the
    label."""
    rows = []
    for key, values in (step.results() or {}).items():
        if isinstance(values, dict) and "mean" in values:
            *label, dataset, split = key.split(" ")
            label = " ".join(label)
            rows.append({"query": name or label or step.title, "label": label, "set": f"{dataset} {split}", **values})
    return rows


def table(rows: Sequence[dict]) -> str:
    """One table per evaluation set; CIRCO's semantic aspects in a table of their own."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        chosen = [row for row in rows if row["set"] == name]
        columns = [c for c in chosen[0] if c not in LABELS]
        aspects = [c for c in columns if c.startswith("mAP@") and " " in c]
        parts.append(f"{name}\n\n{columns_of(chosen, [c for c in columns if c not in aspects])}")
        if aspects:
            short = {c: c.partition(" ")[2].replace("_", " ") for c in aspects}
            title = f"{name}, {aspects[0].partition(' ')[0]} by semantic aspect"
            parts.append(f"{title}\n\n{columns_of(chosen, aspects, short)}")
    return "\n\n".join(parts)


def columns_of(rows: Sequence[dict], columns: Sequence[str], heads: Mapping[str, str] = MappingProxyType({})) -> str:
    """The rows with some of their columns, under ``heads`` where these give another name."""
    return markdown([{"": row["query"], **{heads.get(c, c): row[c] for c in columns}} for row in rows])


def metrics_of(row: dict) -> list[str]:
    return [key for key in row if key not in ("query", "set", "label", "seed")]


def over_seeds(rows: Sequence[dict]) -> list[dict]:
    """Mean and standard deviation per method and set, as text; baselines have no seed and stay as they
    are."""
    merged = []
    for key in dict.fromkeys((row["query"], row["set"]) for row in rows):
        same = [row for row in rows if (row["query"], row["set"]) == key]
        shown = {k: str(Value.over(row[k] for row in same)) for k in metrics_of(same[0])}
        merged.append({"query": key[0], "set": key[1], **shown})
    return merged


def pvlf_minus_transagg(rows: Sequence[dict]) -> list[dict]:
    """The two methods with the same tuning mode, seed by seed, as text."""
    found = []
    for ours, theirs, entry in dict.fromkeys(
        (row["query"], row["query"].replace("PVLF", "TransAgg", 1), row["set"])
        for row in rows
        if "PVLF" in row["query"]
    ):
        sides = [{row["seed"]: row for row in rows if (row["query"], row["set"]) == (q, entry)} for q in (ours, theirs)]
        if all(sides):
            columns = metrics_of(next(iter(sides[0].values())))
            by_seed = {c: [{seed: row[c] for seed, row in side.items()} for side in sides] for c in columns}
            differences = {c: str(paired(*pair)) for c, pair in by_seed.items()}
            found.append({"query": f"{ours} minus {theirs}, seed by seed", "set": entry, **differences})
    return found


def last_rows(step: Step, name: str) -> list[dict]:
    """The evaluations of the last step's weights, with the run's seed."""
    seed = (step.results() or {}).get("seed")
    return [{**row, "seed": seed} for row in metric_rows(step, name) if row["label"] == "last"]
