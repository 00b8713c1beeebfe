"""CLIP's byte-pair vocabulary as far as captions need it: lengths, token texts, which pieces form a word."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

#: CLIP's context length
CONTEXT = 77


@functools.lru_cache(maxsize=1)
def tokenizer():
    """open_clip's tokeniser (loaded once)."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def token_count(text: str) -> int:
    """Number of tokens including SOT and EOT, before any truncation."""
    return len(tokenizer().encode(text)) + 2


def token_texts(ids: Sequence[int]) -> list[str]:
    """What each token id stands for; the last piece of a word ends in a space."""
    return [_decode(tokenizer().decoder[int(i)]) for i in ids]


def _decode(piece: str) -> str:
    to_byte = tokenizer().byte_decoder
    text = bytes(to_byte[character] for character in piece.removesuffix("</w>")).decode("utf-8", errors="replace")
    return text + " " if piece.endswith("</w>") else text


@functools.lru_cache(maxsize=1)
def word_ends() -> Tensor:
    """``[vocabulary]`` bool: whether a token id is the last piece of a word."""
    decoder = tokenizer().decoder
    return torch.tensor([decoder[i].endswith("</w>") for i in range(len(decoder))])


def word_index(ids: Tensor) -> Tensor:
    """For every token ``[..., L]`` the number, from 0, of the word that it belongs to."""
    ends = word_ends().to(ids.device)[ids].long()
    return ends.cumsum(-1) - ends
