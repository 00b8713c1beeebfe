"""Ranking against a brute-force sort in Python, with planted ties."""

import ast

import pytest
import torch

from dassl_prompts.ranking.exact import equal_groups, ordered_topk, recall_at, target_ranks, topk
from tests.conftest import ROOT

CHUNKS = (1, 7, None)


def brute_order(query, gallery, exclude=(), candidates=None):
    """Gallery indices by falling score, equal scores by index."""
    allowed = range(len(gallery)) if candidates is None else [c for c in candidates if c >= 0]
    scored = [
        (-sum(a * b for a, b in zip(query.tolist(), gallery[j].tolist())), j) for j in set(allowed) if j not in exclude
    ]
    return [j for _, j in sorted(scored)]


def integer_features(n, e=4, seed=0):
    """Small integers: every inner product is exact, and ties are frequent."""
    return torch.randint(-2, 3, (n, e), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_ranks_equal_brute_force_with_ties(chunk):
    queries, gallery = integer_features(50), integer_features(50, seed=1)
    gallery[[3, 17, 40]] = gallery[8].clone()
    target = torch.arange(50)
    ranks = target_ranks(queries, gallery, target, chunk=chunk)
    expected = [brute_order(q, gallery).index(t) + 1 for q, t in zip(queries, target.tolist())]
    scores = queries @ gallery.t()
    assert (scores == scores.diagonal()[:, None]).sum() > 60, "the test needs ties"
    assert ranks.tolist() == expected


@pytest.mark.parametrize("chunk", CHUNKS)
def test_several_targets_count_the_best(chunk):
    queries, gallery = integer_features(30), integer_features(40, seed=2)
    target = torch.randint(0, 40, (30, 3))
    target[::2, 1] = -1
    ranks = target_ranks(queries, gallery, target, chunk=chunk)
    expected = [
        min(brute_order(q, gallery).index(t) + 1 for t in row if t >= 0) for q, row in zip(queries, target.tolist())
    ]
    assert ranks.tolist() == expected


@pytest.mark.parametrize("chunk", CHUNKS)
def test_exclusion_and_candidates(chunk):
    queries, gallery = integer_features(20), integer_features(25, seed=3)
    exclude = torch.randint(-1, 25, (20,))
    candidates = torch.stack([torch.randperm(25)[:8] for _ in range(20)])
    candidates[:, 6] = -1
    target = torch.tensor(
        [next(c for c in row if c not in (-1, e)) for row, e in zip(candidates.tolist(), exclude.tolist())]
    )
    orders = [brute_order(q, gallery, (e,), c) for q, e, c in zip(queries, exclude.tolist(), candidates.tolist())]
    ranks = target_ranks(queries, gallery, target, exclude=exclude, candidates=candidates, chunk=chunk)
    assert ranks.tolist() == [order.index(t) + 1 for order, t in zip(orders, target.tolist())]
    scores, indices = topk(queries, gallery, 10, exclude=exclude, candidates=candidates, chunk=chunk)
    assert indices.tolist() == [order + [-1] * (10 - len(order)) for order in orders]
    assert (scores.isinf() == (indices == -1)).all()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("k", [1, 4, 30])
def test_topk_equals_brute_force_with_ties_at_the_end(chunk, k):
    queries, gallery = integer_features(25), integer_features(30, seed=4)
    scores, indices = topk(queries, gallery, k, chunk=chunk)
    assert indices.tolist() == [brute_order(q, gallery)[:k] for q in queries]
    assert torch.equal(scores, (queries @ gallery.t()).gather(1, indices))


def test_equal_rows_tie_in_floating_point():
    # a width that is no multiple of any tile, so that edge kernels take part
    gallery = torch.randn(197, 131)
    gallery[196], gallery[100] = gallery[1], gallery[1]
    queries = torch.randn(67, 131)
    for chunk in CHUNKS:
        first, middle, last = (target_ranks(queries, gallery, torch.full((67,), t), chunk=chunk) for t in (1, 100, 196))
        assert torch.equal(middle, first + 1) and torch.equal(last, first + 2)


# -- one order everywhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_answer_does_not_depend_on_k(dtype):
    """torch.topk's does: among 1,000 equal scores its first is 0, 3 or 8 for k = 1, 5, 10."""
    equal = torch.zeros(2, 1000, dtype=dtype)
    for k in (1, 5, 10, 16, 500, 1000):
        assert ordered_topk(equal, k)[1].tolist() == [list(range(k))] * 2
        assert ordered_topk(equal[0], k)[1].tolist() == list(range(k))
    features = torch.nn.functional.normalize(torch.randn(2300, 64), dim=1).to(dtype)
    scores = features[:200] @ features.t()  # half precision: many ties among ordinary features
    best = ordered_topk(scores, 10)[1]
    assert torch.equal(best, scores.double().argsort(dim=1, descending=True, stable=True)[:, :10])
    assert torch.equal(ordered_topk(scores, 1)[1], best[:, :1])


def test_half_precision_features_are_scored_in_fp32():
    features = torch.nn.functional.normalize(torch.randn(500, 64), dim=1).half()
    queries, whole = features[:50], features.float()
    scores, found = topk(queries, features, 5)
    assert scores.dtype == torch.float32
    assert torch.equal(found, (whole[:50] @ whole.t()).argsort(dim=1, descending=True, stable=True)[:, :5])
    ranks = target_ranks(queries, features, found[:, 1])
    assert (ranks == 2).all()


def test_doctest():
    import doctest

    from dassl_prompts.ranking import exact

    assert doctest.testmod(exact).failed == 0


def loose(path):
    """Calls that order by chance among equal values: torch's topk, and sorting without ``stable``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        words = {word.arg for word in node.keywords}
        unstable = node.func.attr == "argsort" or (node.func.attr == "sort" and "descending" in words)
        if node.func.attr == "topk" or (unstable and not words & {"stable", "kind"}):
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_nothing_is_ordered_by_chance():
    files = [p for f in ("dassl_prompts", "trainers", "datasets", "tools") for p in (ROOT / f).rglob("*.py")]
    found = [place for path in files if path.name != "exact.py" for place in loose(path)]
    assert not found, f"use dassl_prompts.ranking.exact.ordered_topk, or stable=True: {found}"


def test_identity_similarity_is_perfect():
    features = torch.nn.functional.normalize(torch.randn(40, 16), dim=1)
    assert recall_at(target_ranks(features, features, torch.arange(40)), (1, 5)) == {1: 100.0, 5: 100.0}


def test_recall_counts_by_hand():
    assert recall_at(torch.tensor([1, 2, 6, 11]), (1, 5, 10)) == {1: 25.0, 5: 50.0, 10: 75.0}


def test_equal_groups_lists_all_equal_labels():
    assert equal_groups(["a", "b", "a", "c"]).tolist() == [[0, 2], [1, -1], [0, 2], [3, -1]]


def test_bad_input_is_named():
    x, y = torch.randn(3, 4), torch.randn(5, 4)
    target = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"\[Q, E\]"):
        target_ranks(x, torch.randn(5, 3), target)
    with pytest.raises(ValueError, match="outside"):
        target_ranks(x, y, torch.tensor([0, 1, 5]))
    with pytest.raises(ValueError, match="target of query 1 is excluded"):
        target_ranks(x, y, target, exclude=torch.tensor([3, 1, -1]))
    with pytest.raises(ValueError, match="at least one"):
        target_ranks(x, y, torch.tensor([0, -1, 2]))
    with pytest.raises(ValueError, match="row 2 .* not finite"):
        target_ranks(x, y.index_fill(0, torch.tensor(2), float("nan")), target)
    with pytest.raises(ValueError, match="k is 6"):
        topk(x, y, 6)
    with pytest.raises(ValueError, match="no queries"):
        recall_at(torch.tensor([]))
