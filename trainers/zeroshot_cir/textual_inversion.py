"""Textual inversion for composed retrieval: an image becomes one word of the query's text.

Pic2Word (Saito et al., CVPR 2023) asks "a photo of <image> , <caption>", SEARLE (Baldrati et al., ICCV 2023) and LinCIR
(Gu et al., CVPR 2024) "a photo of <image> that <caption>". The networks have the tensor names of the published files, so
these load here and ours load there. SEARLE's and LinCIR's published weights are CC BY-NC 4.0, Pic2Word's Apache-2.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.models.class_prompts import EOT, PLACEHOLDER, SOT
from dassl_prompts.models.clip_tokens import ClipTokens
from dassl_prompts.models.text import TextTower

PREFIX = "a photo of"
#: words between the image's word and the caption
LINKS = {"pic2word": ",", "searle": "that", "lincir": "that", "oti": "that"}
#: where published files keep the network's tensors
PLACES = ("state_dict_img2text", "Phi", "state_dict")
#: what our own checkpoints put in front of them
OWN = "network."


class Pic2WordNetwork(nn.Module):
    """Pic2Word's mapping [B, d] -> [B, width]: blocks of a linear layer, dropout and ReLU, then a linear layer.

    Args:
        sizes: widths from the input to the output, at least two.
    """

    def __init__(self, sizes: Sequence[int], dropout: float = 0.1):
        super().__init__()
        blocks = (
            nn.Sequential(nn.Linear(a, b), nn.Dropout(dropout), nn.ReLU()) for a, b in zip(sizes[:-2], sizes[1:-1])
        )
        self.layers = nn.Sequential(*blocks)
        self.fc_out = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(self.layers(x))


class Phi(nn.Module):
    """SEARLE's and LinCIR's mapping [B, d] -> [B, width]: linear layers with GELU and dropout between them.

    Args:
        sizes: widths from the input to the output, at least two.
    """

    def __init__(self, sizes: Sequence[int], dropout: float = 0.5):
        super().__init__()
        parts: list[nn.Module] = []
        for a, b in zip(sizes[:-2], sizes[1:-1]):
            parts += [nn.Linear(a, b), nn.GELU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*parts, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


NETWORKS = {"pic2word": Pic2WordNetwork, "searle": Phi, "lincir": Phi}


def widths(network: nn.Module) -> tuple[int, int]:
    """Of the input and of the output."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    inputs = getattr(network, "layers", None)
    first = next(m for m in (inputs.modules() if inputs is not None else linear) if isinstance(m, nn.Linear))
    return first.in_features, getattr(network, "fc_out", linear[-1]).out_features


def load_inversion(path: str, method: str) -> nn.Module:
    """Read a Pic2Word (``layers.i.0``, ``fc_out``) or SEARLE or LinCIR (``layers.{0,3,6}``) network; its sizes come from
    the file, which may be a published one or a checkpoint of ours.

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
    state = {name.removeprefix("module.").removeprefix(OWN): value for name, value in content.items()}
    pattern = r"^(layers\.\d+\.0|fc_out)\.weight$" if method == "pic2word" else r"^layers\.\d+\.weight$"
    found = [name.removesuffix(".weight") for name in state if re.match(pattern, name)]
    # fc_out comes after the numbered layers
    names = sorted(found, key=lambda name: [int(n) for n in re.findall(r"\d+", name)] or [1000])
    shapes = [state[f"{name}.weight"].shape for name in names]
    if (
        not names
        or any(f"{n}.bias" not in state for n in names)
        or any(a[0] != b[1] for a, b in zip(shapes, shapes[1:]))
    ):
        raise ValueError(f"{path} holds no {method} network (it holds {', '.join(sorted(map(str, state))[:6])})")
    require_finite(state, path)
    network = NETWORKS[method]([shapes[0][1], *(shape[0] for shape in shapes)])
    wanted = {name: state.get(name) for name in network.state_dict()}
    if any(value is None for value in wanted.values()):
        raise ValueError(f"{path} holds no {method} network (it holds {', '.join(sorted(map(str, state))[:6])})")
    network.load_state_dict({name: value.float() for name, value in wanted.items()})
    return network.requires_grad_(False).eval()


def encode_with_word(text: TextTower, pieces: Sequence[Sequence[str | None]], words: Tensor) -> Tensor:
    """Text features [B, E], fp32, not normalised, of texts in which a word of one's own stands.

    The word is put at positions, so a text may contain any token.

    Args:
        pieces: B texts in pieces; None stands for the word, as often as it occurs. Too long ones are cut.
        words: [B, width], one embedding per text.
    """
    rows, slots = [], []
    for parts in pieces:
        ids = [([PLACEHOLDER] if part is None else text.encode_ids(part)) for part in parts]
        row = [token for piece in ids for token in piece][: text.context_length - 2]
        own = [part is None for part, piece in zip(parts, ids) for _ in piece][: len(row)]
        rows.append([SOT, *row, EOT])
        slots.append([False, *own, False])
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=words.device)
    at = torch.tensor([row + [False] * (length - len(row)) for row in slots], device=words.device)
    embedded = text.token_embedding(tokens).float()
    embedded = torch.where(at[..., None], words[:, None].float(), embedded)
    return text.encode_embeddings(embedded, torch.tensor([len(row) - 1 for row in rows], device=words.device))


def check_fits(encoder, network: nn.Module, method: str) -> None:
    """Raise ValueError unless the backbone is a CLIP, and the one that the network was made for."""
    check_clip(encoder, method)
    wanted = (encoder.width, encoder.clip.text.width)
    if widths(network) != wanted:
        raise ValueError(
            f"the {method} network maps {widths(network)[0]} to {widths(network)[1]} numbers, this backbone needs "
            f"{wanted[0]} to {wanted[1]}: use the backbone that it was trained with"
        )


def check_clip(encoder, method: str) -> None:
    if not isinstance(encoder, ClipTokens):
        raise ValueError(f"{method} needs a CLIP backbone, whose text tower takes word embeddings")


def inversion_query(encoder: ClipTokens, words_of, method: str):
    """The query function of a method: captions and token maps of the references -> normalised features [B,
    d].

    Args:
        words_of: image features [B, d], not normalised, -> word embeddings [B, width].
    """

    def query(captions: Sequence[str], images: Tensor) -> Tensor:
        words = words_of(images[:, 0].float())
        pieces = [(PREFIX, None, f"{LINKS[method]} {caption}") for caption in captions]
        return F.normalize(encode_with_word(encoder.clip.text, pieces, words), dim=-1)

    return query
