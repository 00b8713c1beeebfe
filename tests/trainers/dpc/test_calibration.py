"""Ways to join scores: what each of them promises, on hand-made scores."""

import pytest
import torch

from dassl_prompts.trainers.dpc import calibration
from dassl_prompts.trainers.dpc.union import join

IS_BASE = torch.tensor([True, False, True, False, True])


def scores(n=50, seed=0):
    g = torch.Generator().manual_seed(seed)
    every = torch.randn(n, 5, generator=g)
    base = 2 * torch.randn(n, 3, generator=g) + 5
    return base, every, torch.randint(3, (n,), generator=g)


def test_level_puts_the_best_wrong_class_where_p_has_it():
    base, every, labels = scores()
    constant = calibration.level(base, every[:, IS_BASE], labels)
    total = {"p'": 0.0, "p": 0.0}
    for i, label in enumerate(labels.tolist()):
        total["p'"] += max(float(v) for c, v in enumerate(base[i]) if c != label) + constant
        total["p"] += max(float(v) for c, v in enumerate(every[i, IS_BASE]) if c != label)
    assert total["p'"] == pytest.approx(total["p"], rel=1e-4)


def test_share_keeps_as_many_pictures_among_base_classes_as_p_does():
    base, every, _ = scores(n=201)
    by_p = (every[:, IS_BASE].amax(1) >= every[:, ~IS_BASE].amax(1)).sum()
    moved = join(base + calibration.share(base, every, IS_BASE), every, IS_BASE, "none")
    assert abs(int(IS_BASE[moved.argmax(1)].sum()) - int(by_p)) <= 1
    assert int(IS_BASE[join(base, every, IS_BASE, "none").argmax(1)].sum()) > int(by_p) + 20


def test_temperature_has_the_least_cross_entropy():
    base, _, labels = scores(n=400)
    own = torch.nn.functional.one_hot(labels, 3) * 3.0 + base
    found = calibration.temperature(own, labels)
    loss = lambda t: float(torch.nn.functional.cross_entropy(own / t, labels))
    assert all(loss(found) <= loss(t) for t in calibration.TEMPERATURES)
    assert calibration.temperature(10 * own, labels) == pytest.approx(10 * found, rel=0.15)


def test_every_way_leaves_new_classes_as_they_are():
    base, every, labels = scores()
    ways = calibration.ways(base, every, labels, IS_BASE)
    assert list(ways)[0] == "none" and {"gate", "chain"} < set(ways)
    for name, way in ways.items():
        joint = way(base, every)
        assert torch.equal(joint[:, ~IS_BASE], every[:, ~IS_BASE]), name
        assert joint[:, IS_BASE].shape == base.shape and not torch.equal(joint[:, IS_BASE], every[:, IS_BASE]), name
