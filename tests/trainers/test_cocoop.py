"""CoCoOp's batched forward against the official loop over images."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.trainers.cocoop import CoCoOpModel
from tests.trainers import plain


def loop_logits(model, state, images, clip, image_features):
    """One full set of class prompts per image, 77 tokens, one image after the other."""
    learner = model.prompt_learner
    n = len(learner.ctx)
    tokens = clip.tokenize([" ".join(["X"] * n) + f" {name}." for name in model.classnames])
    rows = []
    for v in image_features:
        hidden = torch.relu(learner.meta_net.linear1.weight @ v + learner.meta_net.linear1.bias)
        shift = learner.meta_net.linear2.weight @ hidden + learner.meta_net.linear2.bias
        text = plain.text_features(state, tokens, learner.ctx + shift)
        rows.append(plain.logits(state, v[None], text))
    return torch.cat(rows)


@pytest.mark.parametrize("words, n", [("a photo of a", 4), ("", 6)])
def test_logits_and_gradients_equal_the_loop(clip, state, images, labels, words, n):
    model = CoCoOpModel(clip, plain.CLASSES, n, words)
    ours = model(images)
    wanted = loop_logits(model, state, images, clip, plain.image_features(state, images))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-3)
    parameters = model.prompt_parameters()
    got = torch.autograd.grad(F.cross_entropy(ours, labels), parameters)
    want = torch.autograd.grad(F.cross_entropy(wanted, labels), parameters)
    for g, w in zip(got, want):
        assert plain.relative_error(g, w) < 1e-4
        assert w.norm() > 0


def test_logits_equal_the_loop_on_a_resnet(resnet):
    clip, official = resnet
    images = torch.randn(3, 3, 64, 64)
    model = CoCoOpModel(clip, plain.CLASSES, 4, "a photo of a")
    features = F.normalize(official.visual(images), dim=-1)
    wanted = loop_logits(model, official.state_dict(), images, clip, features)
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_evaluation_of_a_batch_equals_single_images(clip, images):
    model = CoCoOpModel(clip, plain.CLASSES, 4, "a photo of a").eval()
    single = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), single, rtol=1e-5, atol=1e-3)


def test_meta_network_sizes_and_names(clip):
    model = CoCoOpModel(clip, plain.CLASSES, 4, "a photo of a")
    shapes = {n: tuple(p.shape) for n, p in model.checkpoint_module.named_parameters()}
    assert shapes == {
        "ctx": (4, 128),
        "meta_net.linear1.weight": (4, 64),
        "meta_net.linear1.bias": (4,),
        "meta_net.linear2.weight": (128, 4),
        "meta_net.linear2.bias": (128,),
    }
    assert model.checkpoint_name == "prompt_learner"
