"""The sizes of a CLIP, read off its tensors."""

from __future__ import annotations

from torch import Tensor

from dassl_prompts.models.activation import Description

#: widths of open_clip's image towers (ViT-H, g, bigG, e) whose heads are not of 64, with what they are of
OTHER_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def infer_config(state: dict[str, Tensor], source: str) -> dict:
    """Sizes of a CLIP from its tensors; heads are width / 64 and the activation is QuickGELU, as in OpenAI's models.

    Raises:
        ValueError: tensors that every CLIP has are missing.
    """
    try:
        width = state["ln_final.weight"].shape[0]
        widths = (width, *([state["visual.conv1.weight"].shape[0]] if "visual.proj" in state else []))
        if any(w % 64 for w in widths):
            raise ValueError(
                f"{source}: widths {widths} are not multiples of 64, so the number of heads cannot be inferred; give a JSON "
                'model configuration with the key "weights" instead'
            )
        text = {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": width,
            "heads": max(1, width // 64),
            "layers": count_blocks(state, "transformer.resblocks."),
        }
        vision = infer_vit(state) if "visual.proj" in state else infer_resnet(state)
        return {
            "embed_dim": state["text_projection"].shape[1],
            "vision_cfg": vision,
            "text_cfg": text,
            "quick_gelu": True,
        }
    except KeyError as error:
        raise ValueError(
            f"{source} holds no CLIP in OpenAI's format: tensor {error} is missing (it has {sorted(state)[:3]} ...)"
        ) from error


def infer_vit(state: dict[str, Tensor]) -> dict:
    patch = state["visual.conv1.weight"].shape[-1]
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": state["visual.conv1.weight"].shape[0],
        "head_width": 64,
        "layers": count_blocks(state, "visual.transformer.resblocks."),
    }


def infer_resnet(state: dict[str, Tensor]) -> dict:
    grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    layers = [count_blocks(state, f"visual.layer{i}.") for i in (1, 2, 3, 4)]
    return {
        "image_size": grid * 32,
        "layers": layers,
        "width": state["visual.layer1.0.conv1.weight"].shape[0],
        "patch_size": None,
    }


def count_blocks(state: dict[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)})


def set_heads(config: dict, known: Description, source: str) -> None:
    """Heads as described, else width / 64.

    Raises:
        ValueError: towers of this width exist with other heads, and nothing says which these are.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if known.text_heads:
        text["heads"] = known.text_heads
    if "head_width" not in vision:  # a ResNet
        return
    if known.vision_heads:
        vision["head_width"] = vision["width"] // known.vision_heads
    elif vision["width"] in OTHER_HEAD_WIDTHS:
        raise ValueError(
            f"{source}: image towers of width {vision['width']} have heads of {OTHER_HEAD_WIDTHS[vision['width']]} in open_clip and "
            "of 64 elsewhere, which their tensors cannot tell: give open_clip's name of the model, or a JSON model configuration "
            'with the key "weights"'
        )
