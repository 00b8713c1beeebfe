"""DPC (CVPR 2025): a second prompt, tuned for the base classes, beside the backbone's own, which new classes keep."""

from dassl_prompts.trainers.dpc.combinations import DPC_IVLP, DPC_CoOp, DPC_MaPLe, DPC_PromptKD, DPC_PromptSRC
from dassl_prompts.trainers.dpc.settings import extend_cfg
from dassl_prompts.trainers.dpc.stage2 import DPC

__all__ = ["DPC", "DPC_CoOp", "DPC_IVLP", "DPC_MaPLe", "DPC_PromptKD", "DPC_PromptSRC", "extend_cfg"]
