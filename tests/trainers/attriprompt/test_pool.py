"""Prompt pool: retrieval, composition and usage against plain loops."""

import math

import pytest
import torch

from dassl_prompts.trainers.attriprompt.pool import (
    PoolUsage,
    PromptPool,
    TupleMemo,
    key_loss,
    mix,
    order_free,
    retrieve,
)


def cosine(a, b):
    return float(a @ b) / float(a.norm() * b.norm())


def best(scores, k):
    return sorted(range(len(scores)), key=lambda m: (-scores[m], m))[:k]


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("mode", ["per_cluster", "union"])
def test_retrieval_equals_loops(mode, top_k, per_layer):
    pool = PromptPool(layers=3, size=7, length=2, width=5, per_layer=per_layer)
    queries = torch.randn(4, 3, 2, 5)
    with torch.no_grad():
        similarity = pool.similarity(queries)
    found = retrieve(similarity, top_k, mode)
    for b in range(4):
        for layer in range(3):
            keys = [p.mean(dim=0) for p in pool.prompts[layer if per_layer else 0].detach()]
            scores = [[cosine(q, key) for key in keys] for q in queries[b, layer]]
            if mode == "union":
                top = [max(column) for column in zip(*scores)]
                expected = best(top, 2 * top_k)
                values = [top[m] for m in expected]
            else:
                expected = [m for row in scores for m in best(row, top_k)]
                values = [row[m] for row in scores for m in best(row, top_k)]
            assert found.index[b, layer].tolist() == expected
            torch.testing.assert_close(found.score[b, layer], torch.tensor(values), rtol=0, atol=1e-5)


def test_planted_queries_find_their_prompt_and_ties_the_lowest():
    pool = PromptPool(layers=1, size=6, length=3, width=8)
    planted = torch.tensor([4, 0, 5])
    queries = pool.prompts[0].mean(dim=1)[planted].detach().view(1, 1, 3, 8) * 7
    assert retrieve(pool.similarity(queries)).index.flatten().tolist() == planted.tolist()
    assert retrieve(torch.zeros(1, 1, 2, 6), top_k=2).index.flatten().tolist() == [0, 1, 0, 1]
    assert retrieve(torch.zeros(1, 1, 2, 6), top_k=2, mode="union").index.flatten().tolist() == [0, 1, 2, 3]


def test_running_mean_is_the_mean_of_all_queries_and_is_subtracted():
    pool = PromptPool(layers=2, size=4, length=1, width=3)
    batches = [torch.randn(n, 2, 5, 3) for n in (4, 1, 7)]
    for batch in batches:
        pool.observe(batch)
    everything = torch.cat(batches)
    torch.testing.assert_close(pool.centre, everything.mean(dim=(0, 2)))
    similarity = pool.similarity(everything, centred=True)
    moved = everything - everything.mean(dim=(0, 2))[:, None]
    torch.testing.assert_close(similarity, pool.similarity(moved), rtol=0, atol=1e-5)
    assert not torch.allclose(similarity, pool.similarity(everything), atol=1e-3)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("weighting", ["none", "sim"])
def test_composition_equals_loops_and_gradients_reach_selected_prompts_only(weighting, per_layer):
    pool = PromptPool(layers=2, size=9, length=2, width=4, per_layer=per_layer)
    found = retrieve(pool.similarity(torch.randn(2, 2, 3, 4)))
    composed = pool.compose(found, weighting)
    assert composed.shape == (2, 2, 6, 4)
    selected = torch.zeros(len(pool.prompts), 9, dtype=torch.bool)
    for b in range(2):
        for layer in range(2):
            group = layer if per_layer else 0
            rows = []
            for slot, m in enumerate(found.index[b, layer].tolist()):
                selected[group, m] = True
                factor = found.score[b, layer, slot] if weighting == "sim" else 1
                rows.append(pool.prompts[group, m] * factor)
            torch.testing.assert_close(composed[b, layer], torch.cat(rows))
    composed.square().sum().backward()
    reached = pool.prompts.grad.abs().sum(dim=(2, 3)) > 0
    assert torch.equal(reached, selected)
    assert 0 < selected.sum() < selected.numel()


def test_softmax_weighting_mixes_the_whole_pool():
    pool = PromptPool(layers=1, size=3, length=2, width=4, key="learned", query_width=5)
    similarity = pool.similarity(torch.randn(2, 1, 2, 5))
    composed = pool.compose(mix(similarity, temperature=0.5))
    for b in range(2):
        rows = []
        for scores in similarity[b, 0]:
            weights = [math.exp(s / 0.5) for s in scores.tolist()]
            rows.append(sum(w / sum(weights) * p for w, p in zip(weights, pool.prompts[0])))
        torch.testing.assert_close(composed[b, 0], torch.cat(rows))
    composed.square().sum().backward()
    assert (pool.keys.grad.abs().sum(dim=2) > 0).all()
    assert torch.equal(mix(similarity, 0.5).index, similarity.argmax(dim=-1))


def test_key_loss_pulls_keys_towards_their_queries():
    pool = PromptPool(layers=2, size=5, length=1, width=4, key="learned", query_width=6)
    queries = torch.nn.functional.normalize(torch.randn(3, 2, 2, 6), dim=-1)
    before = key_loss(retrieve(pool.similarity(queries)))
    before.backward()
    with torch.no_grad():
        pool.keys -= 0.01 * pool.keys.grad
    assert key_loss(retrieve(pool.similarity(queries))) < before
    assert pool.prompts.grad is None


def test_literal_keys_need_queries_as_wide_as_prompts():
    with pytest.raises(ValueError, match="queries have 6 dimensions but prompt tokens 4.*POOL.KEY learned"):
        PromptPool(layers=1, size=3, length=1, width=4, query_width=6)


def test_mean_prompt_fills_every_slot():
    pool = PromptPool(layers=3, size=4, length=2, width=5)
    plain = pool.mean_prompt(slots=3)
    assert plain.shape == (3, 6, 5)
    for layer in range(3):
        for slot in range(3):
            torch.testing.assert_close(plain[layer, 2 * slot : 2 * slot + 2], pool.prompts[0].mean(dim=0))


def test_usage_counts_entropy_and_collapse():
    usage = PoolUsage(layers=2, size=4)
    usage.update(torch.tensor([[[0, 0], [1, 2]], [[0, 0], [3, 2]]]))
    usage.update(torch.tensor([[[0, 0], [1, 0]]]))
    assert usage.counts.tolist() == [[6, 0, 0, 0], [1, 2, 2, 1]]
    shares = [1 / 6, 2 / 6, 2 / 6, 1 / 6]
    entropy = -sum(p * math.log(p) for p in shares) / math.log(4)
    assert usage.entropy().tolist() == pytest.approx([0, entropy])
    assert usage.collapsed() == [1]
    summary = usage.summary()
    assert summary["distinct_per_layer"] == [1, 2]
    assert summary["distinct_per_image"] == pytest.approx((3 + 3 + 2) / 3, abs=1e-3)
    assert summary["unused"] == [3, 0] and summary["images"] == 3
    usage.reset()
    assert usage.counts.sum() == 0 and usage.images == 0


def test_memo_encodes_every_tuple_once_within_its_limit():
    def encode(tuples):
        return tuples.sum(dim=(1, 2))[:, None, None].expand(-1, 2, 3).float()

    memo = TupleMemo(limit=3 * 2 * 3 * 4)  # three entries of [2, 3] floats
    tuples = torch.randint(0, 50, (5, 2, 2)).unique(dim=0)
    for batch in (tuples[:2], tuples[:3], tuples[1:3]):
        assert torch.equal(memo.lookup(batch, encode, "v1"), encode(batch))
    assert memo.encoded == 3
    memo.lookup(tuples[3:4], encode, "v1")  # pushes out the oldest
    memo.lookup(tuples[:1], encode, "v1")
    assert memo.encoded == 5
    memo.lookup(tuples[3:4], encode, "v2")  # the pool has changed
    assert memo.encoded == 6


def test_order_free_leaves_first_layer_and_an_open_last_layer():
    index = torch.tensor([[[3, 1], [3, 1], [3, 1]]])
    assert order_free(index, text_layers=3).tolist() == [[[3, 1], [1, 3], [1, 3]]]
    assert order_free(index, text_layers=5).tolist() == [[[3, 1], [1, 3], [3, 1]]]
    assert order_free(index[:, :1], text_layers=1).tolist() == [[[3, 1]]]
    assert order_free(index[:, :1], text_layers=5).tolist() == [[[3, 1]]]


def test_retrieval_of_an_image_does_not_depend_on_its_batch():
    pool = PromptPool(layers=2, size=6, length=1, width=4)
    queries = torch.randn(5, 2, 3, 4)
    whole = retrieve(pool.similarity(queries))
    alone = retrieve(pool.similarity(queries[3:4]))
    assert torch.equal(whole.index[3:4], alone.index)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(retrieve(pool.similarity(queries[order])).index, whole.index[order])
