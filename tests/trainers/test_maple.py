"""MaPLe against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.trainers.maple import MaPLeModel
from tests.trainers import plain


def maple_logits(model, state, images, clip, words):
    p = model.prompt_learner
    linear = lambda layer, x: x @ layer.weight.t() + layer.bias
    visual = linear(p.proj, p.ctx)
    visual_deep = [linear(layer, c) for layer, c in zip(p.compound_prompt_projections, p.compound_prompts_text)]
    slots = " ".join(["X"] * len(p.ctx))
    tokens = clip.tokenize([f"{slots} {words} {name}.".replace("  ", " ") for name in model.classnames])
    text = plain.text_features(state, tokens, p.ctx, list(p.compound_prompts_text))
    return plain.logits(state, plain.image_features(state, images, visual, visual_deep), text)


@pytest.mark.parametrize("n_ctx, words", [(2, "of a"), (4, ""), (5, "")])
@pytest.mark.parametrize("depth", [1, 3, plain.LAYERS])
def test_logits_and_gradients_equal_the_plain_formulas(clip, state, images, labels, depth, n_ctx, words):
    model = MaPLeModel(clip, plain.CLASSES, n_ctx, "a photo of a", depth)
    with torch.no_grad():
        for p in model.prompt_parameters():
            p.add_(0.2 * torch.randn_like(p))
    ours, wanted = model(images), maple_logits(model, state, images, clip, words)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-3)
    parameters = model.prompt_parameters()
    got = torch.autograd.grad(F.cross_entropy(ours, labels), parameters)
    want = torch.autograd.grad(F.cross_entropy(wanted, labels), parameters)
    for g, w in zip(got, want):
        assert plain.relative_error(g, w) < 1e-4
        assert w.norm() > 0


def test_names_count_and_initial_values(clip):
    model = MaPLeModel(clip, plain.CLASSES, 2, "a photo of a", 3)
    names = {n for n, p in model.checkpoint_module.named_parameters() if p.requires_grad}
    assert names == {
        "prompt_learner.ctx",
        "prompt_learner.proj.weight",
        "prompt_learner.proj.bias",
        *(f"prompt_learner.compound_prompts_text.{i}" for i in range(2)),
        *(f"prompt_learner.compound_prompt_projections.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")),
    }
    first, second = model.prompt_learner.compound_prompt_projections
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight
    assert not torch.equal(first.weight, model.prompt_learner.proj.weight)
    assert model.checkpoint_name == "MultiModalPromptLearner"


def test_couplings_stay_fp32_under_autocast(clip):
    model = MaPLeModel(clip, plain.CLASSES, 2, "a photo of a", 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prompts = model.emit()
    assert {t.dtype for t in (prompts.vision, *prompts.vision_deep)} == {torch.float32}
    torch.testing.assert_close(prompts.vision, model.emit().vision)


@pytest.mark.parametrize("depth", [0, 5])
def test_depth_outside_the_towers_is_refused(clip, depth):
    with pytest.raises(ValueError, match=f"MAPLE.PROMPT_DEPTH is {depth}.*1 to 4"):
        MaPLeModel(clip, plain.CLASSES, 2, "a photo of a", depth)


def test_class_name_that_does_not_fit_is_named(clip):
    with pytest.raises(ValueError, match="endless"):
        MaPLeModel(clip, [*plain.CLASSES, "endless " * 90], 2, "a photo of a", 2)
