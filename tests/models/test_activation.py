"""Which activation a weight file is built with: said by the file, by what lies beside it, or by the user; never guessed."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from dassl_prompts.models import activation, load_clip
from dassl_prompts.models.weights import SCALARS
from tests.trainers import plain

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def unmarked():
    """Tensors as open_clip saves them, which say nothing of the activation."""
    return {k: v.contiguous() for k, v in plain.openai_state().items() if k not in SCALARS}


def features(unmarked, activation):
    """Image features from open_clip's own model with GELU or QuickGELU."""
    from open_clip.model import CLIP as OpenCLIP

    vision = {"image_size": 32, "layers": 4, "width": 192, "head_width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4}
    model = OpenCLIP(64, vision, text, quick_gelu=activation == "quickgelu").eval()
    model.load_state_dict(unmarked)
    with torch.no_grad():
        return model.encode_image(IMAGES)


@pytest.mark.parametrize("name", ["quickgelu", "gelu"])
def test_the_key_decides_where_the_file_says_nothing(unmarked, tmp_path, name):
    save_file(unmarked, str(tmp_path / "w.safetensors"))
    clip = load_clip(str(tmp_path / "w.safetensors"), activation=name)
    assert (clip.activation, clip.activation_source) == (name, "MODEL.BACKBONE.ACTIVATION")
    torch.testing.assert_close(clip.encode_image(IMAGES), features(unmarked, name), rtol=0, atol=1e-5)
    other = features(unmarked, "gelu" if name == "quickgelu" else "quickgelu")
    assert (clip.encode_image(IMAGES) - other).abs().max() > 1e-3  # the wrong one would not be seen otherwise


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_nobody_says_it_is_refused_with_both_choices(unmarked, tmp_path, name):
    path = tmp_path / name
    torch.save(unmarked, path) if name == "w.pt" else save_file(unmarked, str(path))
    with pytest.raises(
        ValueError, match=r"w\.\w+ does not say which activation.*BACKBONE.ACTIVATION quickgelu .*gelu "
    ):
        load_clip(str(path))
    with pytest.raises(ValueError, match="TEACHER_ACTIVATION is 'relu'; choose one of quickgelu, gelu"):
        load_clip(str(path), activation="relu", key="TRAINER.PROMPTKD.TEACHER_ACTIVATION")


def test_openais_numbers_mark_quickgelu_and_a_contradicting_key_is_refused(tmp_path):
    torch.save(plain.openai_state(), tmp_path / "w.pt")
    clip = load_clip(str(tmp_path / "w.pt"))
    assert clip.activation == "quickgelu" and "input_resolution" in clip.activation_source
    assert load_clip(str(tmp_path / "w.pt"), activation="quickgelu").activation == "quickgelu"
    with pytest.raises(ValueError, match="MODEL.BACKBONE.ACTIVATION gelu contradicts .*w.pt, which has quickgelu"):
        load_clip(str(tmp_path / "w.pt"), activation="gelu")


def test_openais_files_are_known_by_the_digests_in_their_addresses(tmp_path, monkeypatch):
    import hashlib

    known = activation.openai_digests()
    assert len(known) == 9 and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known)
    assert known["5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"] == "ViT-B-16"
    path = tmp_path / "renamed.pt"
    path.write_bytes(b"stands for a file of OpenAI's")
    assert activation.openai_model(path) == ""  # too small to be one: not even read
    monkeypatch.setattr(activation, "OPENAI_LEAST", 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(activation, "openai_digests", lambda: {digest: "ViT-B-16"})
    found = activation.describe_file(path, ())
    assert (found.activation, found.source) == ("quickgelu", "OpenAI's ViT-B-16, by its SHA-256")


@pytest.mark.parametrize(
    "file, config, expected",
    [
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 64, "vision_cfg": {}, "quick_gelu": True}}, "quickgelu"),
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 64, "vision_cfg": {}}}, "gelu"),
        ("config.json", {"model_type": "clip", "vision_config": {}, "text_config": {}}, "quickgelu"),
        ("model.json", {"embed_dim": 64, "vision_cfg": {}, "quick_gelu": False}, "gelu"),
        ("model.json", {"embed_dim": 64, "vision_cfg": {}}, ""),
        ("config.json", {"model_type": "siglip", "vision_config": {}}, ""),
    ],
)
def test_a_configuration_beside_the_weights_says_it(tmp_path, file, config, expected):
    (tmp_path / file).write_text(json.dumps(config))
    found = activation.describe_file(tmp_path / "model.safetensors", ())
    assert found.activation == expected and (not expected or found.source == f"{file} beside it")
    if file != "model.json":  # of a file by another name it says nothing
        assert activation.describe_file(tmp_path / "mine.safetensors", ()).activation == ""


def test_towers_that_differ_and_damaged_configurations_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}, "text_config": {}}))
    with pytest.raises(
        ValueError, match="config.json: hidden_act is quick_gelu of the text and gelu of the image tower"
    ):
        activation.describe_file(tmp_path / "model.safetensors", ())
    path.write_text(json.dumps({"model_type": "clip", "vision_config": {"layer_norm_eps": 1e-6}}))
    with pytest.raises(ValueError, match="layer_norm_eps is 1e-06, 1e-05, CLIP's is 1e-05"):
        activation.describe_file(tmp_path / "model.safetensors", ())
    path.write_text("{")
    with pytest.raises(
        ValueError, match="config.json is not valid JSON: .*; it lies beside the weights model.safetensors"
    ):
        activation.describe_file(tmp_path / "model.safetensors", ())


def test_heads_that_the_width_cannot_tell_are_refused(tmp_path):
    state = plain.openai_state(vision_width=1280, vision_layers=1, text_layers=1, image=16)
    save_file({k: v.contiguous() for k, v in state.items()}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="width 1280 have heads of 80 in open_clip and of 64 elsewhere"):
        load_clip(str(tmp_path / "w.safetensors"))
    (tmp_path / "w.json").write_text(
        json.dumps({"embed_dim": 64, "vision_cfg": {"layers": 1, "width": 1280, "head_width": 80}, "quick_gelu": True})
    )
    assert load_clip(str(tmp_path / "w.safetensors")).vision.blocks[0].attn.num_heads == 16


def test_widths_without_heads_of_64_are_those_of_open_clips_configurations():
    import open_clip

    from dassl_prompts.models.sizes import OTHER_HEAD_WIDTHS

    found = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = config["vision_cfg"]
        if not config.get("custom_text") and vision.get("head_width", 64) != 64:
            found.setdefault(vision["width"], set()).add(vision["head_width"])
    assert found == {width: {head} for width, head in OTHER_HEAD_WIDTHS.items()}


def test_another_tokenizers_vocabulary_is_refused(tmp_path):
    state = {**plain.openai_state(), "token_embedding.weight": torch.zeros(32000, 128)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="w.pt: its text tower knows 32000 tokens, CLIP's tokenizer has 49408"):
        load_clip(str(tmp_path / "w.pt"))


def test_a_key_that_contradicts_a_name_or_a_json_configuration_is_refused(tmp_path):
    assert load_clip("emoji-tiny", activation="quickgelu").activation == "quickgelu"
    with pytest.raises(ValueError, match="ACTIVATION gelu contradicts emoji-tiny, which has quickgelu .an embedded"):
        load_clip("emoji-tiny", activation="gelu")
    config = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}}
    config["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "m.json").write_text(json.dumps({**config, "quick_gelu": True}))
    with pytest.warns(UserWarning, match="random"), pytest.raises(ValueError, match="contradicts .*m.json"):
        load_clip(str(tmp_path / "m.json"), activation="gelu")
    (tmp_path / "m.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="random"):
        assert load_clip(str(tmp_path / "m.json"), activation="gelu").activation == "gelu"
