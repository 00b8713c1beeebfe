"""A CLIP's tensors in whatever a weight file holds, under OpenAI's names.

Files come as plain state dicts, nested in a training checkpoint (``state_dict``, ``model_state_dict``, ...), below a prefix
(``module.``, ``clip.``), and with OpenAI's (also open_clip's) or Hugging Face's names. What is none of these is told with what
was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: tensors that tell OpenAI's names; two of them make a CLIP, so that a damaged one is still told by what it lacks
OPENAI_MARKS = ("ln_final.weight", "token_embedding.weight", "visual.conv1.weight")
HUGGING_FACE_MARKS = (
    "text_model.final_layer_norm.weight",
    "text_model.embeddings.token_embedding.weight",
    "vision_model.embeddings.patch_embedding.weight",
)
#: transformers' names -> OpenAI's, below the towers' own prefixes; the three projections of an attention become one
BLOCK_NAMES = {
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
OTHER_NAMES = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # transformers' spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
#: a linear map there, a matrix applied from the right here
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)")
PROJECTION = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


@dataclass(frozen=True)
class Found:
    """A CLIP in a file.

    Attributes:
        state: tensors under OpenAI's names. place: keys and prefix that it stood below, "" for none.
        hugging_face: whether it had Hugging Face's names.
    """

    state: dict[str, Tensor]
    place: str
    hugging_face: bool


def find_clip(content: Any, source: str) -> Found:
    """The one CLIP in the content of a weight file.

    Raises:
        ValueError: there is none, or several; says what was found.
    """
    groups = list(state_dicts(content))
    found = []
    for path, state in groups:
        for marks, hugging_face in ((OPENAI_MARKS, False), (HUGGING_FACE_MARKS, True)):
            for prefix in prefixes(state, marks):
                found.append((path, prefix, state, hugging_face))
    if not found:
        raise ValueError(f"{source} holds no CLIP in OpenAI's or Hugging Face's format: {describe(groups)}")
    if len(found) > 1:
        places = ", ".join(repr(".".join([*path, prefix]).rstrip(".")) for path, prefix, *_ in found)
        raise ValueError(f"{source} holds several CLIPs (below {places}): save the one you mean in a file of its own")
    path, prefix, state, hugging_face = found[0]
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if hugging_face:
        own = from_hugging_face(own, source)
    return Found(own, ".".join([*path, prefix]).rstrip("."), hugging_face)


def state_dicts(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping with tensors among nested mappings, with the keys that lead to it."""
    if not isinstance(content, Mapping):
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items():
        yield from state_dicts(value, (*path, str(key)))


def prefixes(state: Mapping[str, Tensor], marks: tuple[str, ...]) -> list[str]:
    """Prefixes below which at least two of the marks stand."""
    counts: dict[str, int] = {}
    for mark in marks:
        for key in state:
            prefix = key.removesuffix(mark)
            if prefix != key and (not prefix or prefix.endswith(".")):
                counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if count > 1]


def describe(groups: list[tuple[tuple[str, ...], dict[str, Tensor]]]) -> str:
    """What a file holds instead, in a few words."""
    if not groups:
        return "it holds no tensors"
    parts = []
    for path, state in groups[:3]:
        place = f" below {'.'.join(path)}" if path else ""
        parts.append(f"{len(state)} tensors{place} such as {', '.join(sorted(state)[:3])}")
    return (
        f"found {'; '.join(parts)}. A CLIP has tensors such as {' and '.join(OPENAI_MARKS[1:])}, or "
        f"{HUGGING_FACE_MARKS[1]}"
    )


def from_hugging_face(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A ``transformers.CLIPModel``'s tensors under OpenAI's names.

    Raises:
        ValueError: one tower alone, a tensor that such a model does not have, or half of an attention; names it.
    """
    for tower, other in (("text", "vision"), ("vision", "text")):
        if not any(key.startswith(f"{other}_model.") for key in state):
            raise ValueError(f"{source} holds no CLIP but its {tower} tower alone: save the whole CLIPModel")
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):  # a range, kept as a buffer by older versions
            continue
        if key in OTHER_NAMES:
            renamed[OTHER_NAMES[key]] = value
        elif key in TRANSPOSED:
            renamed[TRANSPOSED[key]] = value.t().contiguous()
        elif (match := BLOCK.fullmatch(key)) is None:
            raise ValueError(f"{source}: {key} is no tensor of transformers' CLIPModel")
        else:
            tower, layer, rest = match.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{layer}."
            if projection := PROJECTION.fullmatch(rest):
                which, kind = projection.groups()
                parts.setdefault(f"{block}attn.in_proj_{kind}", {})[which] = value
                continue
            new = next((rest.replace(old, name, 1) for old, name in BLOCK_NAMES.items() if rest.startswith(old)), None)
            if new is None:
                raise ValueError(f"{source}: {key} is no tensor of transformers' CLIPModel")
            renamed[block + new] = value
    for name, three in parts.items():
        if set(three) != set("qkv"):
            raise ValueError(f"{source}: of {name} it holds only {', '.join(sorted(three))} of q, k and v")
        renamed[name] = torch.cat([three["q"], three["k"], three["v"]])
    return renamed
