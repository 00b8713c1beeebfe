"""TransAgg: transformer fusion with one separator token (Liu et al., BMVC 2023), the baseline of PVLF.

It is PVLF-Shallow with a single prompt and cross-entropy; only the defaults differ.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

from torch import Tensor, nn

from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.pvlf.trainer import DEFAULTS as PVLF_DEFAULTS
from dassl_prompts.trainers.pvlf.trainer import PVLF

DEFAULTS = copy.deepcopy(PVLF_DEFAULTS)
DEFAULTS["FUSION"]["SEPARATOR"] = True
DEFAULTS["PROMPT"] |= {"MODE": "none", "LENGTH": 0, "DEPTH": 0}
DEFAULTS["LOSS"]["NAME"] = "ce"
DEFAULTS["BACKBONE"]["TUNE"] = "text"

#: names in TransAgg's checkpoints -> ours
OFFICIAL_NAMES = (
    (r"^fusion\.layers\.", "head.fusion.layers."),
    (r"^sep_token$", "head.fusion.sep_token"),
    (r"^(combiner_layer|output_layer|weighted_layer)\.", r"head.aggregation.\1."),
)


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.TRANSAGG", DEFAULTS)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors of a TransAgg checkpoint under our names; the rest (towers, momentum towers, queue)
    is left out."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in OFFICIAL_NAMES:
            new, hits = re.subn(pattern, replacement, name)
            if hits:
                renamed[new] = tensor
    return renamed


@register_trainer
class TransAgg(PVLF):
    """TransAgg: transformer fusion with one separator token, for composed image retrieval.

    See :class:`~dassl_prompts.trainers.pvlf.trainer.PVLF`.
    """

    config_node = "TRANSAGG"
    reading_keys = tuple(f"TRAINER.TRANSAGG.{key}" for key in PVLF.reading_leaves)

    def load_learned_state(self, name: str, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Also takes the head of an official checkpoint, whose backbone has to be untuned.

        Raises:
            ValueError: an official checkpoint with BACKBONE.TUNE text or both.
        """
        if "sep_token" in state:
            if self.encoder.tuning != "none":
                raise ValueError(
                    "official TransAgg checkpoints are read for BACKBONE.TUNE none only: their tuned towers have the names of "
                    "the original BLIP and CLIP code"
                )
            state = from_official(state)
        super().load_learned_state(name, module, state)
