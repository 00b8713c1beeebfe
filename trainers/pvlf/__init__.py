"""PVLF (ACML 2024) and TransAgg: composed image retrieval with a small transformer that fuses image and text tokens."""

from dassl_prompts.trainers.pvlf import trainer, transagg
from dassl_prompts.trainers.pvlf.trainer import PVLF
from dassl_prompts.trainers.pvlf.transagg import TransAgg

__all__ = ["PVLF", "TransAgg", "extend_cfg"]


def extend_cfg(cfg):
    """Add the nodes of both methods."""
    trainer.extend_cfg(cfg)
    transagg.extend_cfg(cfg)
