"""Embedded data `emoji`: the same concepts drawn by four artists (docs/emoji.md). It needs no DATASET.ROOT."""

from __future__ import annotations

from dassl_prompts.classification.splits import few_shot, subsample_classes
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.splits import read_splits
from dassl_prompts.engine import DatasetBase, register_dataset
from dassl_prompts.engine.digest import digests_of_lists


@register_dataset
class Emoji(DatasetBase):
    """35 classes of emoji in the style that the embedded backbones have not seen (Fluent).

    Raises:
        EmojiDataError: an archive is missing, damaged or of another version; says how to restore it.
    """

    style = emoji.HELD_OUT

    def __init__(self, cfg):
        train, val, test = splits = read_splits(self.style)
        self.digests = digests_of_lists(splits, emoji.ASSETS)
        train, val = few_shot(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED, emoji.ASSETS)
        subsample = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        train, val, test = subsample_classes(train, val, test, subsample=subsample)
        super().__init__(train_x=train, val=val or None, test=test)


@register_dataset
class EmojiNoto(Emoji):
    """The same classes and concepts drawn by Google: a target of domain generalisation."""

    style = "noto"


@register_dataset
class EmojiTwemoji(Emoji):
    """The same classes and concepts drawn by Twitter: a target of domain generalisation."""

    style = "twemoji"


@register_dataset
class EmojiOpenMoji(Emoji):
    """The same classes and concepts drawn by OpenMoji: a target of domain generalisation."""

    style = "openmoji"
