"""Composed retrieval on the embedded emoji data: training triplets and CIRR-style queries, nothing to
download."""

from __future__ import annotations

from dassl_prompts.composed.triplets import RetrievalTask, Triplet, TripletDataset, extend_cfg  # noqa: F401
from dassl_prompts.datasets.cirr import read_query
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.retrieval import emoji_cirr, emoji_laion_cir
from dassl_prompts.engine import register_dataset


@register_dataset
class EmojiCIR(TripletDataset):
    """Trains on the training concepts in three styles; ``tasks("val")`` asks test concepts in the fourth,
    unseen style."""

    def __init__(self, cfg):
        self.cfg = cfg
        self.root = ""

    def read_triplets(self) -> list[Triplet]:
        data = emoji_laion_cir()
        paths = data["images"]
        return [
            Triplet(paths[entry["ref_image_id"]], entry["relative_cap"], paths[entry["tgt_image_id"]])
            for entry in data["triplets"]
        ]

    def captions(self) -> list[str]:
        """Of the training pictures: training concepts in the three styles that the triplets show."""
        seen = [style for style in emoji.STYLES if style != emoji.HELD_OUT]
        return [emoji.caption(p) for style in seen for p in emoji.pictures(style, splits=("train",))]

    def tasks(self, split: str = "val") -> list[RetrievalTask]:
        data = emoji_cirr(split)
        queries = [read_query(entry) for entry in data["captions"]]
        return [RetrievalTask(f"EmojiCIR {split}", "cirr", data["image_splits"], queries, remove_reference=True)]
