"""``predictions_<split>.npz``: what an evaluation answered, picture by picture.

Kept are the label, the answer, its probability and that of the label, as float32 logarithms: probabilities of a trained CLIP are
often exactly 1 in fp32, their logarithms still tell how certain it was. Reading executes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.reading import read_npz, reading, require

ARRAYS = ("path", "label", "answer", "log_answer", "log_label")


def file_name(split: str) -> str:
    """Of the predictions on a split."""
    return f"predictions_{split}.npz"


@dataclass(frozen=True)
class Predictions:
    """Of N pictures.

    Attributes:
        path: ``[N]`` files, below the data's root where they lie there. label: ``[N]`` int32 classes. answer: ``[N]`` int32, the
        class with the largest score. log_answer, log_label: ``[N]`` float32 logarithms of the probabilities of both.
    """

    path: np.ndarray
    label: np.ndarray
    answer: np.ndarray
    log_answer: np.ndarray
    log_label: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """``[N]`` whether the answer is the label."""
        return self.answer == self.label


class Collector:
    """Gathers the batches of an evaluation.

    Args:
        root: folder that paths are written relative to.
    """

    def __init__(self, root: str | os.PathLike):
        root = Path(os.path.abspath(os.path.expanduser(root))) if root else None
        root = root.parent if root and root.is_file() else root
        self.root = os.path.join(root, "") if root else ""
        self.paths: list[str] = []
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, paths: Sequence[str], logits, labels) -> None:
        """A batch: logits ``[B, C]``, labels ``[B]``; of equal logits the smaller class is the answer."""
        scores = logits.detach().float().log_softmax(dim=1)
        answer = logits.argmax(dim=1)
        chosen = (scores.gather(1, index[:, None])[:, 0] for index in (answer, labels))
        self.paths += [path.removeprefix(self.root) if self.root else path for path in paths]
        self.parts.append(tuple(t.cpu().numpy() for t in (labels.int(), answer.int(), *chosen)))

    def write(self, path: str | os.PathLike) -> None:
        """Write what was gathered, atomically; nothing where nothing was."""
        if not self.parts:
            return
        columns = [np.concatenate(column) for column in zip(*self.parts)]
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **dict(zip(ARRAYS, (np.array(self.paths, dtype=np.str_), *columns))))


def read(path: str | os.PathLike) -> Predictions:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; names it.
    """
    with reading(path, "a file of predictions"):
        content = read_npz(path)
        found = Predictions(*(content[name] for name in ARRAYS))
        fits = len({len(getattr(found, name)) for name in ARRAYS}) == 1 and found.label.dtype.kind == "i"
        require(fits, "its arrays do not fit each other")
    return found
