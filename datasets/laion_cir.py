"""Laion-CIR: automatically built training triplets (TransAgg, BMVC 2023). No evaluation split.

``laion_template_info.json`` (a list) and ``laion_llm_info.json`` (keyed by reference), 16,000 triplets each;
``images/<id>.png`` with seven-digit ids. "combined" is their concatenation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from dassl_prompts.composed.triplets import ImageFolder, Triplet, TripletDataset, extend_cfg  # noqa: F401
from dassl_prompts.engine import read_json, register_dataset

FILES = {"template": "laion_template_info.json", "llm": "laion_llm_info.json"}
SETS = {"template": ["template"], "llm": ["llm"], "combined": ["template", "llm"]}


@register_dataset
class LaionCIR(TripletDataset):
    """Training triplets of ``CIR.LAION_SET``."""

    folders = ("laion_cir", "laion-cir", "Laion-CIR", ".")

    def __init__(self, cfg):
        if cfg.CIR.LAION_SET not in SETS:
            raise ValueError(f"CIR.LAION_SET is {cfg.CIR.LAION_SET!r}; choose one of {', '.join(SETS)}")
        self.files = [FILES[name] for name in SETS[cfg.CIR.LAION_SET]]
        self.marker = self.files[0]
        super().__init__(cfg)

    def read_triplets(self) -> list[Triplet]:
        folders = self.image_folders("images", "laion_cir_images")
        images = ImageFolder(self.find_images(folders, ["."], "the images"))
        return [
            Triplet(images.path(reference), caption, images.path(target))
            for file in self.files
            for reference, caption, target in read_info(os.path.join(self.annotations, file))
        ]

    def captions(self) -> list[str]:
        """The target captions, which the LLM's file has."""
        if FILES["llm"] not in self.files:
            return super().captions()
        return [entry["tgt_cap"] for entry in self.read(FILES["llm"]).values()]


def read_info(path: str) -> Iterator[tuple[str, str, str]]:
    """``(reference id, caption, target id)`` of either file format; ids become seven-digit names (some are
    numbers in the file).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has another structure.
    """
    content = read_json(path)
    if isinstance(content, dict):
        content = [{"ref_image_id": reference, **entry} for reference, entry in content.items()]
    try:
        for entry in content:
            yield (
                str(entry["ref_image_id"]).zfill(7),
                entry["relative_cap"],
                str(entry["tgt_image_id"]).zfill(7),
            )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a Laion-CIR file (Template: list, LLM: dictionary of entries): {error!r}"
        ) from error
