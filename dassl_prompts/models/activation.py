"""Which activation the model of a weight file was trained with: its tensors cannot tell, and the wrong one is silent.

OpenAI's models have QuickGELU, ``x sigmoid(1.702 x)``; open_clip's own models on LAION and DataComp have GELU. A file is
believed where it, or the configuration beside it, says which; otherwise ``MODEL.BACKBONE.ACTIVATION`` has to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dassl_prompts.engine.reading import read_json, reading

QUICKGELU, GELU = "quickgelu", "gelu"
CHOICES = (QUICKGELU, GELU)
#: numbers that OpenAI's archives, and copies of their tensors, carry beside the weights
OPENAI_NUMBERS = ("input_resolution", "context_length")
#: bytes of a file below which it is none of OpenAI's, the smallest of which has 244 MB
OPENAI_LEAST = 200_000_000
#: names under which Hugging Face and open_clip store weights beside a configuration that describes them
DESCRIBED_FILES = re.compile(r"(pytorch_model|model|open_clip_pytorch_model|open_clip_model)\.(bin|safetensors)")


@dataclass(frozen=True)
class Description:
    """What is known of a file's model besides its tensors.

    Attributes:
        activation: "quickgelu", "gelu" or "" where nothing says it. source: who says so.
        text_heads, vision_heads: heads of the towers' attention, None where nothing says it.
    """

    activation: str = ""
    source: str = ""
    text_heads: int | None = None
    vision_heads: int | None = None


def describe_file(path: Path, names: Collection[str]) -> Description:
    """What a weight file says of itself by its content, or a configuration beside it.

    Args:
        names: all entries of its state dict, numbers included.

    Raises:
        ValueError: the configuration beside it is damaged, or describes towers that differ.
    """
    beside = description_beside(path)
    if beside is not None:
        return beside
    official = openai_model(path)
    if official:
        return Description(QUICKGELU, f"OpenAI's {official}, by its SHA-256")
    if all(any(name.rsplit(".", 1)[-1] == number for name in names) for number in OPENAI_NUMBERS):
        return Description(QUICKGELU, f"marked as OpenAI's by {' and '.join(OPENAI_NUMBERS)}")
    return Description()


def description_beside(path: Path) -> Description | None:
    """From the JSON configuration that a weight file of a fixed name lies beside; None where there is none."""
    candidates = [path.with_suffix(".json")]
    if DESCRIBED_FILES.fullmatch(path.name):
        candidates += [path.with_name("open_clip_config.json"), path.with_name("config.json")]
    for file in candidates:
        if not file.is_file():
            continue
        with reading(file, "a configuration", f"it lies beside the weights {path.name}"):
            config = read_json(file)
        if isinstance(config, dict) and (found := described(config, file)) is not None:
            return found
    return None


def described(config: dict, file: Path) -> Description | None:
    """From a configuration of open_clip's (also ours) or Hugging Face's; None for JSON of another kind."""
    source = f"{file.name} beside it"
    own = config.get("model_cfg", config)
    if "embed_dim" in own and "vision_cfg" in own:
        vision, text = own["vision_cfg"], own.get("text_cfg", {})
        heads = None
        if isinstance(vision.get("layers"), int):
            heads = vision.get("width", 768) // vision.get("head_width", 64)
        says = "quick_gelu" in own or "model_cfg" in config  # open_clip's own file leaves out what is False
        activation = (QUICKGELU if own.get("quick_gelu", False) else GELU) if says else ""
        return Description(activation, source if says else "", text_heads=text.get("heads"), vision_heads=heads)
    if config.get("model_type") != "clip" or "vision_config" not in config:
        return None
    towers = [config.get("text_config") or {}, config["vision_config"] or {}]
    # transformers leaves out what has its default: quick_gelu, eps 1e-5, and 8 and 12 heads
    said = [tower.get("hidden_act", "quick_gelu") for tower in towers]
    activation = {"quick_gelu": QUICKGELU, "gelu": GELU}.get(said[0])
    if said[0] != said[1] or activation is None:
        raise ValueError(
            f"{file}: hidden_act is {said[0]} of the text and {said[1]} of the image tower; one of quick_gelu, gelu is known"
        )
    eps = {tower.get("layer_norm_eps", 1e-5) for tower in towers}
    if eps != {1e-5}:
        raise ValueError(f"{file}: layer_norm_eps is {', '.join(map(str, sorted(eps)))}, CLIP's is 1e-05")
    return Description(
        activation,
        source,
        text_heads=towers[0].get("num_attention_heads", 8),
        vision_heads=towers[1].get("num_attention_heads", 12),
    )


def openai_model(path: Path) -> str:
    """The name of OpenAI's model whose published file this is, by its SHA-256; "" for any other file."""
    if path.suffix != ".pt" or path.stat().st_size < OPENAI_LEAST:
        return ""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return openai_digests().get(found.hexdigest(), "")


def openai_digests() -> dict[str, str]:
    """SHA-256 of OpenAI's files -> their names, from the addresses that open_clip downloads them from."""
    import open_clip

    addresses = (
        open_clip.get_pretrained_cfg(model, tag).get("url", "")
        for model, tag in open_clip.list_pretrained()
        if tag == "openai"
    )
    matches = (re.search(r"/([0-9a-f]{64})/(.+)\.pt$", address or "") for address in addresses)
    return {match[1]: match[2] for match in matches if match}


def settle(wanted: str, known: Description, source: str, key: str) -> tuple[str, str]:
    """The activation to build with, and who says so.

    Args:
        wanted: the value of ``key``; "" leaves it to the file. known: what the file says. source: the file, for messages.

    Raises:
        ValueError: an unknown value, one that contradicts the file, or nobody says which it is.
    """
    if wanted not in ("", *CHOICES):
        raise ValueError(
            f"{key} is {wanted!r}; choose one of {', '.join(CHOICES)}, or leave it empty where the weights tell"
        )
    if wanted and known.activation and wanted != known.activation:
        raise ValueError(
            f"{key} {wanted} contradicts {source}, which has {known.activation} ({known.source}): leave {key} empty, or give a "
            'JSON model configuration with the keys "weights" and "quick_gelu"'
        )
    if known.activation:
        return known.activation, known.source
    if wanted:
        return wanted, key
    raise ValueError(
        f"{source} does not say which activation its model was trained with, and its tensors cannot: set {key} quickgelu "
        "(OpenAI's weights, what was fine-tuned from them, and open_clip's -quickgelu models) or gelu (open_clip's other models, "
        "such as those on LAION and DataComp)"
    )
