"""DCAR (2025): image-text retrieval with token weights from category and attribute differences, on FDRD."""

from dassl_prompts.trainers.dcar.trainer import DCAR, DCARModel, extend_cfg

__all__ = ["DCAR", "DCARModel", "extend_cfg"]
