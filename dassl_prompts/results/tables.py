"""Tables: base/new/HM, accuracy, transfer, recall; with published numbers and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dassl_prompts.results.groups import BaseNew, Method, accuracy, accuracy_by_seed, averaged, base_new, built_on
from dassl_prompts.results.published import Published, canonical, counterpart
from dassl_prompts.results.statistics import BySeed, Value, harmonic_mean, hm_over_seeds, paired, paired_hm

FORMATS = {"console": "simple", "markdown": "github", "latex": "latex_booktabs"}
AVERAGE = "Average"


@dataclass
class Table:
    """A titled table; cells are text or None. ``sources``: of the published numbers in it."""

    title: str
    columns: list[str]
    rows: list[list[str | None]] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, cells: dict[str, object], *papers: Published | None) -> None:
        self.rows.append([None if cells.get(c) is None else str(cells[c]) for c in self.columns])
        for paper in filter(None, papers):
            source = f"{paper.table}: {paper.source}"
            if source not in self.sources:
                self.sources.append(source)

    def trimmed(self) -> Table:
        """Without columns that no row fills."""
        keep = [i for i in range(len(self.columns)) if any(row[i] is not None for row in self.rows)]
        return Table(
            self.title,
            [self.columns[i] for i in keep],
            [[row[i] for i in keep] for row in self.rows],
            self.sources,
        )

    def text(self, form: str) -> str:
        """The table in one of :data:`FORMATS`."""
        from tabulate import tabulate

        body = tabulate(self.rows, self.columns, tablefmt=FORMATS[form], disable_numparse=True, missingval="-")
        if form == "latex":
            body = body.replace("±", r"$\pm$")
            return f"% {self.title}\n{body}\n" + "".join(f"% published: {s}\n" for s in self.sources)
        title = f"### {self.title}" if form == "markdown" else f"{self.title}\n{'=' * len(self.title)}"
        notes = "".join(f"\npublished: {s}" for s in self.sources)
        return f"{title}\n\n{body}\n{notes}\n"


def difference(ours: float, theirs: float | None) -> str | None:
    return None if theirs is None else f"{ours - theirs:+.2f}"


def settings(methods: Iterable[Method]) -> Callable[[Method], dict[str, object]]:
    """The leading cells of a method's rows; shots and backbone only stand there when they vary."""
    methods = list(methods)
    varied = {name: len({getattr(m, name) for m in methods}) > 1 for name in ("shots", "backbone", "source")}

    def cells(method: Method) -> dict[str, object]:
        recipe = f"{method.cfg} [{method.variant}]" if method.variant > 1 else method.cfg
        return {
            "method": method.trainer,
            "recipe": recipe,
            **{k: getattr(method, k) for k, more in varied.items() if more},
        }

    return cells


def listed(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))


LEAD = ["dataset", "method", "recipe", "shots", "backbone", "source"]


def average_label(count: int, total: int) -> str:
    return f"{AVERAGE} of {count}" if count == total else f"{AVERAGE} of {count} (not all {total})"


# -- the tables ----------------------------------------------------------------------------------------------


def base_new_table(methods: list[Method]) -> Table:
    """Per dataset and on average: Base, New, and HM of the two means."""
    table = Table(
        "Base-to-new accuracy (%)",
        [*LEAD, "seeds", "Base", "New", "HM", "published B / N / HM", "ΔBase", "ΔNew", "ΔHM"],
    )
    cells, datasets = settings(methods), ordered(methods)
    found = {(id(m), d): base_new(m, d) for m in methods for d in datasets}
    for dataset in datasets:
        for method in methods:
            scores = found[id(method), dataset]
            if scores:
                line = {
                    "dataset": dataset,
                    **cells(method),
                    "seeds": listed(scores.seeds),
                    "Base": scores.base,
                    "New": scores.new,
                }
                add_base_new(
                    table, line, scores.base.mean, scores.new.mean, scores.hm_value, counterpart(method), dataset
                )
                backbone = built_on(method, methods)
                if backbone and (theirs := found[id(backbone), dataset]):
                    table.add({"dataset": dataset, **minus(backbone), **base_new_differences(scores, theirs)})
    if len(datasets) > 1:
        for method in methods:
            have = {d: s for d in datasets if (s := found[id(method), d])}
            if len(have) > 1:
                label = average_label(len(have), len(datasets))
                scores = averaged([*have.values()])
                if scores:
                    base, new, hm = scores.base, scores.new, scores.hm_value
                else:  # other seeds on other datasets: no deviation over seeds
                    base, new = (Value(fmean(getattr(s, side).mean for s in have.values())) for side in ("base", "new"))
                    hm = Value(harmonic_mean(base.mean, new.mean))
                line = {"dataset": label, **cells(method), "Base": base, "New": new}
                if scores:
                    line["seeds"] = listed(scores.seeds)
                add_base_new(table, line, base.mean, new.mean, hm, average_paper(method, [*have]), AVERAGE)
                backbone = built_on(method, methods)
                theirs = [found[id(backbone), d] for d in have] if backbone else []
                if scores and theirs and all(theirs) and (below := averaged(theirs)):
                    table.add({"dataset": label, **minus(backbone), **base_new_differences(scores, below)})
    return table.trimmed()


def minus(backbone: Method) -> dict[str, object]:
    """The leading cells of a row of differences between DPC and what it builds on."""
    return {"method": f"  minus {backbone.trainer}", "recipe": "seed by seed"}


def base_new_differences(ours: BaseNew, theirs: BaseNew) -> dict[str, object]:
    """Paired over the seeds that both have; empty where there are none."""
    pairs = [(scores.base_by_seed, scores.new_by_seed) for scores in (ours, theirs)]
    common = [s for s in ours.seeds if s in theirs.seeds]
    base, new = (paired(*sides) for sides in zip(*pairs))
    return {"seeds": listed(common), "Base": base, "New": new, "HM": paired_hm(*pairs)}


def add_base_new(
    table: Table, line: dict, base: float, new: float, hm: Value, paper: Published | None, dataset: str
) -> None:
    """A row with its HM and, where a paper has the dataset, its numbers and the differences."""
    theirs = paper.on(dataset) if paper else {}
    line["HM"] = hm
    if theirs:
        line["published B / N / HM"] = " / ".join(f"{theirs[c]:.2f}" for c in ("Base", "New", "HM"))
        line |= {f"Δ{c}": difference(v, theirs[c]) for c, v in (("Base", base), ("New", new), ("HM", hm.mean))}
    table.add(line, paper if theirs else None)


def average_paper(method: Method, datasets: list[str]) -> Published | None:
    """The paper whose average is over the same datasets."""
    paper = counterpart(method)
    if paper and paper.averaged() == {canonical(d) for d in datasets}:
        return paper
    return None


def accuracy_table(methods: list[Method]) -> Table:
    """Accuracy on all classes, few-shot: a row per dataset, method and number of shots."""
    table = Table("Accuracy on all classes (%)", [*LEAD, "seeds", "accuracy"])
    cells, datasets = settings(methods), ordered(methods)
    for dataset in datasets:
        for method in methods:
            value = accuracy(method, dataset)
            if value:
                table.add(
                    {
                        "dataset": dataset,
                        **cells(method),
                        "seeds": listed(method.seeds(dataset, "all")),
                        "accuracy": value,
                    }
                )
    if len(datasets) > 1:
        for method in methods:
            have = [v.mean for d in datasets if (v := accuracy(method, d))]
            if len(have) > 1:
                mean = f"{sum(have) / len(have):.2f}"
                table.add({"dataset": average_label(len(have), len(datasets)), **cells(method), "accuracy": mean})
    return table.trimmed()


def transfer_table(methods: list[Method]) -> Table:
    """A column per dataset: first what was trained on, then the targets and their mean."""
    methods = [m for m in methods if any(run.is_target for run in m.runs.values())]
    targets = [
        d
        for d in ordered(methods)
        if any(r.is_target for m in methods for (name, _, _), r in m.runs.items() if name == d)
    ]
    sources = [d for d in ordered(methods) if d not in targets]
    table = Table(
        "Transfer to other datasets: accuracy (%)",
        [*LEAD[1:], "seeds", *sources, *targets, "mean of targets", " "],
    )
    cells = settings(methods)
    for method in methods:
        ours = {d: value for d in (*sources, *targets) if (value := accuracy(method, d))}
        have = [ours[d].mean for d in targets if d in ours]
        mean = {} if len(have) < len(targets) else {"mean of targets": f"{sum(have) / len(have):.2f}"}
        table.add({**cells(method), "seeds": listed(method.seeds()), **ours, **mean})
        backbone = built_on(method, methods)
        if backbone:
            sides = {d: [accuracy_by_seed(m, d) for m in (method, backbone)] for d in ours}
            table.add({**minus(backbone), **{d: paired(*pair) for d, pair in sides.items()}})
        papers = {d: paper for d in ours if (paper := counterpart(method, d))}
        theirs = {d: paper.on(d)["accuracy"] for d, paper in papers.items()}
        if theirs:
            average = average_of_targets(papers, targets) if mean else None
            table.add(
                {
                    "method": "  published",
                    **{d: f"{v:.2f}" for d, v in theirs.items()},
                    "mean of targets": average and f"{average:.2f}",
                },
                *dict.fromkeys(papers.values()),
            )
            gap = {d: difference(ours[d].mean, v) for d, v in theirs.items()}
            table.add(
                {
                    "method": "  difference",
                    **gap,
                    "mean of targets": average and difference(sum(have) / len(have), average),
                }
            )
    return table.trimmed()


def average_of_targets(papers: dict[str, Published], targets: list[str]) -> float | None:
    """A paper's mean over the targets, where one paper has them all and no others."""
    (paper, *others) = dict.fromkeys(papers.get(d) for d in targets)
    if paper is None or others or AVERAGE not in paper.values:
        return None
    known = {canonical(name) for name in paper.values if name != AVERAGE}
    return paper.on(AVERAGE)["accuracy"] if known == {canonical(d) for d in targets} else None


def recall_table(methods: list[Method]) -> Table:
    """Image-text retrieval: R@1, 5, 10 in both directions."""
    columns = {f"{d}_r{k}": f"{name} R@{k}" for d, name in (("i2t", "I2T"), ("t2i", "T2I")) for k in (1, 5, 10)}
    return metrics_table("Image-text retrieval: recall (%)", methods, columns)


def composed_table(methods: list[Method]) -> Table:
    """Composed image retrieval: every recall and mean average precision that the evaluation reported; CIRCO's semantic
    aspects stay in the results file."""
    names = [name for m in methods for r in m.runs.values() for values in r.metrics.values() for name in values]
    columns = {name: name for name in dict.fromkeys(names) if composed_column(name)}
    return metrics_table("Composed image retrieval: recall and mean average precision (%)", methods, columns)


def composed_column(name: str) -> bool:
    if name.startswith("mAP@"):
        return " " not in name
    return "R@" in name or name.startswith("Rs@") or name == "average"


def metrics_table(title: str, methods: list[Method], columns: dict[str, str]) -> Table:
    """A row per evaluation (dataset and split) and method, published numbers and differences below it."""
    table = Table(title, [*LEAD, "seeds", *columns.values()])
    cells = settings(methods)
    for entry in dict.fromkeys((d, split) for m in methods for (d, _, _), r in m.runs.items() for split in r.metrics):
        for method in methods:
            values = entry_values(method, *entry, list(columns))
            if not values:
                continue
            seeds = [s for (d, _, s), r in sorted(method.runs.items()) if d == entry[0] and entry[1] in r.metrics]
            name = entry[0] if entry[1] == "test" else entry[1]
            table.add(
                {
                    "dataset": name,
                    **cells(method),
                    "seeds": listed(seeds),
                    **{columns[k]: v for k, v in values.items()},
                }
            )
            paper = counterpart(method)
            theirs = {k: v for k, v in (paper.on(evaluated(name)) if paper else {}).items() if k in values}
            if theirs:
                table.add({"method": "  published", **{columns[k]: f"{v:.2f}" for k, v in theirs.items()}}, paper)
                gap = {columns[k]: difference(values[k].mean, v) for k, v in theirs.items()}
                table.add({"method": "  difference", **gap})
    return table.trimmed()


def evaluated(entry: str) -> str:
    """The dataset of an evaluation entry: ``last FashionIQ val`` -> ``FashionIQ``; CIRR keeps its split."""
    words = [word for word in entry.split() if word not in ("last", "best")]
    return words[0] if words[0] == "FashionIQ" else " ".join(words)


def entry_values(method: Method, dataset: str, split: str, columns: list[str]) -> dict[str, Value]:
    """Mean and deviation of every metric of one evaluation."""
    runs = [r.metrics[split] for (d, _, _), r in method.runs.items() if d == dataset and split in r.metrics]
    found = {c: Value.over(values[c] for values in runs if c in values) for c in columns}
    return {c: v for c, v in found.items() if v}


def ordered(methods: list[Method]) -> list[str]:
    """The datasets of all methods, in alphabetical order."""
    return sorted({d for m in methods for d in m.datasets})


UNION_COLUMNS = {"base": "Base", "new": "New", "area": "area under curve"}


def union_by_seed(method: Method, dataset: str) -> dict[str, BySeed]:
    """The measures of :func:`union_table` by seed; empty where the method was not tested so."""
    runs = method.of(dataset, "union")
    return {name: {s: r.metrics["test"][key] for s, r in runs.items()} for key, name in UNION_COLUMNS.items() if runs}


def union_values(by_seed: dict[str, BySeed]) -> dict[str, Value]:
    """Mean and deviation of every measure, and of HM."""
    values = {name: Value.over(seeds.values()) for name, seeds in by_seed.items()}
    return {**values, "HM": hm_over_seeds(by_seed["Base"], by_seed["New"])}


def union_differences(ours: dict[str, BySeed], theirs: dict[str, BySeed]) -> dict[str, object]:
    """The cells of a row of differences, paired over the seeds that both have."""
    scores = (BaseNew(side["Base"], side["New"]) for side in (ours, theirs))
    return {
        **base_new_differences(*scores),
        UNION_COLUMNS["area"]: paired(*(s[UNION_COLUMNS["area"]] for s in (ours, theirs))),
    }


def union_average(found: Sequence[dict[str, BySeed]]) -> dict[str, BySeed]:
    """The measures' averages over datasets, seed by seed; empty unless there are several with the same seeds."""
    seeds = [set(one["Base"]) for one in found]
    if len(found) < 2 or any(other != seeds[0] for other in seeds):
        return {}
    return {name: {s: fmean(one[name][s] for one in found) for s in found[0][name]} for name in found[0]}


def union_table(methods: list[Method]) -> Table:
    """Base and new classes together: accuracy on pictures of either kind over all classes, HM of the two means, and the area
    under the seen-unseen curve, per dataset and on average. A method has its row where it was tested with ``--task unknown``.
    """
    table = Table(
        "Base and new classes together, task unknown (%)", [*LEAD, "seeds", "Base", "New", "HM", "area under curve"]
    )
    cells, datasets = settings(methods), ordered(methods)
    found = {(id(m), d): scores for m in methods for d in datasets if (scores := union_by_seed(m, d))}
    for method in methods:
        of_method = {d: found[id(method), d] for d in datasets if (id(method), d) in found}
        if mean := union_average([*of_method.values()]):
            found[id(method), average_label(len(of_method), len(datasets))] = mean
    for label in (*datasets, *dict.fromkeys(label for _, label in found if label not in datasets)):
        for method in methods:
            if scores := found.get((id(method), label)):
                seeds = listed(sorted(scores["Base"]))
                table.add({"dataset": label, **cells(method), "seeds": seeds, **union_values(scores)})
                backbone = built_on(method, methods)
                if backbone and (theirs := found.get((id(backbone), label))):
                    table.add({"dataset": label, **minus(backbone), **union_differences(scores, theirs)})
    return table.trimmed()


TABLES: dict[str, Callable[[list[Method]], Table]] = {
    "base2new": base_new_table,
    "accuracy": accuracy_table,
    "transfer": transfer_table,
    "retrieval": recall_table,
    "composed": composed_table,
}


def tables(methods: list[Method]) -> list[Table]:
    """A table per protocol that occurs."""
    found = [build([m for m in methods if m.protocol == name]) for name, build in TABLES.items()]
    found.insert(1, union_table([m for m in methods if m.protocol == "base2new"]))
    return [table for table in found if table.rows]
