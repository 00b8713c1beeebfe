"""Digest of a backbone: the same for the same weights in any file, another for others."""

import json

import pytest
import torch
from safetensors.torch import save_file

from dassl_prompts.models import load_clip
from dassl_prompts.models.backbones import digest_now
from dassl_prompts.models.weights import SAMPLE, SCALARS, weights_digest
from tests.trainers import plain


def test_file_format_order_and_precision_of_the_run_do_not_count(tmp_path):
    state = plain.openai_state()
    torch.save(state, tmp_path / "a.pt")
    save_file({k: v.contiguous() for k, v in reversed(state.items())}, str(tmp_path / "b.safetensors"))
    expected = weights_digest(state)
    for name in ("a.pt", "b.safetensors"):
        assert digest_now(str(tmp_path / name)) == expected
    assert load_clip(str(tmp_path / "a.pt")).digest == expected
    assert load_clip(str(tmp_path / "b.safetensors"), precision="fp16").digest == expected


def test_a_change_of_any_tensor_is_seen():
    state = plain.openai_state()
    expected = weights_digest(state)
    for name in state.keys() - set(SCALARS):
        changed = {**state, name: state[name] + 0.01 * (1 + state[name].abs())}
        assert weights_digest(changed) != expected, name
    assert weights_digest({k: v for k, v in state.items() if k != "ln_final.bias"}) != expected


@pytest.mark.parametrize("count", [1, SAMPLE - 1, SAMPLE, SAMPLE + 1, 5 * SAMPLE + 3])
def test_the_sample_spreads_over_the_whole_tensor(count):
    values = torch.zeros(count)
    digests = {weights_digest({"w": values})}
    for at in {0, count // 2, count - 1}:
        block = values.clone()
        block[max(0, at - 5) : at + 6] = 1.0
        digests.add(weights_digest({"w": block}))
    assert len(digests) == 1 + len({(max(0, at - 5), min(count, at + 6)) for at in (0, count // 2, count - 1)})


def test_a_json_configuration_with_and_without_weights(tmp_path):
    state = plain.openai_state()
    torch.save(state, tmp_path / "w.pt")
    from dassl_prompts.models.clip import infer_config

    config = infer_config(state, "test")
    (tmp_path / "with.json").write_text(json.dumps({**config, "weights": "w.pt"}))
    (tmp_path / "without.json").write_text(json.dumps(config))
    assert (
        load_clip(str(tmp_path / "with.json")).digest
        == weights_digest(state)
        == digest_now(str(tmp_path / "with.json"))
    )
    with pytest.warns(UserWarning, match="random"):
        assert load_clip(str(tmp_path / "without.json")).digest == ""  # random weights are other ones each time
    assert digest_now(str(tmp_path / "without.json")) == ""


def test_embedded_weights_are_looked_at_and_published_names_are_not(monkeypatch):
    assert digest_now("emoji-tiny") == load_clip("emoji-tiny").digest != ""
    assert digest_now("ViT-B/16") == "" and digest_now("blip-itm-base-coco") == ""
