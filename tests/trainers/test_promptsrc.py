"""PromptSRC's objective, frozen targets and prompt aggregation against the plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.trainers.promptsrc import GaussianAggregation, PromptSRCModel, consistency_losses
from tests.trainers import plain

NAMES = [n.replace("_", " ") for n in plain.CLASSES]


@pytest.fixture
def model(clip):
    net = PromptSRCModel(clip, plain.CLASSES, 4, 4, 3, 3)
    with torch.no_grad():
        for p in net.prompt_parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def plain_target(state, clip):
    """Mean of un-normalised features over 60 templates, class by class."""
    rows = []
    for name in NAMES:
        tokens = clip.tokenize([template.format(name) for template in PROMPTSRC_TEMPLATES])
        rows.append(plain.text_features(state, tokens, normalise=False).mean(0))
    rows = torch.stack(rows)
    return rows / rows.norm(dim=-1, keepdim=True)


def test_the_text_target_is_the_mean_of_unnormalised_features(model, state, clip):
    assert len(PROMPTSRC_TEMPLATES) == 60
    with torch.no_grad():
        wanted = plain_target(state, clip)
    torch.testing.assert_close(model.text_target, wanted, rtol=1e-5, atol=1e-6)


def test_the_text_target_is_computed_once(model, clip):
    first = model.text_target
    calls = []
    handle = clip.text.register_forward_hook(lambda *a: calls.append(1))
    assert model.text_target is first
    handle.remove()
    assert not calls


def test_objective_and_gradients_equal_the_plain_formulas(model, state, clip, images, labels):
    prompts = model.emit()
    image, text = model.encode_images(images, prompts), model.encode_classes(prompts)
    d_text, d_image, kl = consistency_losses(
        image, text, model.frozen_image_features(images), model.text_target, model.scale
    )
    ours = F.cross_entropy(model.logits(image, text), labels) + 25 * d_text + 10 * d_image + kl

    tokens = clip.tokenize([f"X X X X {name}." for name in NAMES])
    t = plain.text_features(state, tokens, prompts.text, prompts.text_deep)
    v = plain.image_features(state, images, prompts.vision, prompts.vision_deep)
    with torch.no_grad():
        t0, v0 = plain_target(state, clip), plain.image_features(state, images)
    p, q = plain.logits(state, v, t).softmax(-1), plain.logits(state, v0, t0).softmax(-1)
    wanted = -p[torch.arange(len(labels)), labels].log().mean()
    wanted = wanted + 25 * (t - t0).abs().mean() + 10 * (v - v0).abs().mean()
    wanted = wanted + (q * (q.log() - p.log())).sum() / (len(images) * len(NAMES))

    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    parameters = model.prompt_parameters()
    for g, w in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(wanted, parameters)):
        assert plain.relative_error(g, w) < 1e-4


def test_frozen_image_features_carry_no_graph(model, state, images):
    frozen = model.frozen_image_features(images)
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, plain.image_features(state, images), rtol=1e-5, atol=1e-6)


def test_consistency_vanishes_for_equal_features():
    v, t = F.normalize(torch.randn(4, 8), dim=-1), F.normalize(torch.randn(3, 8), dim=-1)
    assert all(float(x) == pytest.approx(0, abs=1e-7) for x in consistency_losses(v, t, v, t, torch.tensor(100.0)))


# -- Gaussian prompt aggregation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "epochs, mean, std, expected",
    [
        (20, 15, 1, {15: 0.399, 14: 0.242, 16: 0.242}),  # base-to-new
        (20, 6, 10, {1: 0.055, 6: 0.063, 20: 0.024}),  # cross-dataset
    ],
)
def test_aggregation_weights_of_the_recipes(epochs, mean, std, expected):
    weights = GaussianAggregation(epochs, mean, std).weights
    assert sum(weights) == pytest.approx(1)
    for epoch, value in expected.items():
        assert weights[epoch - 1] == pytest.approx(value, abs=6e-4)


def test_aggregation_is_the_weighted_sum():
    states = [{"a": torch.randn(3), "b": torch.randn(2, 2)} for _ in range(5)]
    gpa = GaussianAggregation(5, 4, 2)
    for epoch, s in enumerate(states):
        gpa.add(epoch, s)
    raw = [math.exp(-((e - 4) ** 2) / 8) for e in range(1, 6)]
    for name in ("a", "b"):
        wanted = sum(w * s[name] for w, s in zip(raw, states)) / sum(raw)
        torch.testing.assert_close(gpa.total[name], wanted)


def test_aggregation_far_from_its_mean_does_not_vanish():
    assert sum(GaussianAggregation(3, 200, 1).weights) == pytest.approx(1)


def test_aggregation_resumes_exactly_and_refuses_other_settings():
    states = [{"a": torch.randn(3)} for _ in range(4)]
    whole, first, second = (GaussianAggregation(4, 2, 1) for _ in range(3))
    for epoch, s in enumerate(states):
        whole.add(epoch, s)
        if epoch < 2:
            first.add(epoch, s)
    second.load_state_dict(first.state_dict())
    for epoch in (2, 3):
        second.add(epoch, states[epoch])
    assert torch.equal(second.total["a"], whole.total["a"])
    with pytest.raises(ValueError, match="MAX_EPOCH"):
        GaussianAggregation(5, 2, 1).load_state_dict(first.state_dict())


def test_aggregation_needs_a_positive_width():
    with pytest.raises(ValueError, match="GPA_STD"):
        GaussianAggregation(4, 2, 0)
