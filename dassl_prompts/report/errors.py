"""``report --errors DIR``: where runs are wrong. A page with worst classes, confusion, mistakes, calibration, and pairs of runs."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.predictions import Predictions, file_name, read
from dassl_prompts.ranking.sheet import Row, contact_sheet
from dassl_prompts.report.drawing import DPI, pyplot
from dassl_prompts.results.answers import (
    calibration_error,
    class_accuracies,
    compare,
    confusion,
    likelihood_loss,
    wilson,
)
from dassl_prompts.results.runs import Run

#: how many classes, mistakes and pictures are shown
WORST, MISTAKES, EXAMPLES = 10, 12, 5
#: a confusion matrix shows the classes that are confused most, up to this many
CONFUSED = 40
PAGE = "errors.md"


@dataclass(frozen=True)
class Answers:
    """A finished run with its predictions on the test set."""

    run: Run
    predictions: Predictions

    @property
    def title(self) -> str:
        run = self.run
        return f"{run.trainer} {run.cfg} on {run.dataset} ({run.classes} classes), seed {run.seed}"

    @cached_property
    def names(self) -> list[str]:
        """Class names; of runs that noted none the labels."""
        names = list(self.run.results.get("classnames", []))
        most = int(max(self.predictions.label.max(), self.predictions.answer.max())) + 1
        return [*names, *map(str, range(len(names), most))]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return re.sub(r"[^\w.+-]+", "_", self.title)

    def picture(self, number: int) -> str:
        """The file of a picture, wherever the data's root was."""
        root = Path(self.run.setting("DATASET.ROOT")).expanduser()
        return os.path.join(root.parent if root.is_file() else root, str(self.predictions.path[number]))

    @property
    def mistakes(self) -> np.ndarray:
        """Numbers of the wrong pictures, those that the run was surest of first."""
        wrong = np.flatnonzero(~self.predictions.right)
        return wrong[np.argsort(-self.predictions.log_answer[wrong], kind="stable")]


def found_answers(runs: list[Run]) -> list[Answers]:
    """The runs that have predictions; a file that cannot be read is named and left out."""
    found = []
    for run in runs:
        try:
            found.append(Answers(run, read(run.folder / file_name("test"))))
        except FileNotFoundError:
            continue
        except ValueError as error:
            print(error)
    return found


def write_errors(runs: list[Run], folder: Path) -> list[Path]:
    """Write the page and its pictures.

    Returns:
        the files, the page last.

    Raises:
        ValueError: no run has predictions.
    """
    answers = found_answers(runs)
    if not answers:
        raise ValueError(
            "no run has predictions_test.npz: runs of this version write it; repeat the evaluation of older ones with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    parts = ["# Errors", summary(answers)]
    for one in answers:
        parts.append(section(one, folder, written))
    pairs = [text for pair in combinations(answers, 2) if (text := pair_section(*pair))]
    if pairs:
        parts.append("## Two runs on the same pictures\n\n" + "\n\n".join(pairs))
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*written, folder / PAGE]


def table(rows: list[dict]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def summary(answers: list[Answers]) -> str:
    rows = []
    for one in answers:
        p = one.predictions
        low, high = wilson(int(p.right.sum()), len(p.right))
        rows.append(
            {
                "run": one.title,
                "pictures": len(p.right),
                "accuracy": f"{100 * p.right.mean():.2f}",
                "CI95": f"{low:.2f} to {high:.2f}",
                "confidence": f"{100 * np.exp(p.log_answer).mean():.2f}",
                "ECE": f"{100 * calibration_error(np.exp(p.log_answer), p.right):.2f}",
                "NLL": f"{likelihood_loss(p.log_label):.3f}",
            }
        )
    return table(rows) + (
        "\n\nAccuracy in percent with Wilson's interval over the pictures, mean confidence, expected calibration error (15 equal bins) "
        "in percent, negative log likelihood in nats."
    )


def section(one: Answers, folder: Path, written: list[Path]) -> str:
    """A run: its worst classes and pictures of its errors; ``written`` gets the files."""
    p, names = one.predictions, one.names
    counts = confusion(p.label, p.answer, len(names))
    accuracies = sorted(class_accuracies(p.label, p.answer).items(), key=lambda item: item[1])
    rows = []
    for label, (accuracy, total) in accuracies[:WORST]:
        others = counts[label].copy()
        others[label] = 0
        taken = [int(i) for i in np.argsort(-others, kind="stable")[:3] if others[i]]
        taken_for = ", ".join(f"{names[i]} ({others[i]})" for i in taken)
        rows.append({"class": names[label], "accuracy": f"{accuracy:.1f}", "pictures": total, "taken for": taken_for})
    text = [f"## {one.title}", table(rows)]
    path = folder / f"{one.stem}_confusion.png"
    draw_confusion(counts, names, path)
    written.append(path)
    text.append(f"![confusion matrix]({path.name})")
    sheet, lost = draw_mistakes(one, folder / f"{one.stem}_mistakes.png")
    if sheet:
        written.append(sheet)
        text.append(f"The mistakes that it was surest of:\n\n![mistakes]({sheet.name})")
    if lost:
        text.append(f"{lost} pictures are not where they were and are not shown.")
    return "\n\n".join(text)


def draw_confusion(counts: np.ndarray, names: list[str], path: Path) -> None:
    """Shares of the answers by label; of many classes those with most errors."""
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:CONFUSED])
    shares = counts[np.ix_(chosen, chosen)] / np.maximum(counts[chosen].sum(1, keepdims=True), 1)
    plt = pyplot()
    side = max(3.5, 1.6 + 0.24 * len(chosen))
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks, labels = range(len(chosen)), [names[i] for i in chosen]
    axes.set_xticks(ticks, labels, rotation=90, fontsize=7)
    axes.set_yticks(ticks, labels, fontsize=7)
    for row in ticks:
        for column in ticks:
            if shares[row, column] >= 0.005 and len(chosen) <= 20:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center", fontsize=6, color=colour
                )
    part = "" if len(chosen) == len(names) else f" ({len(chosen)} of {len(names)} classes, those with most errors)"
    axes.set_xlabel(f"answer, in % of the label's pictures{part}", fontsize=7)
    axes.set_ylabel("label", fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    plt.close(figure)


def draw_mistakes(one: Answers, path: Path) -> tuple[Path | None, int]:
    """A contact sheet: each mistake with the scores, beside pictures that are rightly of the class it was taken for.

    Returns:
        the file, None where there is nothing to show; and how many pictures are not there any more.
    """
    p, rows, lost = one.predictions, [], 0
    right = np.flatnonzero(p.right)
    for number in one.mistakes[:MISTAKES]:
        picture = one.picture(number)
        if not is_there(picture):
            lost += 1
            continue
        answer, label = int(p.answer[number]), int(p.label[number])
        caption = f"{one.names[label]}\n{np.exp(p.log_label[number]):.3f}\n\ntaken for {one.names[answer]}\n{np.exp(p.log_answer[number]):.3f}"
        like = [one.picture(i) for i in right[p.label[right] == answer][: EXAMPLES - 1]]
        like = [example for example in like if is_there(example)]
        rows.append(Row(picture, caption, like, [one.names[answer]] * len(like)))
    if not rows:
        return None, lost
    contact_sheet(rows, path, one.run.setting("INPUT.ORIENTATION") or "stored")
    return path, lost


def is_there(picture: str) -> bool:
    """Whether the file, or the archive that it is in, still lies there."""
    return os.path.exists(picture.partition("::")[0])


def pair_section(one: Answers, other: Answers) -> str:
    """Who is right where the other is wrong; "" where the runs have not seen the same pictures with the same classes."""
    if one.names != other.names or one.run.seed != other.run.seed:
        return ""
    a, b = one.predictions, other.predictions
    order_a, order_b = np.argsort(a.path, kind="stable"), np.argsort(b.path, kind="stable")
    if len(a.path) != len(b.path) or (a.path[order_a] != b.path[order_b]).any():
        return ""
    right_a, right_b = a.right[order_a], b.right[order_b]
    found = compare(right_a, right_b)
    rows = [
        {"": f"A: {one.title}", "alone right": found.first, "accuracy": f"{100 * right_a.mean():.2f}"},
        {"": f"B: {other.title}", "alone right": found.second, "accuracy": f"{100 * right_b.mean():.2f}"},
    ]
    lines = [table(rows), f"Both right {found.both}, neither {found.neither}; McNemar's exact test p = {found.p:.3g}."]
    for name, mask in (("A", right_a & ~right_b), ("B", right_b & ~right_a)):
        labels, counts = np.unique(a.label[order_a][mask], return_counts=True)
        most = [f"{one.names[labels[i]]} ({counts[i]})" for i in np.argsort(-counts, kind="stable")[:EXAMPLES]]
        if most:
            lines.append(f"{name} alone is right most often on {', '.join(most)}.")
    return "\n\n".join(lines)
