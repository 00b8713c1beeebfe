"""The report's numbers for machines: a line per number, CSV, nothing rounded, no prose."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from dassl_prompts.results.groups import Method, accuracy_by_seed, base_new
from dassl_prompts.results.published import counterpart
from dassl_prompts.results.statistics import Value
from dassl_prompts.results.tables import entry_values, evaluated, union_by_seed, union_values

#: settings: number of the settings among those of one recipe name. split: of the evaluation, union: base and new classes
#: together. ci95: half the interval of the mean; n: seeds in mean and std
COLUMNS = (
    "protocol",
    "dataset",
    "split",
    "method",
    "recipe",
    "settings",
    "shots",
    "backbone",
    "source",
    "metric",
    "mean",
    "std",
    "ci95",
    "n",
    "seeds",
    "published",
)


def long_form(methods: list[Method]) -> str:
    """CSV with the columns :data:`COLUMNS`; what does not apply or is not known is empty.

    HM is that of the two means, its std that of the seeds' own HMs. Averages over datasets are left to the reader.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for method in methods:
        lead = {
            "protocol": method.protocol,
            "method": method.trainer,
            "recipe": method.cfg,
            "settings": method.variant,
            "shots": method.shots if method.shots >= 0 else "",
            "backbone": method.backbone,
            "source": method.source,
        }
        for line in numbers(method):
            writer.writerow({**lead, **line})
    return out.getvalue()


def numbers(method: Method) -> Iterator[dict[str, object]]:
    """The cells of every number of a method, without those that say which method it is."""
    for dataset in sorted(method.datasets):
        if method.protocol == "base2new":
            scores = base_new(method, dataset)
            found = {"Base": scores.base, "New": scores.new, "HM": scores.hm_value} if scores else {}
            paper = counterpart(method)
            yield from lines(dataset, "test", found, scores.seeds if scores else (), paper and paper.on(dataset))
            if union := union_by_seed(method, dataset):
                yield from lines(dataset, "union", union_values(union), sorted(union["Base"]), None)
        elif method.protocol in ("accuracy", "transfer"):
            found = accuracy_by_seed(method, dataset)
            values = {"accuracy": Value.over(found.values())} if found else {}
            paper = counterpart(method, dataset) if method.protocol == "transfer" else None
            yield from lines(dataset, "test", values, sorted(found), paper and paper.on(dataset))
        else:
            yield from of_splits(method, dataset)


def of_splits(method: Method, dataset: str) -> Iterator[dict[str, object]]:
    """Retrieval: every metric of every evaluation."""
    runs = {seed: run for (name, _, seed), run in sorted(method.runs.items()) if name == dataset}
    for split in dict.fromkeys(split for run in runs.values() for split in run.metrics):
        seeds = [seed for seed, run in runs.items() if split in run.metrics]
        names = dict.fromkeys(name for seed in seeds for name in runs[seed].metrics[split])
        paper = counterpart(method)
        of_paper = paper and paper.on(evaluated(dataset if split == "test" else split))
        yield from lines(dataset, split, entry_values(method, dataset, split, list(names)), seeds, of_paper)


def lines(dataset: str, split: str, found: dict[str, Value], seeds, published) -> Iterator[dict[str, object]]:
    for metric, value in found.items():
        yield {
            "dataset": dataset,
            "split": split,
            "metric": metric,
            "mean": repr(value.mean),
            "std": "" if math.isnan(value.std) else repr(value.std),
            "ci95": "" if math.isnan(value.std) else repr(value.ci95),
            "n": value.count,
            "seeds": " ".join(map(str, seeds)),
            "published": (published or {}).get(metric, ""),
        }
