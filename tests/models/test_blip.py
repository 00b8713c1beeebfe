"""BLIP's token features against plain formulas, on a tiny random checkpoint of the published format; the
three traps."""

import json
import math

import pytest
import torch

from dassl_prompts.models.backbones import load_token_encoder
from dassl_prompts.models.blip import check_original, is_blip, load_blip

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a red dog in snow two without hat [DEC] [ENC]".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_blip(tmp_path_factory.mktemp("blip"))


def write_tiny_blip(path, heads=2):
    """Two layers, text width 128 with two heads, images of 32 px; a folder as ``save_pretrained`` writes
    it."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    size = {"num_hidden_layers": 2, "intermediate_size": 64}
    config = BlipConfig(
        text_config={"hidden_size": 128, "num_attention_heads": heads, "vocab_size": len(WORDS), **size},
        vision_config={
            "hidden_size": 32,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
            **size,
        },
        image_text_hidden_size=16,
    )
    model = BlipForImageTextRetrieval(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return path


# -- an independent implementation from the state dict, float64 ----------------------------------------------


def norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(q, k, v, heads, hidden=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def slow_text(s, ids, heads):
    """One caption without padding; bidirectional BERT, post-norm."""
    lin = lambda x, name: x @ s[f"{name}.weight"].T + s[f"{name}.bias"]
    ln = lambda x, name: norm(x, s[f"{name}.weight"], s[f"{name}.bias"], 1e-12)
    e = "text_encoder.embeddings"
    x = ln(
        s[f"{e}.word_embeddings.weight"][ids] + s[f"{e}.position_embeddings.weight"][: len(ids)],
        f"{e}.LayerNorm",
    )
    for i in range(2):
        p = f"text_encoder.encoder.layer.{i}"
        a = attend(*(lin(x, f"{p}.attention.self.{n}") for n in ("query", "key", "value")), heads)
        x = ln(lin(a, f"{p}.attention.output.dense") + x, f"{p}.attention.output.LayerNorm")
        x = ln(lin(gelu(lin(x, f"{p}.intermediate.dense")), f"{p}.output.dense") + x, f"{p}.output.LayerNorm")
    return lin(x, "text_proj")


def slow_image(s, image, eps):
    """ViT, pre-norm, exact gelu, all rows normed and projected."""
    lin = lambda x, name: x @ s[f"{name}.weight"].T + s[f"{name}.bias"]
    ln = lambda x, name: norm(x, s[f"{name}.weight"], s[f"{name}.bias"], eps)
    e = "vision_model.embeddings"
    patches = [
        lin_patch(s, e, image[:, 16 * r : 16 * r + 16, 16 * c : 16 * c + 16]) for r in range(2) for c in range(2)
    ]
    x = torch.stack([s[f"{e}.class_embedding"].flatten(), *patches]) + s[f"{e}.position_embedding"][0]
    for i in range(2):
        p = f"vision_model.encoder.layers.{i}"
        q, k, v = lin(ln(x, f"{p}.layer_norm1"), f"{p}.self_attn.qkv").chunk(3, -1)
        x = x + lin(attend(q, k, v, 4), f"{p}.self_attn.projection")
        x = x + lin(gelu(lin(ln(x, f"{p}.layer_norm2"), f"{p}.mlp.fc1")), f"{p}.mlp.fc2")
    return lin(ln(x, "vision_model.post_layernorm"), "vision_proj")


def lin_patch(s, e, patch):
    return (s[f"{e}.patch_embedding.weight"] * patch).sum((1, 2, 3)) + s[f"{e}.patch_embedding.bias"]


@pytest.fixture(scope="module")
def encoder(folder):
    return load_blip(str(folder)).double()


CAPTIONS = ["a red dog", "two", "a dog in snow without a hat"]


@pytest.mark.parametrize("trim", [True, False])
def test_text_tokens(encoder, trim):
    result = encoder.text_tokens(CAPTIONS, trim)
    assert result.tokens.shape == (3, 9 if trim else 35, 16)
    for i, caption in enumerate(CAPTIONS):
        ids = [WORDS.index(w) for w in ["[CLS]", *caption.split(), "[SEP]"]]
        assert result.pad[i].tolist() == [False] * len(ids) + [True] * (result.pad.shape[1] - len(ids))
        expected = slow_text(dict(encoder.state_dict()), ids, heads=2)
        torch.testing.assert_close(result.tokens[i, : len(ids)], expected, atol=1e-10, rtol=0)
    assert result.row.tolist() == [0, 0, 0]
    torch.testing.assert_close(result.features, result.tokens[:, 0])


def test_image_tokens(encoder):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    tokens = encoder.image_tokens(images)
    assert tokens.shape == (2, 5, 16) == (2, encoder.n_image, encoder.width)
    for image, ours in zip(images, tokens):
        torch.testing.assert_close(ours, slow_image(dict(encoder.state_dict()), image, 1e-6), atol=1e-10, rtol=0)
        assert (
            ours - slow_image(dict(encoder.state_dict()), image, 1e-5)
        ).abs().max() > 1e-9  # the default eps would show
    torch.testing.assert_close(encoder.image_features(images), tokens[:, 0])


def test_long_and_blank_captions(encoder):
    result = encoder.text_tokens(["a red dog " * 30, " "])
    assert result.tokens.shape[1] == 35 and not result.pad[0].any()
    assert result.pad[1].tolist() == [False, False] + [True] * 33


def test_wrong_number_of_heads(tmp_path):
    write_tiny_blip(tmp_path, heads=4)
    with pytest.raises(ValueError, match=r"\[4\] text attention heads, the original has 2"):
        load_blip(str(tmp_path))


def test_eps_and_dropout_are_checked(folder):
    from transformers import BlipForImageTextRetrieval

    model = BlipForImageTextRetrieval.from_pretrained(folder)
    with pytest.raises(ValueError, match="eps"):  # transformers' default is in the file
        check_original(model, 0.0)
    for module in model.vision_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    check_original(model, 0.0)
    with pytest.raises(ValueError, match="dropout"):
        check_original(model, 0.1)


def test_tuning_modes_and_dropout(folder):
    encoder = load_blip(str(folder), text_dropout=0.1)
    text, image = set(map(id, encoder.text_parameters())), set(map(id, encoder.image_parameters()))
    for mode, expected in (("none", set()), ("text", text), ("both", text | image)):
        assert set(map(id, encoder.tune(mode))) == expected
        assert {id(p) for p in encoder.parameters() if p.requires_grad} == expected
        encoder.train()
        varies = not torch.equal(encoder.text_tokens(CAPTIONS).tokens, encoder.text_tokens(CAPTIONS).tokens)
        assert varies == (mode != "none")
        encoder.eval()
        assert torch.equal(encoder.text_tokens(CAPTIONS).tokens, encoder.text_tokens(CAPTIONS).tokens)
    assert all(p.grad_fn is None for p in encoder.parameters())
    assert not any("crossattention" in name for name, _ in encoder.named_parameters())
    with pytest.raises(ValueError, match="BACKBONE.TUNE"):
        encoder.tune("image")


def test_every_trained_tensor_gets_a_gradient(folder):
    encoder = load_blip(str(folder))
    trained = encoder.tune("both")
    loss = encoder.text_tokens(CAPTIONS).features.sum() + encoder.image_features(torch.randn(2, 3, 32, 32)).sum()
    loss.backward()
    assert all(p.grad is not None for p in trained)


def test_fingerprint_follows_the_image_side(folder):
    encoder = load_blip(str(folder))
    before = encoder.image_fingerprint()
    with torch.no_grad():
        encoder.text_proj.weight.add_(1)
        assert encoder.image_fingerprint() == before
        encoder.vision_proj.weight[0, 0] += 1e-3
    assert encoder.image_fingerprint() != before


def test_names(folder, tmp_path):
    assert is_blip(str(folder)) and is_blip("blip-itm-base-coco") and not is_blip("ViT-B/32")
    assert load_token_encoder(str(folder)).width == 16
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert not is_blip(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download Salesforce/blip-itm-base-coco"):
        load_blip("blip-itm-base-coco")
