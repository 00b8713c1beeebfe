"""Deep contexts shorter than the slots, growing prompts, and texts evaluated in groups of similar length."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dassl_prompts.models import text
from dassl_prompts.models.clip import finish, from_state_dict
from tests.trainers import plain

NAMES = ["cat", "great white shark", "F/A-18", "tea pot with a very long handle", "dog"]
D = 128


@pytest.fixture(scope="module")
def state():
    return plain.openai_state()


@pytest.fixture(scope="module")
def clip(state):
    return finish(from_state_dict(dict(state), "random"), "fp32", "cpu")


def vectors(*shape, seed=0):
    return (0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def check(clip, state, prompts, ctx, deep, **options):
    """``ctx`` and ``deep`` are per image; values and gradients against one image after the other."""
    leaves = [ctx, *deep]
    ours = clip.text(prompts, ctx, deep, **options)
    theirs = torch.stack(
        [
            plain.text_features(state, prompts.tokens, ctx[b, 0], [d[b, 0] for d in deep], normalise=False)
            for b in range(len(ctx))
        ]
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), leaves), torch.autograd.grad((theirs * probe).sum(), leaves)
    ):
        assert plain.relative_error(a, b) < 1e-4


@pytest.mark.parametrize("options", [{}, {"share_prefix": False}, {"trim": False}])
def test_a_shorter_deep_context_overwrites_the_first_slots(clip, state, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=5)
    check(
        clip, state, prompts, vectors(3, 1, 5, D), [vectors(3, 1, 2, D, seed=1), vectors(3, 1, 5, D, seed=2)], **options
    )


def test_longer_deep_contexts_and_tokens_of_growing_prompts_are_refused(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    with pytest.raises(ValueError, match="does not fit 2 slots"):
        clip.text(prompts, vectors(2, D), [vectors(3, D)])
    with pytest.raises(ValueError, match="does not fit 2 slots"):
        clip.text(prompts, vectors(1, D))
    with pytest.raises(ValueError, match="return_tokens cannot be had"):
        clip.text(prompts, vectors(2, D), accumulate=True, return_tokens=True)


@pytest.mark.parametrize("depth", [1, 3, plain.LAYERS])
def test_only_rows_that_matter_are_computed(clip, depth):
    """Multiply-adds of the matrix products with weights against a count by hand, in units of one row times ``d x d``."""
    images, n, words = 3, 4, 2
    prompts = clip.text.class_prompts(NAMES, n_ctx=n, words="of a")
    ctx, *deep = [vectors(images, 1, n, D, seed=i) for i in range(depth)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip.text(prompts, ctx, deep)
    own = int((prompts.eot + 1 - (1 + n + words)).sum())  # rows of the classes' own tokens
    expected = 0
    for i in range(plain.LAYERS):
        kept = 1 + words + n * (i >= len(deep))  # rows of the prefix that the next block takes over
        if i == plain.LAYERS - 1:
            expected += images * (2 * (1 + n + words) + 2 * own + 10 * len(NAMES))
        else:  # the first block's queries, keys and values of the classes are the same for all images
            expected += images * (2 * (1 + n + words) + 10 * kept + 9 * own) + 3 * own * (1 if i == 0 else images)
    expected = expected * D * D + images * len(NAMES) * D * clip.embed_dim
    counted = {
        name: flops
        for name, flops in counter.get_flop_counts()["Global"].items()
        if str(name) in ("aten.mm", "aten.addmm")
    }
    assert sum(counted.values()) == 2 * expected


@pytest.mark.parametrize("share_prefix", [True, False])
def test_checkpointing_is_chunked_by_default(clip, monkeypatch, share_prefix):
    """One chunk that is recomputed as a whole would need all its memory again."""
    calls = []
    recompute = text.recompute
    monkeypatch.setattr(text, "recompute", lambda *a, **k: calls.append(1) or recompute(*a, **k))
    monkeypatch.setattr(text, "CHUNK_TOKENS", 20)
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    ctx = vectors(2, D)
    ours = clip.text(prompts, ctx, checkpoint=True, share_prefix=share_prefix)
    assert len(calls) > 1
    torch.testing.assert_close(ours, clip.text(prompts, ctx), rtol=0, atol=1e-5)
