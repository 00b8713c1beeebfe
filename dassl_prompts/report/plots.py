"""Plots of a report, each a PNG. Which ones appear depends on the runs there are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.report.bars import composed_bars, recall_bars
from dassl_prompts.report.curves import per_epoch, read_curves
from dassl_prompts.report.drawing import DPI, Looks, grid, names, pyplot, shared_legend
from dassl_prompts.results.groups import Method, accuracy, base_new
from dassl_prompts.results.published import counterpart
from dassl_prompts.results.statistics import Value
from dassl_prompts.results.tables import AVERAGE, average_paper, ordered

#: percentage points that an axis of accuracies spans at least
LEAST_SPAN = 4.0


def draw_all(methods: list[Method], folder: Path) -> Iterator[Path]:
    """Draw everything there is data for; yields the files.

    Args:
        methods: in their order, which the plots keep.
    """
    looks = Looks(methods)
    for protocol, draws in PLOTS.items():
        chosen = [m for m in methods if m.protocol == protocol]
        for draw in draws if chosen else ():
            for name, figure in draw(chosen, looks):
                path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.png"
                with atomic_path(path) as temporary:
                    figure.savefig(temporary, dpi=DPI, format="png")
                pyplot().close(figure)
                yield path


# -- base-to-new ---------------------------------------------------------------------------------------------


def base_new_scatter(methods: list[Method], looks: Looks):
    """Base against new accuracy with lines of equal HM; hollow markers are published numbers."""
    datasets = ordered(methods)
    points = [(m, n, point) for m, n in zip(methods, names(methods)) if (point := mean_point(m, datasets))]
    if not points:
        return
    figure, axis = pyplot().subplots(figsize=(6.6, 4.8), layout="constrained")
    compared = False
    for method, name, (base, new, done) in points:
        look = looks[method].line
        part = "" if len(done) == len(datasets) else f", {len(done)} of {len(datasets)} datasets"
        axis.errorbar(
            base.mean,
            new.mean,
            xerr=base.std,
            yerr=new.std,
            label=name + part,
            markersize=8,
            capsize=3,
            linestyle="",
            zorder=3,
            **look,
        )
        paper = average_paper(method, done) if len(done) > 1 else counterpart(method)
        theirs = paper.on(AVERAGE if len(done) > 1 else done[0]) if paper else {}
        if theirs:
            compared = True
            x, y = theirs["Base"], theirs["New"]
            axis.plot([base.mean, x], [new.mean, y], color=look["color"], linewidth=0.8, linestyle=":", zorder=2)
            axis.plot(x, y, markerfacecolor="white", markersize=8, linestyle="", zorder=3, **look)
    hm_contours(axis)
    axis.set_xlabel("accuracy on base classes (%)")
    axis.set_ylabel("accuracy on new classes (%)")
    axis.set_title(datasets[0] if len(datasets) == 1 else f"mean over {len(datasets)} datasets")
    title = "hollow: published" if compared else None
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=8,
        title=title,
        title_fontsize=8,
    )
    yield "base_new", figure


def mean_point(method: Method, datasets: list[str]) -> tuple[Value, Value, list[str]] | None:
    """Base and new accuracy on one dataset, or their means over all; and the datasets there are."""
    found = {d: s for d in datasets if (s := base_new(method, d))}
    if len(found) == 1:
        (scores,) = found.values()
        return scores.base, scores.new, list(found)
    if not found:
        return None
    mean = [Value(sum(getattr(s, side).mean for s in found.values()) / len(found)) for side in ("base", "new")]
    return mean[0], mean[1], list(found)


def hm_contours(axis) -> None:
    """Lines of equal harmonic mean behind the points."""
    import numpy as np

    axis.margins(0.15)
    axis.autoscale_view()
    (x0, x1), (y0, y1) = (
        (max(0.5, low - 0.5), min(100.0, high + 0.5)) for low, high in (axis.get_xlim(), axis.get_ylim())
    )
    axis.set(xlim=(x0, x1), ylim=(y0, y1))
    x, y = np.meshgrid(np.linspace(x0, x1, 200), np.linspace(y0, y1, 200))
    hm = 2 * x * y / (x + y)
    lines = axis.contour(x, y, hm, levels=8, colors="0.75", linewidths=0.8, zorder=1)
    axis.clabel(lines, fmt="HM %.4g", fontsize=7, colors="0.5")


def seen_unseen_curves(methods: list[Method], looks: Looks):
    """Base over new accuracy while a constant is added to base scores, a panel per dataset; the marker is at no constant."""
    labels = names(methods)
    curves = {
        (d, i): [r.results["seen_unseen_curve"] for r in m.of(d, "union").values() if "seen_unseen_curve" in r.results]
        for d in ordered(methods)
        for i, m in enumerate(methods)
    }
    datasets = list(dict.fromkeys(d for (d, _), found in curves.items() if found))
    if not datasets:
        return
    figure, axes = grid(len(datasets))
    for axis, dataset in zip(axes, datasets):
        for i, name in enumerate(labels):
            found = curves.get((dataset, i))
            if not found:
                continue
            look, new = looks[methods[i]].line, np.linspace(0, 100, 201)
            mean = np.mean([np.interp(new, *np.array(c)[::-1, ::-1].T, right=np.nan) for c in found], axis=0)
            axis.plot(new, mean, label=name, color=look["color"])
            runs = methods[i].of(dataset, "union").values()
            at = [np.mean([r.metrics["test"][side] for r in runs]) for side in ("new", "base")]
            axis.plot(*at, markersize=7, linestyle="", **look)
        axis.set(title=dataset, xlabel="accuracy on new pictures (%)", ylabel="accuracy on base pictures (%)")
        axis.grid(alpha=0.3)
    figure.suptitle("base and new classes together; mean over seeds", fontsize=9)
    shared_legend(figure, axes)
    yield "seen_unseen", figure


# -- accuracy per dataset ------------------------------------------------------------------------------------


def base_new_per_dataset(methods: list[Method], looks: Looks):
    """A dot per method and dataset, base and new side by side."""
    scores = {(i, d): s for i, m in enumerate(methods) for d in ordered(methods) if (s := base_new(m, d))}
    panels = {
        "base classes": {key: s.base for key, s in scores.items()},
        "new classes": {key: s.new for key, s in scores.items()},
        "harmonic mean": {key: s.hm_value for key, s in scores.items()},
    }
    if scores:
        yield "base_new_per_dataset", dots(methods, panels, looks)


def accuracy_per_dataset(methods: list[Method], looks: Looks, name: str = "accuracy_per_dataset"):
    """A dot per method and dataset; a method's shots follow each other by number."""
    values = {(i, d): v for i, m in enumerate(methods) for d in ordered(methods) if (v := accuracy(m, d))}
    if values:
        yield name, dots(methods, {"accuracy": values}, looks)


def transfer_per_dataset(methods: list[Method], looks: Looks):
    yield from accuracy_per_dataset(
        [m for m in methods if any(r.is_target for r in m.runs.values())], looks, "transfer_per_dataset"
    )


def dots(methods: list[Method], panels: dict[str, dict[tuple[int, str], Value]], looks: Looks):
    """Datasets from top to bottom, a dot per method with its standard deviation, a panel per measure."""
    plt = pyplot()
    datasets = [
        d for d in ordered(methods) if any((i, d) in values for values in panels.values() for i in range(len(methods)))
    ]
    height = 1.4 + len(datasets) * max(0.32, 0.11 * len(methods))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(2.2 + 3.1 * len(panels), max(height, 2.6)),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for axis, (title, values) in zip(axes[0], panels.items()):
        for i, name in enumerate(names(methods)):
            rows = [
                (value, at - 0.3 + 0.6 * (i + 0.5) / len(methods))
                for at, d in enumerate(datasets)
                if (value := values.get((i, d)))
            ]
            axis.errorbar(
                [v.mean for v, _ in rows],
                [y for _, y in rows],
                xerr=[v.std for v, _ in rows],
                linestyle="",
                label=name,
                markersize=5,
                capsize=2,
                **looks[methods[i]].line,
            )
        axis.set(
            title=title,
            xlabel=f"{title if title == 'harmonic mean' else 'accuracy'} (%)",
            ylim=(len(datasets) - 0.5, -0.5),
        )
        widen(axis)
        axis.set_yticks(range(len(datasets)), datasets)
        for at in range(len(datasets) - 1):
            axis.axhline(at + 0.5, color="0.9", linewidth=0.8, zorder=0)
        axis.grid(axis="x", alpha=0.3)
    shared_legend(figure, axes[0])
    return figure


def widen(axis) -> None:
    """Let the x axis show :data:`LEAST_SPAN` points at least: a tenth must not look like a gulf."""
    low, high = axis.get_xlim()
    more = max(0.0, LEAST_SPAN - (high - low)) / 2
    axis.set_xlim(low - more, high + more)


# -- shots ---------------------------------------------------------------------------------------------------


def shots_curves(methods: list[Method], looks: Looks):
    """Accuracy over the number of shots, a panel per dataset, where a method has several."""
    kinds = dict.fromkeys((m.trainer, m.cfg, m.variant) for m in methods if m.shots > 0)
    lines = {
        k: sorted((m for m in methods if (m.trainer, m.cfg, m.variant) == k), key=lambda m: m.shots) for k in kinds
    }
    lines = {k: ms for k, ms in lines.items() if len(ms) > 1}
    datasets = [
        d for d in ordered(methods) if any(sum(accuracy(m, d) is not None for m in ms) > 1 for ms in lines.values())
    ]
    if not datasets:
        return
    figure, axes = grid(len(datasets))
    recipes = {k[0]: {other[1:] for other in lines if other[0] == k[0]} for k in lines}
    for axis, dataset in zip(axes, datasets):
        for kind, some in lines.items():
            points = [(m.shots, v) for m in some if (v := accuracy(m, dataset))]
            label = (
                kind[0]
                if len(recipes[kind[0]]) == 1
                else f"{kind[0]} ({kind[1]}{f' [{kind[2]}]' if kind[2] > 1 else ''})"
            )
            axis.errorbar(
                [n for n, _ in points],
                [v.mean for _, v in points],
                yerr=[v.std for _, v in points],
                capsize=2,
                label=label,
                **looks[some[0]].line,
            )
        ticks = sorted({m.shots for some in lines.values() for m in some})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set(title=dataset, xlabel="training images per class", ylabel="accuracy (%)")
        axis.grid(alpha=0.3)
    shared_legend(figure, axes)
    yield "shots", figure


# -- training curves -----------------------------------------------------------------------------------------


def training_curves(methods: list[Method], looks: Looks):
    """Loss and, where logged, accuracy over epochs, a panel per dataset: mean over seeds and their range."""
    labels = names(methods)
    curves = {(d, i): c for d in ordered(methods) for i, m in enumerate(methods) if (c := method_curves(m, d))}
    for term, label in (("loss", "training loss"), ("acc", "training accuracy (%)")):
        datasets = list(dict.fromkeys(d for (d, _), c in curves.items() if term in c))
        if not datasets:
            continue
        figure, axes = grid(len(datasets))
        for axis, dataset in zip(axes, datasets):
            for i, name in enumerate(labels):
                points = curves.get((dataset, i), {}).get(term, {})
                if not points:
                    continue
                look, epochs = looks[methods[i]].line, sorted(points)
                axis.plot(
                    epochs,
                    [sum(points[e]) / len(points[e]) for e in epochs],
                    label=name,
                    markersize=4,
                    **look,
                )
                axis.fill_between(
                    epochs,
                    [min(points[e]) for e in epochs],
                    [max(points[e]) for e in epochs],
                    alpha=0.2,
                    color=look["color"],
                    linewidth=0,
                )
            axis.set(title=dataset, xlabel="epoch", ylabel=label)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(alpha=0.3)
        shared_legend(figure, axes)
        yield f"curves_{methods[0].protocol}_{term}", figure


def method_curves(method: Method, dataset: str) -> dict[str, dict[int, list[float]]]:
    """Term -> epoch -> values of the seeds, from the training runs on a dataset."""
    out: dict[str, dict[int, list[float]]] = {}
    for (name, _, _), run in method.runs.items():
        if name == dataset and run.results.get("kind", "training") == "training":
            try:
                curves = read_curves(run.folder)
            except ValueError as error:  # a damaged epochs.json costs its own curve
                print(f"no training curve of {run.folder}: {error}", file=sys.stderr)
                continue
            for term, points in curves.items():
                for epoch, value in per_epoch(points).items():
                    out.setdefault(term, {}).setdefault(epoch, []).append(value)
    return out


PLOTS = {
    "base2new": (base_new_scatter, seen_unseen_curves, base_new_per_dataset, training_curves),
    "accuracy": (accuracy_per_dataset, shots_curves, training_curves),
    "transfer": (transfer_per_dataset, training_curves),
    "retrieval": (recall_bars, training_curves),
    "composed": (composed_bars, training_curves),
}
