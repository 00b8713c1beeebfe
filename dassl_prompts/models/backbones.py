"""What a backbone's name stands for, CLIP or BLIP: its token encoder, and the digest of its weights at present."""

from __future__ import annotations

from pathlib import Path

from dassl_prompts import models
from dassl_prompts.models.blip import is_blip, load_blip
from dassl_prompts.models.clip_tokens import ClipTokens
from dassl_prompts.models.tokens import TokenEncoder
from dassl_prompts.models.weights import read_state_dict, weights_digest, weights_file


def digest_now(name: str) -> str:
    """Digest of the weights that a backbone's name stands for at present, without building a CLIP.

    Returns:
        "" for names whose weights their publisher fixes (open_clip's and Hugging Face's), and for random ones.

    Raises:
        FileNotFoundError, ValueError: the file is not there or damaged.
    """
    if is_blip(name):
        return load_blip(name).digest if Path(name).is_dir() else ""
    file = weights_file(name)
    if file is None:
        return ""
    return weights_digest(read_state_dict(file))


def load_token_encoder(
    name: str, device="cpu", text_dropout: float = 0.1, activation: str = "", **names
) -> TokenEncoder:
    """The backbone called ``name`` in fp32: a BLIP folder or hub name (contains "blip"), else a CLIP as
    ``load_clip`` knows it.

    Raises:
        ValueError, FileNotFoundError: it cannot be found or is not what it should be; says what to do.
    """
    if is_blip(name):
        if activation:
            raise ValueError(f"the activation {activation} is about CLIP's weight files, but {name} is a BLIP")
        return load_blip(name, text_dropout=text_dropout).to(device)
    clip = models.load_clip(name, precision="fp32", device=device, activation=activation, **names)
    return ClipTokens(clip).to(device)
