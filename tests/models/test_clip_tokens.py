"""CLIP's token features against the towers' own outputs and open_clip."""

import pytest
import torch

from dassl_prompts.models.backbones import load_token_encoder
from dassl_prompts.models.clip_tokens import ClipTokens
from tests.tiny import tiny_clip

CAPTIONS = ["a red dog", "the same hat but larger and in dark green", "two"]


@pytest.fixture
def encoder():
    return ClipTokens(tiny_clip())


def test_global_rows_are_the_usual_embeddings(encoder):
    clip, images = encoder.clip, torch.randn(2, 3, 32, 32)
    tokens = encoder.image_tokens(images)
    assert tokens.shape == (2, encoder.n_image, encoder.width)
    torch.testing.assert_close(tokens[:, 0], clip.encode_image(images), atol=1e-6, rtol=0)
    torch.testing.assert_close(encoder.image_features(images), clip.encode_image(images), atol=0, rtol=0)
    text = encoder.text_tokens(CAPTIONS)
    torch.testing.assert_close(text.features, clip.encode_text(clip.tokenize(CAPTIONS)), atol=1e-5, rtol=0)


def test_all_rows_equal_open_clip():
    """D8: every token, padding included, through open_clip's intermediate outputs and the projections."""
    from open_clip.model import CLIP as OpenCLIP

    from dassl_prompts.models.clip import finish

    twin = OpenCLIP(
        64,
        {"image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8},
        {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
        quick_gelu=True,
    ).eval()
    if not hasattr(twin, "forward_intermediates"):
        pytest.skip("open_clip before 2.32 does not give its intermediate outputs")
    encoder = ClipTokens(finish(twin, "fp32", "cpu"))
    images, ids = torch.randn(2, 3, 32, 32), encoder.clip.tokenize(CAPTIONS)
    with torch.no_grad():
        out = twin.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            output_fmt="NLC",
            output_extra_tokens=True,
            intermediates_only=True,
        )
        rows = (
            torch.cat([out["image_intermediates_prefix"][0], out["image_intermediates"][0]], dim=1) @ twin.visual.proj
        )
        torch.testing.assert_close(encoder.image_tokens(images), rows, atol=1e-5, rtol=0)
        rows = twin.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)["text_intermediates"][
            0
        ]
        rows = rows @ twin.text_projection
        whole = encoder.text_tokens(CAPTIONS, trim=False)
        assert whole.tokens.shape[1] == 77
        torch.testing.assert_close(whole.tokens, rows, atol=1e-5, rtol=0)


def test_trimming_keeps_everything_that_is_not_padding(encoder):
    whole, cut = encoder.text_tokens(CAPTIONS, trim=False), encoder.text_tokens(CAPTIONS)
    length = cut.tokens.shape[1]
    assert length == int(cut.row.max()) + 1 < 77 and torch.equal(whole.row, cut.row)
    assert whole.pad[:, length:].all() and torch.equal(whole.pad[:, :length], cut.pad)
    assert (~cut.pad).sum(1).tolist() == (cut.row + 1).tolist()
    torch.testing.assert_close(whole.tokens[:, :length][~cut.pad], cut.tokens[~cut.pad], atol=1e-5, rtol=0)


def test_long_and_blank_captions(encoder):
    text = encoder.text_tokens(["red " * 200, " "])
    assert text.row.tolist() == [76, 1]


@pytest.mark.parametrize("mode", ["none", "text", "both"])
def test_tuning_modes(encoder, mode):
    trained = encoder.tune(mode)
    assert {id(p) for p in trained} == {id(p) for p in encoder.parameters() if p.requires_grad}
    if mode == "none":
        return
    loss = encoder.text_tokens(CAPTIONS).features.sum() + encoder.image_tokens(torch.randn(2, 3, 32, 32)).square().sum()
    loss.backward()
    with_grad = {id(p) for p in encoder.parameters() if p.grad is not None}
    assert with_grad == {id(p) for p in trained}


def test_tuned_text_weights_change_the_features(encoder):
    before = encoder.text_tokens(CAPTIONS).features.detach()
    trained = encoder.tune("text")
    optim = torch.optim.SGD(trained, lr=0.1)
    encoder.text_tokens(CAPTIONS).features.square().sum().backward()
    optim.step()
    assert (encoder.text_tokens(CAPTIONS).features - before).abs().max() > 1e-4


def test_resnet_is_refused():
    clip = tiny_clip()
    clip.is_vit = False
    with pytest.raises(ValueError, match="ViT"):
        ClipTokens(clip)


def test_embedded_backbone():
    encoder = load_token_encoder("emoji-tiny")
    assert encoder.image_tokens(torch.randn(1, 3, encoder.image_size, encoder.image_size)).shape == (
        1,
        encoder.n_image,
        encoder.width,
    )
