"""L_con and L_cate against formulas written element by element, with gradients; finite differences in fp64."""

import math

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.captions.losses import category_loss, contrastive

SCALE = torch.tensor(12.0, dtype=torch.float64)


def features(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1).requires_grad_()


def slow_contrastive(u, z, groups, direction):
    n = len(u)
    total = {"i2t": 0.0, "t2i": 0.0}
    for name, (a, b) in {"i2t": (u, z), "t2i": (z, u)}.items():
        for i in range(n):
            scores = [SCALE * (a[i] * b[j]).sum() for j in range(n)]
            log_sum = torch.logsumexp(torch.stack(scores), 0)
            right = [j for j in range(n) if groups[j] == groups[i]]
            total[name] = total[name] - sum(scores[j] - log_sum for j in right) / len(right) / n
    return (total["i2t"] + total["t2i"]) / 2 if direction == "both" else total[direction]


@pytest.mark.parametrize("direction", ["both", "i2t", "t2i"])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 3, 0, 1]])
def test_contrastive_equals_the_slow_formula(direction, groups):
    u, z = features(6, 5), features(6, 5, seed=1)
    given = None if len(set(groups)) == 6 else torch.tensor(groups)
    ours, wanted = contrastive(u, z, SCALE, given, direction), slow_contrastive(u, z, groups, direction)
    torch.testing.assert_close(ours, wanted)
    for got, want in zip(torch.autograd.grad(ours, (u, z)), torch.autograd.grad(wanted, (u, z))):
        torch.testing.assert_close(got, want)
        assert want.norm() > 0


def slow_category(u, q, weights, valid, mode):
    total = 0.0
    for i in range(len(u)):
        members = [m for m in range(q.shape[1]) if valid[i][m]]
        cosine = {m: (u[i] * q[i, m]).sum() for m in members}
        if mode == "loss":
            terms = [weights[i][m] * -torch.log(torch.sigmoid(SCALE * (cosine[0] - cosine[m]))) for m in members if m]
            total = total + sum(terms) / sum(weights[i][m] for m in members if m)
        elif mode == "logit":
            powers = {m: torch.exp(SCALE * weights[i][m] * cosine[m]) for m in members}
            total = total - torch.log(powers[0] / sum(powers.values()))
        else:
            powers = {m: weights[i][m] * torch.exp(SCALE * cosine[m]) for m in members}
            total = total - torch.log(powers[0] / sum(powers.values()))
    return total / len(u)


def category_case():
    u, q = features(4, 5), features(4, 4, 5, seed=2)
    weights = torch.tensor(
        [[1.5, 1, 1.5, 1], [1.5, 1, 1, 1], [1, 1, 1.5, 1.5], [1.5, 1.5, 1.5, 1.5]], dtype=torch.float64
    )
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    return u, q, weights, valid


@pytest.mark.parametrize("mode", ["prob", "logit", "loss"])
def test_category_loss_equals_the_slow_formula(mode):
    u, q, weights, valid = category_case()
    ours = category_loss(u, q, weights, valid, SCALE, mode)
    wanted = slow_category(u, q, weights.tolist(), valid.tolist(), mode)
    torch.testing.assert_close(ours, wanted)
    for got, want in zip(torch.autograd.grad(ours, (u, q)), torch.autograd.grad(wanted, (u, q))):
        torch.testing.assert_close(got, want)
        assert want.norm() > 0


@pytest.mark.parametrize("mode", ["prob", "logit", "loss"])
def test_category_loss_by_finite_differences(mode):
    u, q, weights, valid = category_case()
    assert torch.autograd.gradcheck(lambda a, b: category_loss(a, b, weights, valid, SCALE, mode), (u, q))


def test_without_alpha_it_is_plain_cross_entropy():
    u, q, _, _ = category_case()
    ones, valid = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool)
    wanted = F.cross_entropy(SCALE * torch.einsum("be,bke->bk", u, q), torch.zeros(4, dtype=torch.long))
    for mode in ("prob", "logit"):
        torch.testing.assert_close(category_loss(u, q, ones, valid, SCALE, mode), wanted)


def test_masked_candidates_do_not_matter():
    u, q, weights, valid = category_case()
    changed = q.detach().clone()
    changed[~valid] = 100.0
    for mode in ("prob", "logit", "loss"):
        torch.testing.assert_close(
            category_loss(u, changed, weights, valid, SCALE, mode),
            category_loss(u, q, weights, valid, SCALE, mode),
        )


def test_without_any_negative_the_loss_is_zero():
    u, q, weights, valid = category_case()
    valid[:, 1:] = False
    for mode in ("prob", "logit", "loss"):
        assert category_loss(u, q, weights, valid, SCALE, mode).item() == pytest.approx(0.0)


def test_half_precision_inputs_are_scored_in_fp32():
    u, z = (x.detach().float() for x in (features(8, 16), features(8, 16, seed=1)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive(u, z, torch.tensor(100.0))
    assert loss.dtype == torch.float32
    assert math.isclose(float(loss), float(contrastive(u, z, torch.tensor(100.0))), rel_tol=1e-6)
