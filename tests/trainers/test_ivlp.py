"""IVLP, visual prompt tuning and deep language prompting against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.trainers.ivlp import IVLPModel, language_prompt
from tests.trainers import plain

DEPTHS = [1, 3, plain.LAYERS]


def randomise(model, std=0.3):
    with torch.no_grad():
        for p in model.prompt_parameters():
            p.add_(std * torch.randn_like(p))
    return model


def ivlp_logits(model, state, images, clip, text=True, vision=True, words="of a"):
    """The official forward, from the model's tensors by their official names."""
    tensors = dict(model.named_parameters())
    deep = lambda tower: [v for k, v in tensors.items() if k.startswith(tower) and "resblocks" in k]
    names = [n.replace("_", " ") for n in model.classnames]
    slots = "X X " if text else ""
    tokens = clip.tokenize([f"{slots}{words} {n}." for n in names])
    t = plain.text_features(state, tokens, tensors["prompt_learner.ctx"] if text else None, deep("text_encoder"))
    v = plain.image_features(state, images, tensors["image_encoder.VPT"] if vision else None, deep("image_encoder"))
    return plain.logits(state, v, t)


def check_against_plain(model, state, images, labels, reference):
    """Logits to 1e-5 of their scale and gradients to 1e-4."""
    ours, wanted = model(images), reference()
    torch.testing.assert_close(
        ours, wanted, rtol=1e-5, atol=1e-5 * float(plain.logits(state, torch.ones(1, 1), torch.ones(1, 1)))
    )
    parameters = model.prompt_parameters()
    got = torch.autograd.grad(F.cross_entropy(ours, labels), parameters)
    want = torch.autograd.grad(F.cross_entropy(wanted, labels), parameters)
    for g, w in zip(got, want):
        assert plain.relative_error(g, w) < 1e-4
        assert w.norm() > 0


@pytest.mark.parametrize("depth_vision", DEPTHS)
@pytest.mark.parametrize("depth_text", DEPTHS)
def test_logits_and_gradients_equal_the_plain_formulas(clip, state, images, labels, depth_text, depth_vision):
    model = randomise(IVLPModel(clip, plain.CLASSES, 2, 3, depth_text, depth_vision))
    check_against_plain(model, state, images, labels, lambda: ivlp_logits(model, state, images, clip))


@pytest.mark.parametrize("depth", DEPTHS)
def test_visual_prompt_tuning_scores_the_fixed_template(clip, state, images, labels, depth):
    model = randomise(IVLPModel(clip, plain.CLASSES, 2, 3, 0, depth))
    assert not any("text" in n or "ctx" in n for n in dict(model.named_parameters()) if not n.startswith("clip."))
    check_against_plain(
        model,
        state,
        images,
        labels,
        lambda: ivlp_logits(model, state, images, clip, text=False, words="a photo of a"),
    )


def test_visual_prompt_tuning_encodes_the_template_once(clip, images, labels):
    model = IVLPModel(clip, plain.CLASSES, 2, 3, 0, 2)
    calls = []
    handle = clip.text.register_forward_hook(lambda *a: calls.append(1))
    for _ in range(3):
        F.cross_entropy(model(images), labels).backward()
    handle.remove()
    assert len(calls) <= 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_language_prompting_leaves_the_image_tower(clip, state, images, labels, depth):
    model = randomise(IVLPModel(clip, plain.CLASSES, 2, 3, depth, 0))
    check_against_plain(model, state, images, labels, lambda: ivlp_logits(model, state, images, clip, vision=False))


def test_deep_language_prompting_works_on_a_resnet(resnet, labels):
    clip, model = resnet
    images = torch.randn(5, 3, 64, 64)
    net = randomise(IVLPModel(clip, plain.CLASSES, 2, 2, 3, 0))
    tokens = clip.tokenize([f"X X of a {n.replace('_', ' ')}." for n in plain.CLASSES])
    prompts = net.emit()

    def reference():
        text = plain.text_features(model.state_dict(), tokens, prompts.text, prompts.text_deep)
        return plain.logits(model.state_dict(), F.normalize(model.visual(images), dim=-1), text)

    check_against_plain(net, model.state_dict(), images, labels, reference)


def test_visual_prompts_need_a_vision_transformer(resnet):
    with pytest.raises(ValueError, match="vision transformer"):
        IVLPModel(resnet[0], plain.CLASSES, 2, 2, 3, 1)


def test_more_tokens_than_words_start_at_random(clip):
    ctx, words = language_prompt(clip.text, 6, "a photo of a")
    assert ctx.shape == (6, clip.text.width) and words == "" and 0.01 < ctx.std() < 0.03


def test_context_starts_as_the_first_words(clip, state):
    ctx, words = language_prompt(clip.text, 3, "a_photo_of_a")
    ids = clip.tokenize(["a photo of"])[0, 1:4]
    torch.testing.assert_close(ctx, state["token_embedding.weight"][ids])
    assert words == "a"


def test_tensor_names_are_the_official_ones(clip):
    model = IVLPModel(clip, plain.CLASSES, 2, 3, 3, 2)
    names = {n for n, p in model.checkpoint_module.named_parameters() if p.requires_grad}
    assert names == {
        "prompt_learner.ctx",
        "text_encoder.transformer.resblocks.1.VPT_shallow",
        "text_encoder.transformer.resblocks.2.VPT_shallow",
        "image_encoder.VPT",
        "image_encoder.transformer.resblocks.1.VPT_shallow",
    }
    assert model.checkpoint_name == "VLPromptLearner"


def test_depth_beyond_the_tower_is_refused(clip):
    with pytest.raises(ValueError, match="PROMPT_DEPTH_TEXT is 5.*4 layers"):
        IVLPModel(clip, plain.CLASSES, 2, 2, 5, 1)
    with pytest.raises(ValueError, match="PROMPT_DEPTH_VISION is 9.*4 layers"):
        IVLPModel(clip, plain.CLASSES, 2, 2, 1, 9)


def test_tokens_beyond_77_positions_name_the_class(clip):
    with pytest.raises(ValueError, match="endless"):
        IVLPModel(clip, [*plain.CLASSES, "endless " * 60], 16, 2, 2, 2, ctx_init="")


def test_initial_words_must_cover_the_tokens(clip):
    with pytest.raises(ValueError, match="fewer than the 4"):
        IVLPModel(clip, plain.CLASSES, 4, 2, 1, 1, ctx_init="photo of")
