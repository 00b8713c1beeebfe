"""INTERIM loader, until the towers agent's lands."""

from __future__ import annotations

import json
import lzma
from importlib import resources
from pathlib import Path

import torch
import torch.nn as nn

from dassl_prompts.models.text import TextTower
from dassl_prompts.models.vision import VisionTower


class CLIP(nn.Module):
    def __init__(self, model):
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        self.text = TextTower(model, SimpleTokenizer())
        self.vision = VisionTower(model.visual)
        self.register_buffer("logit_scale", model.logit_scale.detach().float())
        self.embed_dim = model.text_projection.shape[1]
        self.dtype = torch.float32
        self.image_size = self.vision.image_size
        self.is_vit = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    def tokenize(self, texts, truncate=False):
        return self.text.tokenize(texts, truncate)

    def encode_text(self, tokens):
        from dassl_prompts.models.text import ClassPrompts

        eot = tokens.argmax(1)
        return self.text(ClassPrompts(tokens, eot, 0, 1, eot - 1))

    def encode_image(self, images):
        return self.vision(images)


def build_clip(config, seed=None):
    from open_clip.model import CLIP as OpenCLIP

    if isinstance(config, str):
        config = json.loads((Path(str(resources.files("dassl_prompts.configs"))) / "backbones" / f"{config}.json").read_text())
    if seed is not None:
        torch.manual_seed(seed)
    config = dict(config)
    return CLIP(OpenCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True))


def infer(state):
    count = lambda prefix: len({k[len(prefix):].split(".")[0] for k in state if k.startswith(prefix)})  # noqa: E731
    patch = state["visual.conv1.weight"].shape[-1]
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    width = state["ln_final.weight"].shape[0]
    return {
        "embed_dim": state["text_projection"].shape[1],
        "vision_cfg": {"image_size": grid * patch, "layers": count("visual.transformer.resblocks."),
                       "width": state["visual.conv1.weight"].shape[0], "head_width": 64, "patch_size": patch},
        "text_cfg": {"context_length": state["positional_embedding"].shape[0],
                     "vocab_size": state["token_embedding.weight"].shape[0], "width": width, "heads": width // 64,
                     "layers": count("transformer.resblocks.")},
    }


def load_clip(name, precision="fp32", device="cpu"):
    from open_clip.model import CLIP as OpenCLIP
    from safetensors.torch import load

    path = Path(name)
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        config = infer(state)
    else:
        config = json.loads((Path(str(resources.files("dassl_prompts.configs"))) / "backbones" / f"{name}.json").read_text())
        path = Path(str(resources.files("dassl_prompts"))) / "assets" / "models" / f"{name}.safetensors.xz"
        state = load(lzma.decompress(path.read_bytes()))
    model = OpenCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=True)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return CLIP(model).to(device)
