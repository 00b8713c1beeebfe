"""Captioned images: the record, and the data set that a loader of a retrieval method reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dassl_prompts.engine import Datum
from dassl_prompts.engine.loading import PromptDatasetWrapper


class CaptionDatum(Datum):
    """One image with one caption.

    Args:
        impath, label, domain, classname: as in ``Datum``.
        caption: the positive caption.
        negatives: captions that do not describe the image (already without the positive and without
            repetitions).
        key: name of the record in its annotation file.
    """

    def __init__(
        self,
        impath="",
        label=0,
        domain=0,
        classname="",
        *,
        caption: str,
        negatives: Sequence[str] = (),
        key: str = "",
    ):
        super().__init__(impath=impath, label=label, domain=domain, classname=classname)
        if not caption.strip():
            raise ValueError(f"{impath}: the caption is empty")
        if caption in negatives:
            raise ValueError(f"{impath}: a negative caption equals the positive one: {caption!r}")
        self._caption = caption
        self._negatives = tuple(negatives)
        self._key = key

    @property
    def caption(self) -> str:
        return self._caption

    @property
    def negatives(self) -> tuple[str, ...]:
        return self._negatives

    @property
    def key(self) -> str:
        return self._key


class CaptionWrapper(PromptDatasetWrapper):
    """``PromptDatasetWrapper`` whose items also carry the caption: ``caption``, its index, and ``tokens``,
    its ids ``[77]``.

    With :attr:`load_images` False an item has no ``img``: for methods that train on features computed once.
    Where an unreadable image is replaced, the caption is that of the replacement, so pairs stay pairs.
    """

    #: token ids ``[N, 77]`` of the captions, set by the trainer, which knows the tokeniser and the prompt
    #: slots
    tokens: Tensor | None = None
    load_images = True

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = super().__getitem__(idx) if self.load_images else {"label": self.data_source[idx].label, "index": idx}
        item["caption"] = item["index"]
        if self.tokens is not None:
            item["tokens"] = self.tokens[item["index"]]
        return item
