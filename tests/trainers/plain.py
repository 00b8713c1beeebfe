"""The methods' formulas written plainly: 77 tokens, one class or image after the other where the official
code does so.

Works on a random state dict with OpenAI's tensor names, not on the package's towers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = 4
CONTEXT = 77
CLASSES = ["tabby_cat", "dog", "great white shark", "aeroplane", "tea pot", "bus", "mushroom"]
OTHERS = ["sunflower", "red_panda", "violin"]


def openai_state(
    embed=64,
    text_width=128,
    vision_width=192,
    text_layers=LAYERS,
    vision_layers=LAYERS,
    image=32,
    patch=16,
    seed=0,
) -> dict[str, Tensor]:
    """Random CLIP weights under OpenAI's names; heads are width / 64 as there."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape, std=0.05):
        return torch.randn(*shape, generator=g) * std

    state = {
        "positional_embedding": rand(CONTEXT, text_width),
        "text_projection": rand(text_width, embed, std=0.1),
        "logit_scale": torch.tensor(math.log(100.0)),
        "token_embedding.weight": rand(49408, text_width, std=0.1),
        "visual.class_embedding": rand(vision_width),
        "visual.proj": rand(vision_width, embed, std=0.1),
        "visual.positional_embedding": rand((image // patch) ** 2 + 1, vision_width),
        "visual.conv1.weight": rand(vision_width, 3, patch, patch),
        # what OpenAI's archives carry besides, by which their activation is known
        "input_resolution": torch.tensor(image),
        "context_length": torch.tensor(CONTEXT),
        "vocab_size": torch.tensor(49408),
    }
    norms = {"ln_final": text_width, "visual.ln_pre": vision_width, "visual.ln_post": vision_width}
    for tower, width, layers in (("", text_width, text_layers), ("visual.", vision_width, vision_layers)):
        for i in range(layers):
            block = f"{tower}transformer.resblocks.{i}."
            norms |= {block + "ln_1": width, block + "ln_2": width}
            for name, (out, inp) in {
                "attn.in_proj_": (3 * width, width),
                "attn.out_proj.": (width, width),
                "mlp.c_fc.": (4 * width, width),
                "mlp.c_proj.": (width, 4 * width),
            }.items():
                state[f"{block}{name}weight"], state[f"{block}{name}bias"] = rand(out, inp), rand(out)
    for name, width in norms.items():
        state[name + ".weight"], state[name + ".bias"] = 1 + rand(width), rand(width)
    return state


def depth(state, tower: str = "") -> int:
    """Blocks of the text tower, or of ``"visual."``."""
    return sum(k.startswith(f"{tower}transformer.") and k.endswith("ln_1.weight") for k in state)


def norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[name + ".weight"], state[name + ".bias"], 1e-5)


def block(state, name, x, mask=None):
    """One residual attention block on ``[N, L, D]``."""
    n, length, width = x.shape
    heads = width // 64
    h = norm(state, name + "ln_1", x)
    q, k, v = F.linear(h, state[name + "attn.in_proj_weight"], state[name + "attn.in_proj_bias"]).chunk(3, dim=-1)
    q, k, v = (t.reshape(n, length, heads, 64).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / 8.0
    if mask is not None:
        scores = scores + mask
    h = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width)
    x = x + F.linear(h, state[name + "attn.out_proj.weight"], state[name + "attn.out_proj.bias"])
    h = F.linear(norm(state, name + "ln_2", x), state[name + "mlp.c_fc.weight"], state[name + "mlp.c_fc.bias"])
    return x + F.linear(
        h * torch.sigmoid(1.702 * h), state[name + "mlp.c_proj.weight"], state[name + "mlp.c_proj.bias"]
    )


def text_features(state, tokens: Tensor, ctx=None, deep=(), normalise=True) -> Tensor:
    """``[C, E]`` of token ids ``[C, 77]`` whose positions 1 .. n hold ``ctx`` (``[n, d]`` or ``[C, n,
    d]``)."""
    x = state["token_embedding.weight"][tokens]
    if ctx is not None:
        n = ctx.shape[-2]
        x = torch.cat([x[:, :1], ctx.expand(len(x), n, -1), x[:, 1 + n :]], dim=1)
    x = x + state["positional_embedding"]
    mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    for i in range(depth(state)):
        if 1 <= i <= len(deep) and deep[i - 1] is not None:
            n = deep[i - 1].shape[-2]
            x = torch.cat([x[:, :1], deep[i - 1].expand(len(x), n, -1), x[:, 1 + n :]], dim=1)
        x = block(state, f"transformer.resblocks.{i}.", x, mask)
    x = norm(state, "ln_final", x)[torch.arange(len(tokens)), tokens.argmax(-1)] @ state["text_projection"]
    return x / x.norm(dim=-1, keepdim=True) if normalise else x


def image_features(state, images: Tensor, visual=None, deep=(), normalise=True) -> Tensor:
    """``[B, E]``; ``visual`` and ``deep`` are ``[n, d]`` and stand at the end of the sequence."""
    weight = state["visual.conv1.weight"]
    x = F.conv2d(images, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = (
        torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
        + state["visual.positional_embedding"]
    )
    if visual is not None:
        x = torch.cat([x, visual.expand(len(x), *visual.shape)], dim=1)
    x = norm(state, "visual.ln_pre", x)
    for i in range(depth(state, "visual.")):
        if 1 <= i <= len(deep):
            tokens = deep[i - 1]
            x = torch.cat([x[:, : -len(tokens)], tokens.expand(len(x), *tokens.shape)], dim=1)
        x = block(state, f"visual.transformer.resblocks.{i}.", x)
    x = norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]
    return x / x.norm(dim=-1, keepdim=True) if normalise else x


def image_layers(state, images: Tensor) -> list[Tensor]:
    """What every block of the image tower puts out for its class and patch tokens, ``[B, 1 + P, d]``."""
    weight = state["visual.conv1.weight"]
    x = F.conv2d(images, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1)
    x = norm(state, "visual.ln_pre", x + state["visual.positional_embedding"])
    out = []
    for i in range(depth(state, "visual.")):
        x = block(state, f"visual.transformer.resblocks.{i}.", x)
        out.append(x)
    return out


def image_head(state, x: Tensor) -> Tensor:
    """``ln_post`` and projection of any rows ``[..., d]``."""
    return norm(state, "visual.ln_post", x) @ state["visual.proj"]


def prompt_tokens(clip, n_ctx: int, words: str, classnames) -> Tensor:
    """Token ids ``[C, 77]`` of ``n_ctx`` slots, fixed words, class name and full stop."""
    texts = (" ".join([*["X"] * n_ctx, words, name.replace("_", " ")]).replace("  ", " ") + "." for name in classnames)
    return clip.tokenize([text.strip() for text in texts])


def logits(state, image: Tensor, text: Tensor) -> Tensor:
    return state["logit_scale"].exp() * image @ text.t()


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
