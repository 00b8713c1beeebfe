"""Weight files of other tools: Hugging Face's names, nested and prefixed state dicts, and what is none of them."""

import pytest
import torch
from safetensors.torch import save_file

from dassl_prompts.models import load_clip
from dassl_prompts.models.backbones import digest_now
from dassl_prompts.models.layouts import find_clip
from tests.trainers import plain

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a photo of a cat.", "two red dogs on a green field"]


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def hugging_face(request):
    """A small random ``CLIPModel`` of transformers."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(5)
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = CLIPConfig(
        text_config={**text, "hidden_act": request.param, "eos_token_id": 49407, "vocab_size": 49408},
        vision_config={**vision, "hidden_act": request.param, "image_size": 32, "patch_size": 16},
        projection_dim=64,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # its own start is so small that a swapped tensor would hardly show
        for name, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.05 + ("norm" in name and name.endswith("weight")))
    return model


@torch.no_grad()
def check_same(clip, model):
    tokens = clip.tokenize(TEXTS)
    text = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    image = model.visual_projection(model.vision_model(pixel_values=IMAGES).pooler_output)
    for ours, theirs in ((clip.encode_text(tokens), text), (clip.encode_image(IMAGES), image)):
        assert (ours / ours.norm(dim=-1, keepdim=True) - theirs / theirs.norm(dim=-1, keepdim=True)).abs().max() < 1e-5
    assert clip.logit_scale == model.logit_scale


def test_a_folder_of_hugging_face_says_its_activation_and_has_its_features(hugging_face, tmp_path):
    hugging_face.save_pretrained(tmp_path)
    path = str(tmp_path / "model.safetensors")
    clip = load_clip(path)
    assert clip.activation == hugging_face.config.text_config.hidden_act.replace("_", "")
    assert clip.activation_source == "config.json beside it"
    check_same(clip, hugging_face)
    assert digest_now(path) == clip.digest


@pytest.mark.parametrize("place", ["", "clip.", "state_dict/model.", "checkpoint/model_state_dict/module.clip."])
def test_hugging_face_tensors_wherever_they_stand(hugging_face, tmp_path, place):
    *keys, prefix = place.split("/")
    content = {f"{prefix}{name}": value for name, value in hugging_face.state_dict().items()}
    content["head.weight"] = torch.zeros(3)  # a classifier beside the CLIP is not of it, below a prefix
    if not prefix:
        del content["head.weight"]
    for key in reversed(keys):
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    name = hugging_face.config.text_config.hidden_act.replace("_", "")
    check_same(load_clip(str(tmp_path / "w.pt"), activation=name), hugging_face)


@pytest.mark.parametrize("place", ["model_state_dict/", "clip.", "state_dict/module.clip.", "model/"])
def test_openais_names_wherever_they_stand(tmp_path, place):
    state = plain.openai_state()
    *keys, prefix = place.split("/")
    content = {f"{prefix}{name}": value for name, value in state.items()}
    for key in reversed(keys):
        content = {key: content, "optimizer": {"lr": 0.1, "state": {0: {"exp_avg": torch.zeros(2)}}}}
    torch.save(content, tmp_path / "nested.pt")
    torch.save(state, tmp_path / "plain.pt")
    nested, flat = load_clip(str(tmp_path / "nested.pt")), load_clip(str(tmp_path / "plain.pt"))
    assert torch.equal(nested.encode_image(IMAGES), flat.encode_image(IMAGES)) and nested.digest == flat.digest


def test_what_is_no_clip_is_told_with_what_was_found(tmp_path):
    save_file({"backbone.layer.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="w.safetensors holds no CLIP .*found 2 tensors such as backbone.layer.weight"):
        load_clip(str(tmp_path / "w.safetensors"))
    torch.save({"net": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="w.pt holds no CLIP .*found 1 tensors below net such as a"):
        load_clip(str(tmp_path / "w.pt"))
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="w.pt holds no CLIP .*it holds no tensors"):
        load_clip(str(tmp_path / "w.pt"))


def test_two_clips_in_one_file_are_not_chosen_from():
    state = plain.openai_state(text_layers=1, vision_layers=1)
    both = {f"{who}.{name}": value for who in ("student", "ema") for name, value in state.items()}
    with pytest.raises(ValueError, match="w holds several CLIPs .below 'state_dict.student', 'state_dict.ema'."):
        find_clip({"state_dict": both}, "w")


def test_half_of_an_attention_and_foreign_tensors_are_named(hugging_face):
    state = dict(hugging_face.state_dict())
    with pytest.raises(ValueError, match="text_model.adapter.weight is no tensor of transformers' CLIPModel"):
        find_clip({**state, "text_model.adapter.weight": torch.zeros(1)}, "w")
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(ValueError, match="visual.transformer.resblocks.1.attn.in_proj_weight it holds only q, v of"):
        find_clip(state, "w")


@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["transformers 4", "transformers 5"])
def test_a_text_tower_alone_is_refused_in_both_spellings_of_transformers(tmp_path, prefix):
    """Version 5 leaves the prefix out; version 4 takes such a file for one without weights and makes random ones."""
    names = ("embeddings.token_embedding.weight", "encoder.layers.0.layer_norm1.weight", "final_layer_norm.weight")
    torch.save({f"{prefix}{name}": torch.ones(2, 2) for name in names}, tmp_path / "text.pt")
    with pytest.raises(ValueError, match="text.pt holds no CLIP (but its text tower alone|in OpenAI)"):
        load_clip(str(tmp_path / "text.pt"))
