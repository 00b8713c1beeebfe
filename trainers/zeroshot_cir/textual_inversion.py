"""Textual inversion for composed retrieval, inference only: an image becomes one word of the query's text.

Pic2Word (Saito et al., CVPR 2023) asks "a photo of <image> , <caption>", SEARLE (Baldrati et al., ICCV 2023)
"a photo of <image> that <caption>". Weights are the user's own; the networks' sizes come from the file.
SEARLE's published weights are CC BY-NC 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.models.clip_tokens import ClipTokens

PREFIX = "a photo of"
#: words between the image's word and the caption
LINKS = {"pic2word": ",", "searle": "that"}
#: where published files keep the network's tensors
PLACES = ("state_dict_img2text", "Phi", "state_dict")


class InversionNetwork(nn.Module):
    """Linear layers with an activation between them: image feature [B, d] -> word embedding [B, width].

    Dropout stands between them in training only and is left out here.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], activation: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(weight.shape[1], weight.shape[0]) for weight, _ in layers)
        for layer, (weight, bias) in zip(self.layers, layers):
            layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        self.activation = activation
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def load_inversion(path: str, method: str) -> InversionNetwork:
    """Read a Pic2Word (``layers.i.0``, ``fc_out``) or SEARLE (``layers.{0,3,6}``) network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds no such network; lists what it holds.
    """
    from dassl_prompts.engine.checkpoint import load_checkpoint, require_finite

    content = load_checkpoint(path)
    for place in PLACES:
        if isinstance(content.get(place), Mapping):
            content = content[place]
            break
    state = {name.removeprefix("module."): value for name, value in content.items()}
    pattern = r"^(layers\.\d+\.0|fc_out)\.weight$" if method == "pic2word" else r"^layers\.\d+\.weight$"
    found = [name.removesuffix(".weight") for name in state if re.match(pattern, name)]
    # fc_out comes after the numbered layers
    names = sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [1000])
    sizes = [state[f"{name}.weight"].shape for name in names]
    if not names or any(f"{n}.bias" not in state for n in names) or any(a[0] != b[1] for a, b in zip(sizes, sizes[1:])):
        raise ValueError(f"{path} holds no {method} network (it holds {', '.join(sorted(map(str, state))[:6])})")
    require_finite(state, path)
    activation = nn.ReLU() if method == "pic2word" else nn.GELU()
    return InversionNetwork([(state[f"{n}.weight"], state[f"{n}.bias"]) for n in names], activation)


def inversion_query(encoder: ClipTokens, network: InversionNetwork, method: str):
    """The query function of a method: captions and token maps of the references -> normalised features [B,
    d].

    The image's word is put at a position, so a caption may contain any token.

    Raises:
        ValueError: the backbone is no CLIP, or the network was made for another one.
    """
    if not isinstance(encoder, ClipTokens):
        raise ValueError(f"{method} needs a CLIP backbone")
    text = encoder.clip.text
    width_in, width_out = network.layers[0].in_features, network.layers[-1].out_features
    if (width_in, width_out) != (encoder.width, text.width):
        raise ValueError(
            f"the {method} network maps {width_in} to {width_out} numbers, this backbone needs {encoder.width} to {text.width}: "
            "use the backbone that it was trained with"
        )
    prefix = len(text.encode_ids(PREFIX))

    def query(captions: Sequence[str], images: Tensor) -> Tensor:
        words = network(images[:, 0].float())
        prompts = text.prompts_from_texts([f"{PREFIX} {LINKS[method]} {c}" for c in captions], n_ctx=1, truncate=True)
        # the slot follows what the tower calls the class name: the words of the prefix
        prompts = replace(prompts, name_len=torch.full_like(prompts.name_len, prefix))
        return F.normalize(text(prompts, words[:, None, :], position="front").float(), dim=-1)

    return query
