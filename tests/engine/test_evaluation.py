"""The Classification evaluator and the lines that CoOp's parser reads."""

import re

import numpy as np
import pytest
import torch

from dassl_prompts.engine import ENGINE_NAME, build_evaluator, get_cfg_default
from dassl_prompts.engine.builtin.evaluation import macro_f1_of


def evaluator(tmp_path, **test):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    for key, value in test.items():
        cfg.TEST[key] = value
    return build_evaluator(cfg, lab2cname={0: "bean", 1: "leaf", 2: "root", 3: "stem"})


def feed(evaluator, predictions, labels):
    for start in range(0, len(labels), 3):
        logits = torch.nn.functional.one_hot(torch.tensor(predictions[start : start + 3]), 4).float()
        evaluator.process(logits, torch.tensor(labels[start : start + 3]))


PREDICTIONS, LABELS = [0, 1, 1, 2, 3, 0, 2], [0, 1, 0, 2, 2, 1, 2]


def macro_f1(predictions, labels):
    """By the definition, over the classes that occur among the labels."""
    scores = []
    for c in sorted(set(labels)):
        tp = sum(p == c == t for p, t in zip(predictions, labels))
        scores.append(2 * tp / (predictions.count(c) + labels.count(c)))
    return 100 * sum(scores) / len(scores)


def test_macro_f1_is_scikit_learns_to_the_bit():
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(0)
    for classes in (2, 7, 50):
        true, found = draw.integers(0, classes, 200), draw.integers(0, classes + 3, 200)
        known = f1_score(true, found, average="macro", labels=np.unique(true))
        assert macro_f1_of(true.tolist(), found.tolist()) == known


def test_values_and_lines(tmp_path, capsys):
    ev = evaluator(tmp_path)
    feed(ev, PREDICTIONS, LABELS)
    results = ev.evaluate()
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(400 / 7) and results["error_rate"] == pytest.approx(300 / 7)
    assert results["macro_f1"] == pytest.approx(macro_f1(PREDICTIONS, LABELS))
    assert capsys.readouterr().out == (
        "Loading evaluator: Classification\n=> result\n* total: 7\n* correct: 4\n* accuracy: 57.1%\n* error: 42.9%\n"
        f"* macro_f1: {macro_f1(PREDICTIONS, LABELS):.1f}%\n"
    )


def test_reset_forgets(tmp_path):
    ev = evaluator(tmp_path)
    feed(ev, PREDICTIONS, LABELS)
    ev.reset()
    feed(ev, [0], [0])
    assert ev.evaluate()["accuracy"] == 100.0


def test_per_class_lines_and_confusion_matrix(tmp_path, capsys):
    ev = evaluator(tmp_path, PER_CLASS_RESULT=True, COMPUTE_CMAT=True)
    feed(ev, PREDICTIONS, LABELS)
    results = ev.evaluate()
    assert results["perclass_accuracy"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 2 / 3) / 3)
    out = capsys.readouterr().out
    assert "* class: 2 (root)\ttotal: 3\tcorrect: 2\tacc: 66.7%\n* average: 55.6%\n" in out
    matrix = torch.load(tmp_path / "cmat.pt", weights_only=ENGINE_NAME == "builtin")  # Dassl writes a numpy array
    expected = np.zeros((4, 4))
    np.add.at(expected, (LABELS, PREDICTIONS), 1)
    expected /= np.maximum(expected.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(np.asarray(matrix), expected)


@pytest.mark.skipif(ENGINE_NAME == "dassl", reason="Dassl's own evaluator divides by zero")
def test_nothing_to_evaluate(tmp_path):
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator(tmp_path).evaluate()


def test_unknown_evaluator(tmp_path):
    with pytest.raises(ValueError, match=r"\[Clasification\] \(do you mean \[Classification\]"):
        evaluator(tmp_path, EVALUATOR="Clasification")


def parse_as_coop_does(log):
    """CoOp's parse_test_res: wait for the end of training, then take the last match."""
    finished, accuracy = False, None
    for line in log.splitlines():
        finished = finished or line.strip() == "Finish training"
        match = re.search(r"\* accuracy: ([\.\deE+-]+)%", line)
        if match and finished:
            accuracy = float(match.group(1))
    return accuracy


def test_coops_parser_reads_a_run(tmp_path, capsys):
    from tests.engine.toy import make_images, toy_trainer

    make_images(tmp_path / "data")
    toy_trainer(tmp_path / "data", tmp_path / "out", "TEST.FINAL_MODEL", "best_val").train()
    assert parse_as_coop_does(capsys.readouterr().out) == 100.0


def test_of_equal_scores_the_smaller_class_counts(tmp_path):
    """With 1,000 equal logits torch.topk's first class depends on k."""
    from dassl_prompts.engine import compute_accuracy

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        equal = torch.zeros(4, 1000, dtype=dtype)
        labels = torch.tensor([0, 3, 7, 9])
        assert [float(a) for a in compute_accuracy(equal, labels, topk=(1, 4, 10))] == [25.0, 50.0, 100.0]
        ev = evaluator(tmp_path)
        ev.process(equal, labels)
        assert ev.evaluate()["accuracy"] == 25.0
