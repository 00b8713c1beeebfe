"""The embedded emoji as something to search: the gallery and the questions of ``EmojiCIR``'s test concepts."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from dassl_prompts.composed.asked_models import load_model, transform_of
from dassl_prompts.composed.index_table import start_of
from dassl_prompts.composed.index_update import update_index
from dassl_prompts.composed.triplets import RetrievalTask
from dassl_prompts.images import split_member

MODEL = {"backbone": "emoji-tiny", "query": "image+text"}


def task() -> RetrievalTask:
    """Questions about test concepts in the style that the backbone has not seen, each with its answer."""
    from dassl_prompts.datasets.emoji_cir import EmojiCIR

    return EmojiCIR(None).tasks("val")[0]


def default_place() -> Path:
    """Where the index of the emoji lies unless somebody says otherwise: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "dassl_prompts" / "demo" / "emoji"


def make_index(folder: Path) -> dict[tuple[str, str], list[str]]:
    """The index of the gallery, made or brought up to date in ``folder``.

    Returns:
        by reference and text of a question the right answers, all as the index shows them.
    """
    questions = task()
    archives: dict[str, list[str]] = {}
    for path in questions.gallery.values():
        archive, member = split_member(path)
        archives.setdefault(start_of(archive), []).append(member)
    encoder, _, ratio = load_model(MODEL)
    index, _ = update_index(
        folder,
        archives,
        torch.no_grad()(encoder.image_features),
        transform_of(encoder, ratio),
        weights=encoder.image_fingerprint(),
        width=encoder.width,
        model=MODEL,
    )
    shown = {name: index.table.shown(index.table.find(path)) for name, path in questions.gallery.items()}
    targets: dict[tuple[str, str], list[str]] = {}
    for query in questions.queries:
        for text in query.texts:
            targets.setdefault((shown[query.reference], text), []).extend(shown[name] for name in query.answers)
    return targets
