"""Tokens per class from one text block on: values and gradients against 77 positions, class by class."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dassl_prompts.models import class_wise, text
from dassl_prompts.models.clip import finish, from_state_dict
from tests.trainers import plain

NAMES = ["cat", "great white shark", "F/A-18", "tea pot with a very long handle", "dog"]
C, D, N = len(NAMES), 128, 4


@pytest.fixture(scope="module")
def state():
    return plain.openai_state()


@pytest.fixture(scope="module")
def clip(state):
    return finish(from_state_dict(dict(state), "random"), "fp32", "cpu")


def vectors(*shape, seed=0):
    return (0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def check(clip, state, prompts, ctx, deep, wanted=None, **options):
    leaves = [t for t in (ctx, *deep) if t is not None]
    ours = clip.text(prompts, ctx, deep, **options)
    theirs = plain.text_features(state, prompts.tokens, ctx, deep, normalise=False) if wanted is None else wanted
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.detach().abs().max()))
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    got = torch.autograd.grad((ours * probe).sum(), leaves)
    for a, b in zip(got, torch.autograd.grad((theirs * probe).sum(), leaves)):
        assert b.norm() > 0 and plain.relative_error(a, b) < 1e-4


@pytest.mark.parametrize("start", [1, 2, 3])
@pytest.mark.parametrize("words", ["", "of an old"])
def test_tokens_per_class_from_a_block_on(clip, state, start, words):
    prompts = clip.text.class_prompts(NAMES, n_ctx=N, words=words)
    deep = [None] * (start - 1) + [vectors(C, N, D, seed=1)]
    check(clip, state, prompts, vectors(N, D), deep)


@pytest.mark.parametrize(
    "deep",
    [
        [vectors(N, D, seed=1), vectors(C, N, D, seed=2)],  # shared below, per class above
        [vectors(C, N, D, seed=1), None, vectors(C, N, D, seed=2)],  # per class twice
        [vectors(C, N, D, seed=1), vectors(N, D, seed=2)],  # shared again above
        [None, vectors(C, 2, D, seed=1), vectors(C, 3, D, seed=2)],  # fewer than there are slots
        [vectors(2, D, seed=3), vectors(C, 3, D, seed=1)],
        [vectors(N, D, seed=1), None, vectors(N, D, seed=2)],  # nothing per class: a gap among shared ones
    ],
)
@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 12}, {"checkpoint": True, "chunk_tokens": 20}])
def test_other_arrangements_and_groups_of_texts(clip, state, deep, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=N, words="of a")
    check(clip, state, prompts, vectors(N, D), deep, **options)


@pytest.mark.parametrize("options", [{"share_prefix": False}, {"trim": False}])
def test_without_sharing(clip, state, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=N)
    check(clip, state, prompts, vectors(N, D), [None, vectors(C, N, D, seed=1)], **options)


def test_texts_without_a_shared_word_and_one_text(clip, state):
    prompts = clip.text.prompts_from_texts(["a cat.", "dogs", "a very long text, with many words"], n_ctx=N)
    check(clip, state, prompts, vectors(N, D), [None, vectors(3, N, D, seed=1)])
    check(clip, state, clip.text.class_prompts(["cat"], n_ctx=N), vectors(N, D), [None, vectors(1, N, D, seed=1)])


def test_token_weights(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=N, words="of an old")
    weights = torch.rand(C, 77, generator=torch.Generator().manual_seed(4))
    ctx, deep = vectors(N, D), [None, vectors(C, N, D, seed=1)]
    wanted = clip.text(prompts, ctx, deep, token_weights=weights, share_prefix=False)
    assert not torch.allclose(wanted, clip.text(prompts, ctx, deep), atol=1e-3)
    check(clip, None, prompts, ctx, deep, wanted, token_weights=weights)


def test_replacing_the_slots_by_what_is_there_changes_nothing(clip, state):
    """The hidden states of slots 1 .. N at the input of block 2, from the plain tower."""
    prompts, ctx = clip.text.class_prompts(NAMES, n_ctx=N), vectors(N, D)
    x = state["token_embedding.weight"][prompts.tokens]
    x = torch.cat([x[:, :1], ctx.expand(C, N, D), x[:, 1 + N :]], dim=1) + state["positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for i in range(2):
        x = plain.block(state, f"transformer.resblocks.{i}.", x, mask)
    torch.testing.assert_close(
        clip.text(prompts, ctx, [None, x[:, 1 : 1 + N]]), clip.text(prompts, ctx), rtol=1e-4, atol=1e-4
    )


def test_the_context_reaches_the_features_only_below_the_block(clip):
    """Through the keys and values of the classes' own tokens there: at block 1 less than at block 3, at no context nothing."""
    prompts, ctx = clip.text.class_prompts(NAMES, n_ctx=N), vectors(N, D)
    tokens = vectors(C, N, D, seed=1)
    sums = [clip.text(prompts, ctx, [None] * (start - 1) + [tokens])[:, 0].sum() for start in (1, 3)]
    assert all(torch.autograd.grad(total, ctx)[0].norm() > 0 for total in sums)


def test_permuted_classes_give_permuted_features(clip):
    order = torch.tensor([3, 0, 4, 1, 2])
    prompts, ctx, tokens = clip.text.class_prompts(NAMES, n_ctx=N), vectors(N, D), vectors(C, N, D, seed=1)
    moved = clip.text(clip.text.class_prompts([NAMES[i] for i in order], n_ctx=N), ctx, [None, tokens[order]])
    torch.testing.assert_close(moved, clip.text(prompts, ctx, [None, tokens])[order])


def test_the_prefix_is_computed_once_below_the_block(clip, monkeypatch):
    """FLOPs: less than half of what every class on its own takes, and nothing goes through the plain path."""
    names = [f"thing{i}" for i in range(40)]
    prompts, ctx = clip.text.class_prompts(names, n_ctx=N, words="a photo of one"), vectors(N, D)
    deep = [None, None, vectors(40, N, D, seed=1)]
    flops = []
    for share in (True, False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            clip.text(prompts, ctx, deep, share_prefix=share)
        flops.append(counter.get_total_flops())
    assert flops[0] < 0.6 * flops[1]
    calls = []
    monkeypatch.setattr(text, "class_wise_features", lambda *a: calls.append(1) or class_wise.class_wise_features(*a))
    clip.text(prompts, ctx, deep)
    assert calls == [1]
