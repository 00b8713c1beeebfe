"""Base and new classes together: accuracies, curve and area against a sweep written as loops."""

import math

import pytest
import torch

from dassl_prompts.classification.union import Union, area, count_base, measure, seen_unseen_curve
from dassl_prompts.engine import get_cfg_default


def pictures(seed, n=60, classes=7, digits=None):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    logits = 3 * torch.randn(n, classes, generator=g) + 2 * torch.nn.functional.one_hot(labels, classes)
    return (logits if digits is None else logits.round(decimals=digits)), labels


def accuracies(logits, labels, base, constant):
    """By the definition: add the constant to base scores, take the best class of every picture (the first of equal ones)."""
    right = {True: [], False: []}
    for row, label in zip(logits.tolist(), labels.tolist()):
        scores = [value + constant if c < base else value for c, value in enumerate(row)]
        right[label < base].append(scores.index(max(scores)) == label)
    return [100 * sum(found) / len(found) for found in (right[True], right[False])]


@pytest.mark.parametrize("seed, digits", [(0, None), (1, None), (2, 0), (3, 1)])
def test_curve_is_what_adding_the_constant_gives(seed, digits):
    logits, labels = pictures(seed, digits=digits)
    logits = logits.double()
    base = count_base(7)
    curve = seen_unseen_curve(logits, labels, base)
    assert (curve[1:, 0] > curve[:-1, 0]).all()
    for constant, on_base, on_new in curve.tolist():
        tried = -1e6 if math.isinf(constant) else constant
        assert accuracies(logits, labels, base, tried) == pytest.approx([on_base, on_new])
    for constant in torch.linspace(-12, 12, 50).tolist():  # no constant between the kept ones gives anything else
        at = int((curve[:, 0] <= constant).sum()) - 1
        assert accuracies(logits, labels, base, constant) == pytest.approx(curve[at, 1:].tolist())


def test_ends_of_the_curve_are_the_told_tasks():
    logits, labels = pictures(4)
    base, of_base = count_base(7), labels < count_base(7)
    curve = seen_unseen_curve(logits, labels, base)
    on_base = (logits[of_base][:, :base].argmax(1) == labels[of_base]).double().mean()
    on_new = (logits[~of_base][:, base:].argmax(1) + base == labels[~of_base]).double().mean()
    assert curve[0, 1:].tolist() == pytest.approx([0.0, 100 * float(on_new)])
    assert curve[-1, 1:].tolist() == pytest.approx([100 * float(on_base), 0.0])


def test_area_of_hand_made_curves():
    perfect = torch.tensor([[-math.inf, 0.0, 100.0], [0.0, 100.0, 100.0], [1.0, 100.0, 0.0]])
    assert area(perfect) == pytest.approx(100.0)
    diagonal = torch.tensor([[-math.inf, 0.0, 100.0], [0.0, 100.0, 0.0]])
    assert area(diagonal) == pytest.approx(50.0)
    assert area(
        torch.tensor([[-math.inf, 0.0, 80.0], [0.0, 30.0, 80.0], [1.0, 30.0, 20.0], [2.0, 60.0, 0.0]])
    ) == pytest.approx(0.6 * 30 + 0.2 * 45)


def test_area_does_not_see_the_level_of_base_scores_and_the_accuracies_do():
    logits, labels = pictures(5)
    raised = logits.clone()
    raised[:, : count_base(7)] += 4.0
    (plain, _), (high, _) = measure(logits, labels), measure(raised, labels)
    assert high["area"] == pytest.approx(plain["area"], abs=1e-4) and high["best_hm"] == pytest.approx(
        plain["best_hm"], abs=1e-4
    )
    assert high["base"] > plain["base"] and high["new"] < plain["new"]


def test_evaluator_collects_batches(capsys):
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    logits, labels = pictures(6)
    evaluator = Union(cfg)
    for part in range(0, 60, 25):
        evaluator.process(logits[part : part + 25], labels[part : part + 25])
    results = evaluator.evaluate()
    on_base, on_new = accuracies(logits, labels, count_base(7), 0.0)
    assert (results["base"], results["new"]) == pytest.approx((on_base, on_new))
    assert (
        results["hm"] == pytest.approx(2 * on_base * on_new / (on_base + on_new)) and next(iter(results)) == "accuracy"
    )
    assert evaluator.curve[0][0] == 0.0 and evaluator.curve[-1][1] == 0.0 and len(evaluator.curve) <= 201
    assert "4 base and 3 new classes together" in capsys.readouterr().out
    evaluator.reset()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()


def test_one_half_alone_is_refused():
    logits, labels = pictures(7)
    with pytest.raises(ValueError, match="pictures of base and of new classes"):
        seen_unseen_curve(logits[labels < 4], labels[labels < 4], 4)
    with pytest.raises(ValueError, match="both kinds are needed"):
        seen_unseen_curve(logits, labels, 7)
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES all"):
        Union(cfg)
