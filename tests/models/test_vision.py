"""The image towers against the plain reference, values and gradients."""

import pytest
import torch

from dassl_prompts.models import build_clip
from tests.trainers import plain

D = 192


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.3).requires_grad_()


@pytest.fixture(scope="module")
def state():
    return plain.openai_state()


@pytest.fixture(scope="module")
def clip(state):
    from dassl_prompts.models.clip import finish, from_state_dict

    return finish(from_state_dict(dict(state), "random"), "fp32", "cpu")


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize("depth", [0, 1, 3, plain.LAYERS])
@pytest.mark.parametrize("n", [1, 4])
def test_prompts_and_depths(clip, state, images, n, depth):
    prompts = vectors(n, D) if depth else None
    deep = [vectors(n, D, seed=i) for i in range(1, depth)]
    ours, theirs = (
        clip.vision(images, prompts, deep),
        plain.image_features(state, images, prompts, deep, normalise=False),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    if depth:
        probe = torch.randn_like(ours)
        leaves = [prompts, *deep]
        for a, b in zip(
            torch.autograd.grad((ours * probe).sum(), leaves), torch.autograd.grad((theirs * probe).sum(), leaves)
        ):
            assert plain.relative_error(a, b) < 1e-4


def test_prompts_per_image(clip, images):
    prompts = vectors(3, 2, D)
    together = clip.vision(images, prompts)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], clip.vision(images[i : i + 1], prompts[i]), rtol=0, atol=1e-5)


def test_layers_tokens_and_head(clip, state, images):
    feature, layers = clip.vision(images, return_layers=True)
    assert [tuple(x.shape) for x in layers] == [(3, 5, D)] * plain.LAYERS
    torch.testing.assert_close(clip.vision.head(layers[-1][:, 0]), feature)
    torch.testing.assert_close(feature, clip.encode_image(images), rtol=0, atol=1e-5)
    again, tokens = clip.vision(images, return_tokens=True)
    assert tokens.shape == (3, 5, 64)
    torch.testing.assert_close(tokens[:, 0], again)
    torch.testing.assert_close(tokens, clip.vision.head(layers[-1]))


def test_residual_stream_stays_fp32_under_autocast(clip, images):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature, layers = clip.vision(images, return_layers=True)
    assert {x.dtype for x in layers} == {torch.float32} and feature.dtype == torch.float32
    exact = clip.vision(images)
    assert torch.cosine_similarity(feature, exact).min() > 0.99
    assert not torch.equal(feature, exact)  # the products did run in bf16


def test_frozen_tower_keeps_no_graph(clip, images):
    assert not clip.encode_image(images).requires_grad
    assert not any(p.requires_grad for p in clip.parameters())
    clip.train()
    assert not any(m.training for m in clip.modules())


def test_wrong_sizes_are_refused(clip, images):
    with pytest.raises(ValueError, match="takes 32 x 32"):
        clip.vision(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="the tower has 4 layers"):
        clip.vision(images, vectors(2, D), [vectors(2, D)] * 4)


def test_resnet_equals_open_clip_and_takes_no_prompts():
    from dassl_prompts.models.clip import build_model, finish

    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 64, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    model = build_model(config).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode_image(images)
        clip = finish(model, "fp32", "cpu")
        torch.testing.assert_close(clip.encode_image(images), expected)
    assert not clip.is_vit
    with pytest.raises(ValueError, match="takes no prompts"):
        clip.vision(images, torch.zeros(2, 64))
    ctx = vectors(2, 64)
    clip.text(clip.text.class_prompts(["cat"], n_ctx=2), ctx).sum().backward()
    assert ctx.grad.abs().sum() > 0


def test_same_seed_same_weights():
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    before = torch.get_rng_state()
    a, b, c = (build_clip(config, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["text.token_embedding.weight"], c["text.token_embedding.weight"])
