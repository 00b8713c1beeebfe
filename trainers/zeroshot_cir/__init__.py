"""Composed retrieval without training: image, text, their sum, and a pseudo word from a textual-inversion network."""

from dassl_prompts.trainers.zeroshot_cir.trainer import ZeroshotCIR, extend_cfg

__all__ = ["ZeroshotCIR", "extend_cfg"]
