"""Deep contexts shorter than the slots, growing prompts, and texts evaluated in groups of similar length."""

import pytest
import torch

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
    theirs = torch.stack([
        plain.text_features(state, prompts.tokens, ctx[b, 0], [d[b, 0] for d in deep], normalise=False) for b in range(len(ctx))
    ])  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(torch.autograd.grad((ours * probe).sum(), leaves), torch.autograd.grad((theirs * probe).sum(), leaves)):
        assert plain.relative_error(a, b) < 1e-4


@pytest.mark.parametrize("options", [{}, {"share_prefix": False}, {"trim": False}])
def test_a_shorter_deep_context_overwrites_the_first_slots(clip, state, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=5)
    check(clip, state, prompts, vectors(3, 1, 5, D), [vectors(3, 1, 2, D, seed=1), vectors(3, 1, 5, D, seed=2)], **options)


def test_longer_deep_contexts_and_tokens_of_growing_prompts_are_refused(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    with pytest.raises(ValueError, match="does not fit 2 slots"):
        clip.text(prompts, vectors(2, D), [vectors(3, D)])
    with pytest.raises(ValueError, match="does not fit 2 slots"):
        clip.text(prompts, vectors(1, D))
    with pytest.raises(ValueError, match="return_tokens cannot be had"):
        clip.text(prompts, vectors(2, D), accumulate=True, return_tokens=True)
