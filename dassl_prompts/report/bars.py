"""Bars of recalls: image-text and composed retrieval."""

from __future__ import annotations

from dassl_prompts.report.drawing import Looks, names, pyplot, shared_legend
from dassl_prompts.results.groups import Method
from dassl_prompts.results.published import counterpart
from dassl_prompts.results.statistics import Value
from dassl_prompts.results.tables import entry_values, evaluated, ordered


def recall_bars(methods: list[Method], looks: Looks):
    """R@1, 5, 10 in both directions, a figure per dataset; ticks mark published numbers."""
    plt = pyplot()
    panels = (("i2t", "image to text"), ("t2i", "text to image"))
    for dataset in ordered(methods):
        figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
        for axis, (side, title) in zip(axes, panels):
            columns = [f"{side}_r{k}" for k in (1, 5, 10)]
            values = [entry_values(m, dataset, "test", columns) for m in methods]
            bars(axis, methods, values, columns, dataset, looks)
            axis.set(title=title, ylabel="recall (%)" if side == "i2t" else "")
            axis.set_xticks(range(3), ["R@1", "R@5", "R@10"])
        figure.suptitle(dataset)
        shared_legend(figure, axes)
        yield f"recall_{dataset}", figure


def composed_bars(methods: list[Method], looks: Looks):
    """Recalls of composed retrieval, a figure per evaluation."""
    plt = pyplot()
    for dataset, split in dict.fromkeys((d, s) for m in methods for (d, _, _), r in m.runs.items() for s in r.metrics):
        values = [
            entry_values(m, dataset, split, ["R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3"]) for m in methods
        ]
        columns = [c for c in ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3") if any(c in v for v in values)]
        if not columns:
            continue
        figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        bars(axis, methods, values, columns, evaluated(split), looks)
        axis.set(title=split, ylabel="recall (%)")
        axis.set_xticks(range(len(columns)), columns)
        shared_legend(figure, [axis])
        yield f"recall_{split}", figure


def bars(
    axis, methods: list[Method], values: list[dict[str, Value]], columns: list[str], dataset: str, looks: Looks
) -> None:
    """Grouped bars: a group per column, a bar per method."""
    present = [i for i, found in enumerate(values) if found]
    width = 0.8 / max(1, len(present))
    labels = names(methods)
    for place, i in enumerate(present):
        at = [n - 0.4 + width * (place + 0.5) for n, c in enumerate(columns) if c in values[i]]
        have = [c for c in columns if c in values[i]]
        axis.bar(
            at,
            [values[i][c].mean for c in have],
            width * 0.92,
            yerr=[values[i][c].std for c in have],
            capsize=2,
            color=looks[methods[i]].color,
            hatch=looks[methods[i]].hatch,
            edgecolor="white",
            label=labels[i],
        )
        paper = counterpart(methods[i], dataset)
        theirs = paper.on(dataset) if paper else {}
        for x, c in zip(at, have):
            if c in theirs:
                axis.hlines(
                    theirs[c],
                    x - width / 2,
                    x + width / 2,
                    color="black",
                    linewidth=1.5,
                    zorder=3,
                    label="published",
                )
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
