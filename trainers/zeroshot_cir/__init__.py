"""Composed retrieval without triplets: image, text, their sum, and a pseudo word by textual inversion, whose networks Pic2Word
(images alone) and LinCIR (captions alone) train."""

from dassl_prompts.trainers.zeroshot_cir import inversion_trainer, trainer
from dassl_prompts.trainers.zeroshot_cir.inversion_trainer import LinCIR, Pic2Word
from dassl_prompts.trainers.zeroshot_cir.trainer import ZeroshotCIR

__all__ = ["LinCIR", "Pic2Word", "ZeroshotCIR", "extend_cfg"]


def extend_cfg(cfg):
    """Add the nodes of all three."""
    trainer.extend_cfg(cfg)
    inversion_trainer.extend_cfg(cfg)
