"""Pic2Word's and SEARLE's networks and queries against plain formulas and open_clip's text tower step by
step."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.models.clip_tokens import ClipTokens
from dassl_prompts.trainers.zeroshot_cir.textual_inversion import (
    check_fits,
    inversion_query,
    load_inversion,
)
from tests.tiny import tiny_clip

D = 64


def pic2word_state():
    return {
        f"module.{name}": value
        for name, value in {
            "layers.0.0.weight": torch.randn(32, D),
            "layers.0.0.bias": torch.randn(32),
            "layers.1.0.weight": torch.randn(32, 32),
            "layers.1.0.bias": torch.randn(32),
            "fc_out.weight": torch.randn(D, 32),
            "fc_out.bias": torch.randn(D),
        }.items()
    }


def searle_state():
    return {
        "layers.0.weight": torch.randn(40, D),
        "layers.0.bias": torch.randn(40),
        "layers.3.weight": torch.randn(40, 40),
        "layers.3.bias": torch.randn(40),
        "layers.6.weight": torch.randn(D, 40),
        "layers.6.bias": torch.randn(D),
    }


def save(tmp_path, method):
    state = pic2word_state() if method == "pic2word" else searle_state()
    torch.save(
        {"state_dict_img2text": state, "epoch": 3} if method == "pic2word" else {"Phi": state},
        tmp_path / "w.pt",
    )
    return str(tmp_path / "w.pt"), state


@pytest.mark.parametrize("method", ["pic2word", "searle"])
def test_network(tmp_path, method):
    path, s = save(tmp_path, method)
    x = torch.randn(3, D)
    if method == "pic2word":
        h = F.relu(x @ s["module.layers.0.0.weight"].T + s["module.layers.0.0.bias"])
        h = F.relu(h @ s["module.layers.1.0.weight"].T + s["module.layers.1.0.bias"])
        expected = h @ s["module.fc_out.weight"].T + s["module.fc_out.bias"]
    else:
        h = F.gelu(x @ s["layers.0.weight"].T + s["layers.0.bias"])
        h = F.gelu(h @ s["layers.3.weight"].T + s["layers.3.bias"])
        expected = h @ s["layers.6.weight"].T + s["layers.6.bias"]
    torch.testing.assert_close(load_inversion(path, method)(x), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("method", "link"), [("pic2word", " ,"), ("searle", " that")])
def test_query_puts_the_word_behind_a_photo_of(tmp_path, method, link):
    encoder = ClipTokens(tiny_clip())
    network = load_inversion(save(tmp_path, method)[0], method)
    images, captions = torch.randn(2, 17, D) / 50, ["has * longer sleeves", "red"]
    ours = inversion_query(encoder, network, method)(captions, images)
    clip = encoder.clip
    for caption, image, query in zip(captions, images, ours):
        ids = clip.tokenize([f"a photo of *{link} {caption}"])
        assert (ids[0, :5] == clip.tokenize(["a photo of *"])[0, :5]).all()
        # a plain forward pass of the blocks with the placeholder's embedding replaced
        text = clip.text
        x = text.token_embedding.weight[ids[0]].clone()
        x[4] = network(image[0][None])[0]
        x = (x + text.positional_embedding)[None]
        mask = torch.full((77, 77), -torch.inf).triu(1)
        for block in text.blocks:
            x = block(x, attn_mask=mask)
        feature = text._project(x)[0, int(ids[0].argmax())]
        torch.testing.assert_close(query, F.normalize(feature, dim=-1), atol=1e-5, rtol=0)


def test_wrong_files(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no searle network"):
        load_inversion(str(tmp_path / "x.pt"), "searle")
    path, _ = save(tmp_path, "searle")
    with pytest.raises(ValueError, match="no pic2word network"):
        load_inversion(path, "pic2word")
    network = load_inversion(path, "searle")
    network.layers[0] = torch.nn.Linear(32, 40)
    with pytest.raises(ValueError, match="maps 32 to 64"):
        check_fits(ClipTokens(tiny_clip()), network, "searle")
    with pytest.raises(ValueError, match="needs a CLIP backbone"):
        check_fits(object(), network, "searle")
