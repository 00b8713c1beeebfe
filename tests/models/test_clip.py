"""Loading a CLIP by name or file."""

import json
import lzma

import pytest
import torch

from dassl_prompts.engine import UnsafePickleError
from dassl_prompts.models import load_clip, resolve_precision
from tests.trainers import plain


@pytest.fixture(scope="module")
def state():
    return plain.openai_state()


@pytest.fixture(scope="module")
def expected(state):
    from dassl_prompts.models.clip import finish, from_state_dict

    clip = finish(from_state_dict(dict(state), "random"), "fp32", "cpu")
    return clip.encode_image(IMAGES)


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def save(state, path):
    from safetensors.torch import save, save_file

    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, str(path))
    elif path.suffix == ".xz":
        path.write_bytes(
            lzma.compress(save({k: v.contiguous() for k, v in state.items()}), preset=0)
        )  # random weights do not compress
    elif path.name == "training.pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        torch.save({**state, "input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}, path)
    return str(path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w.safetensors.xz", "training.pt"])
def test_files_of_every_kind(state, expected, tmp_path, name):
    clip = load_clip(save(state, tmp_path / name))
    assert torch.equal(clip.encode_image(IMAGES), expected)
    assert (clip.embed_dim, clip.image_size, clip.text.heads, clip.vision.layers) == (64, 32, 2, 4)
    assert clip.logit_scale.exp() == pytest.approx(100)


def test_torchscript_archive(state, expected, tmp_path):
    """OpenAI's own files are TorchScript archives."""

    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for key, value in state.items():
                *path, leaf = key.split(".")
                module = self
                for part in path:
                    if part not in module._modules:
                        module.add_module(part, torch.nn.Module())
                    module = module._modules[part]
                module.register_buffer(leaf, value)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    torch.jit.save(torch.jit.script(Archive()), str(tmp_path / "openai.pt"))
    assert torch.equal(load_clip(str(tmp_path / "openai.pt")).encode_image(IMAGES), expected)


def test_json_configuration_with_weights_beside_it(state, expected, tmp_path):
    save(state, tmp_path / "w.safetensors")
    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "weights": "w.safetensors",
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 192, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    assert torch.equal(load_clip(str(path)).encode_image(IMAGES), expected)
    path.write_text(json.dumps({**config, "weights": ""}))
    with pytest.warns(UserWarning, match="names no weights"):
        load_clip(str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match="mine.json is not an open_clip model configuration"):
        load_clip(str(path))


def test_resnet_sizes_are_inferred():
    from dassl_prompts.models.clip import build_model, infer_config

    config = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 64, "patch_size": None},
        "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2},
    }
    found = infer_config(build_model(config).state_dict(), "random")
    assert found["vision_cfg"] == config["vision_cfg"] and found["text_cfg"] == config["text_cfg"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.ln_post.bias"), "missing .'visual.ln_post.bias'."),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown .'extra'."),
        (lambda s: s.pop("ln_final.weight"), "holds no CLIP in OpenAI's format: tensor 'ln_final.weight'"),
        (lambda s: s.update({"text_projection": torch.zeros(7, 64)}), "other shape .'text_projection"),
    ],
)
def test_state_dicts_that_are_not_a_clip(state, tmp_path, change, message):
    broken = dict(state)
    change(broken)
    with pytest.raises(ValueError, match=message):
        load_clip(save(broken, tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.safetensors.xz"])
def test_damaged_and_missing_files_are_named(state, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        load_clip(str(path))
    save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=name):
        load_clip(str(path))


def test_damaged_embedded_backbone_says_how_to_restore_it(state, tmp_path):
    path = tmp_path / "emoji-tiny.safetensors.xz"
    path.write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"emoji-tiny\.safetensors\.xz.*git checkout -- .*train_emoji_clip.py emoji-tiny"
    ):
        load_clip(str(path))


def test_missing_embedded_backbone_says_how_to_restore_it(monkeypatch, tmp_path):
    from dassl_prompts.models import clip

    monkeypatch.setattr(clip.resources, "files", lambda package: tmp_path)
    with pytest.raises(
        FileNotFoundError, match="emoji-tiny has no weights at .*git checkout -- .*install the package again"
    ) as error:
        load_clip("emoji-tiny")
    assert str(tmp_path / "assets" / "models" / "emoji-tiny.safetensors.xz") in str(error.value)


def test_pickled_code_is_not_executed(tmp_path):
    import os

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(UnsafePickleError, match="w.pt refers to"):
        load_clip(str(tmp_path / "w.pt"))
    assert not (tmp_path / "executed").exists()


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="unknown backbone 'ViT-Q/9'.*emoji-tiny.*ViT-B/16"):
        load_clip("ViT-Q/9")
    with pytest.raises(ValueError, match="unknown backbone 'emoji-huge'.*emoji-tiny"):
        load_clip("emoji-huge")
    with pytest.raises(ValueError, match="MODEL.BACKBONE.NAME is empty"):
        load_clip("")


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch):
    import open_clip

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(FileNotFoundError, match="openai of ViT-B-16-quickgelu.*no network.*MODEL.BACKBONE.NAME"):
        load_clip("ViT-B/16")


def test_openai_weights_always_get_quickgelu(monkeypatch):
    import open_clip

    asked = []

    def record(architecture, pretrained, precision):
        asked.append((architecture, pretrained))
        raise OSError("stop")

    monkeypatch.setattr(open_clip, "create_model", record)
    for name in ("ViT-B/16", "ViT-B-16", "ViT-B-16-quickgelu", "RN50", "ViT-B-16:laion2b_s34b_b88k"):
        with pytest.raises(FileNotFoundError):
            load_clip(name)
    assert asked == [("ViT-B-16-quickgelu", "openai")] * 3 + [
        ("RN50-quickgelu", "openai"),
        ("ViT-B-16", "laion2b_s34b_b88k"),
    ]
    with pytest.raises(ValueError, match="no weights 'nope'"):
        load_clip("ViT-B-16:nope")


def test_every_tag_of_open_clip_is_built_with_its_own_activation_or_refused(monkeypatch):
    """By the tag's own record, before anything is downloaded: open_clip only warns, in words that change."""
    import open_clip

    built = {}

    def record(architecture, pretrained, precision):
        built["asked"] = (architecture, pretrained)
        raise OSError("stop")

    monkeypatch.setattr(open_clip, "create_model", record)
    refused = []
    known = open_clip.list_models()  # 2.29 has weights of a ViTamin without its configuration
    for model, tag in (pair for pair in open_clip.list_pretrained() if pair[0] in known):
        wanted = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            load_clip(f"{model}:{tag}")
        if error.type is FileNotFoundError:
            architecture, asked = built["asked"]
            assert bool(open_clip.get_model_config(architecture).get("quick_gelu")) == wanted and asked == tag
        else:
            refused.append((model, tag))
            if "prompts are learned here on CLIP's own towers" in str(error.value):
                continue  # SigLIP, CoCa, ... : tests/models/test_open_clip_facts.py
            assert f"trained with {'QuickGELU' if wanted else 'GELU'}, but {model} is built with" in str(error.value)
    assert ("ViT-B-32", "laion400m_e32") in refused and ("ViT-B-32", "openai") not in refused
    assert ("ViT-B-32", "laion2b_s34b_b79k") not in refused
    with pytest.raises(ValueError, match="; give ViT-B-32-quickgelu:laion400m_e32$"):
        load_clip("ViT-B-32:laion400m_e32")


def test_precisions():
    assert [resolve_precision(p, "cpu") for p in ("fp32", "amp", "fp16")] == ["fp32"] * 3
    assert [resolve_precision(p, "cuda") for p in ("fp32", "amp", "fp16")] == ["fp32", "amp", "fp16"]
    with pytest.raises(ValueError, match="choose one of fp16, fp32, amp"):
        resolve_precision("int8", "cpu")
