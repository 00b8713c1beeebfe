"""Whether a backbone's weights can be had, without loading or downloading them: asked before the first run of a plan starts."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from dassl_prompts.models.blip import HUB_NAMES, is_blip
from dassl_prompts.models.clip import named_config, open_clip_weights
from dassl_prompts.models.weights import embedded_weights, weights_file

#: seconds that a server has to answer whether it has the file
PATIENCE = 10.0
#: what open_clip and transformers look for in a repository of the hub
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")


def weights_problem(name: str) -> str:
    """Why the weights of the backbone called ``name`` cannot be had; "" if they are here, or a server has them.

    Files of the user's are not read: only that they are there is looked at.
    """
    try:
        if is_blip(name):
            return "" if Path(name).is_dir() else hub_problem(name, HUB_NAMES.get(name, name), HUB_FILES)
        file = weights_file(name)
        if file is not None:
            return "" if file.is_file() else f"no file with weights at {file}"
        if name.endswith(".json"):
            return "" if Path(name).expanduser().is_file() else f"no model configuration {name}"
        if embedded_weights(name) is None:
            named_config(name.partition(":")[0])
            return open_clip_problem(name)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def open_clip_problem(name: str) -> str:
    import open_clip

    record = open_clip.get_pretrained_cfg(*open_clip_weights(name)) or {}
    if record.get("file"):
        return "" if os.path.isfile(record["file"]) else f"{name}: no file with weights at {record['file']}"
    repository, _, file = record.get("hf_hub", "").rpartition("/")
    if repository:
        safe = [str(Path(file).with_suffix(".safetensors"))] if file else []
        return hub_problem(name, repository, [*safe, file] if file else HUB_FILES)
    url = record.get("url", "")
    cached = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    return "" if cached.is_file() else unreachable(name, [url])


def hub_problem(name: str, repository: str, files) -> str:
    """The same for a repository of the Hugging Face hub; one of ``files`` is enough."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return ""
    if constants.HF_HUB_OFFLINE:
        return f"the weights of {name} are not on this machine and HF_HUB_OFFLINE is set"
    return unreachable(name, [hf_hub_url(repository, file) for file in files])


def unreachable(name: str, urls: list[str]) -> str:
    """ "" if a server has one of the files."""
    said = ""
    for url in urls:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                return ""
        except urllib.error.HTTPError as error:  # it answers: another of the files may be there
            said = f"{url}: {error}"
        except (OSError, ValueError) as error:
            said = f"{url}: {error}"
            break
    return (
        f"the weights of {name} are not on this machine and cannot be downloaded ({said}). Without network, give the file with "
        "the state dict (.pt or .safetensors) as MODEL.BACKBONE.NAME"
    )
