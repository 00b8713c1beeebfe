"""Evaluators: accuracy and macro F1, printed in the lines that CoOp's result parser reads."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl_prompts.engine.builtin.registry import EVALUATOR_REGISTRY, build_named
from dassl_prompts.engine.checkpoint import write_tensors


class EvaluatorBase:
    """Base of evaluators: ``reset``, ``process`` per batch, ``evaluate`` at the end."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self) -> None:
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error rate and macro F1 over the classes that occur, in percent.

    Args:
        cfg: config; ``TEST.PER_CLASS_RESULT`` adds a line per class, ``TEST.COMPUTE_CMAT`` saves the
            confusion matrix (rows normalised) to ``OUTPUT_DIR/cmat.pt``, as a tensor so that ``torch.load``
            reads it.
        lab2cname: class name by label, needed for the per-class lines.

    Raises:
        ValueError: per-class results without class names.
    """

    def __init__(self, cfg, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname)")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._y_true: list[int] = []
        self._y_pred: list[int] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Add a batch: logits ``mo`` [B, C], labels ``gt`` [B]; of equal logits the smaller class counts."""
        self._y_true.extend(gt.tolist())
        self._y_pred.extend(mo.argmax(1).tolist())

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the results; accuracy comes first.

        Raises:
            ValueError: nothing was processed.
        """
        if not self._y_true:
            raise ValueError(f"{self.cfg.DATASET.NAME}: nothing to evaluate, the split has no image")
        total = len(self._y_true)
        correct = sum(t == p for t, p in zip(self._y_true, self._y_pred))
        accuracy = 100.0 * correct / total
        error = 100.0 - accuracy
        macro_f1 = 100.0 * macro_f1_of(self._y_true, self._y_pred)
        results = OrderedDict(accuracy=accuracy, error_rate=error, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {total:,}\n"
            f"* correct: {correct:,}\n"
            f"* accuracy: {accuracy:.1f}%\n"
            f"* error: {error:.1f}%\n"
            f"* macro_f1: {macro_f1:.1f}%"
        )
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_classes()
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion()
        return results

    def _print_classes(self) -> float:
        hits = defaultdict(list)
        for true, predicted in zip(self._y_true, self._y_pred):
            hits[true].append(true == predicted)
        print("=> per-class result")
        accuracies = []
        for label in sorted(hits):
            total, correct = len(hits[label]), sum(hits[label])
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname[label]})\t"
                f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.1f}%")
        return mean

    def _save_confusion(self) -> None:
        from sklearn.metrics import confusion_matrix

        path = Path(self.cfg.OUTPUT_DIR) / "cmat.pt"
        write_tensors(torch.from_numpy(confusion_matrix(self._y_true, self._y_pred, normalize="true")), path)
        print(f"Confusion matrix is saved to {path}")


def macro_f1_of(true: Sequence[int], predicted: Sequence[int]) -> float:
    """Mean over the classes that occur in ``true`` of ``2 TP / (2 TP + FP + FN)``.

    scikit-learn's ``f1_score(true, predicted, average="macro", labels=...)``, whose import takes longer than a small evaluation.

    >>> macro_f1_of([0, 0, 1], [0, 1, 1])
    0.6666666666666666
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    count = 1 + max(true.max(), predicted.max())
    hits, there, said = (np.bincount(which, minlength=count) for which in (true[true == predicted], true, predicted))
    occur = there > 0
    return float(np.mean(2 * hits[occur] / (there + said)[occur]))


def build_evaluator(cfg, **kwargs) -> EvaluatorBase:
    """The evaluator ``cfg.TEST.EVALUATOR``.

    Raises:
        ValueError: no such evaluator; lists the known ones.
    """
    return build_named(EVALUATOR_REGISTRY, "evaluator", cfg.TEST.EVALUATOR, cfg, **kwargs)
