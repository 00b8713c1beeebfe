"""Files with weights: where a backbone's lie, reading them without executing anything, and their digest.

The loaders of CLIP and BLIP stand above this file; results.json keeps the digest, so that a run with other weights is seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from torch import Tensor

from dassl_prompts.engine import load_checkpoint
from dassl_prompts.engine.checkpoint import require_finite
from dassl_prompts.engine.digest import DIGITS
from dassl_prompts.engine.reading import read_json, read_safetensors, reading
from dassl_prompts.models.layouts import Found, find_clip
from dassl_prompts.models.torchscript import is_torchscript, read_torchscript

#: backbones whose weights come with the package
EMBEDDED = ("open-tiny", "emoji-tiny", "emoji-base")
SAFETENSORS_SUFFIXES = (".safetensors", ".safetensors.xz")
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", *SAFETENSORS_SUFFIXES)
#: numbers that OpenAI's archives carry beside the weights
SCALARS = ("input_resolution", "context_length", "vocab_size")
#: numbers that are read of a tensor, evenly spread
SAMPLE = 1024


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Digest of the names, shapes and a sample of the values of tensors; OpenAI's three numbers do not count.

    Training, rounding and damage change nearly every tensor, so a sample of each tells two backbones apart
    without reading them whole. File format and order do not count: the same weights as .pt and .safetensors
    have one digest.
    """
    found = hashlib.sha256()
    for name in sorted(state.keys() - set(SCALARS)):
        values = state[name].detach().reshape(-1)
        found.update(f"{name} {tuple(state[name].shape)}\n".encode())
        sample = values[:: max(1, -(-values.numel() // SAMPLE))]
        found.update(sample.cpu().float().numpy().tobytes())
    return found.hexdigest()[:DIGITS]


def weights_file(name: str) -> Path | None:
    """The local file with the weights that a backbone's name stands for; None for open_clip's names and random weights."""
    path = Path(name).expanduser()
    if name.endswith(WEIGHT_SUFFIXES):
        return path
    if path.suffix == ".json" and path.is_file():
        weights = read_json(path, dict).get("weights")
        return path.parent / weights if weights else None
    return embedded_weights(name)


def embedded_weights(name: str) -> Path | None:
    """The weights that come with the package, or None for other names.

    Raises:
        FileNotFoundError: an embedded backbone whose file is missing.
    """
    if name not in EMBEDDED:
        return None
    path = Path(str(resources.files("dassl_prompts"))) / "assets" / "models" / f"{name}.safetensors.xz"
    if not path.is_file():
        raise FileNotFoundError(f"the embedded backbone {name} has no weights at {path}: {restore_embedded(path)}")
    return path


def restore_embedded(path: Path) -> str:
    """What to do about a missing or damaged file of an embedded backbone."""
    name = path.name.removesuffix(".safetensors.xz")
    return (
        f"restore it with `git checkout -- dassl_prompts/assets/models/{path.name}` (or install the package again), "
        f"or train it again with `python tools/train_{'open' if name.startswith('open') else 'emoji'}_clip.py {name}`"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A CLIP's tensors under OpenAI's names from a file of any known layout, see :func:`read_clip`."""
    return read_clip(path).state


def read_clip(path: Path) -> Found:
    """The CLIP in a file, without executing pickled code; OpenAI's TorchScript archives are unwrapped.

    Raises:
        FileNotFoundError, ValueError: no such file, or not such a file; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file with weights at {path}")
    remedy = restore_embedded(path) if path.name.removesuffix(".safetensors.xz") in EMBEDDED else ""
    with reading(path, "a file with weights that can be read (damaged or cut short?)", remedy):
        read = read_safetensors if path.name.endswith(SAFETENSORS_SUFFIXES) else read_torch_file
        content = read(path)
    found = find_clip(content, str(path))
    require_finite(found.state, str(path))
    return found


def read_torch_file(path: Path) -> dict:
    """The content of a ``torch.save`` file or the tensors of a TorchScript archive, neither of which is run."""
    return read_torchscript(path) if is_torchscript(path) else load_checkpoint(path)
