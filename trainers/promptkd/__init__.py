"""PromptKD (CVPR 2024): a student's prompts learn a prompt-tuned teacher's answers on unlabelled images."""

from dassl_prompts.trainers.promptkd.trainer import PromptKD, PromptKDModel, extend_cfg

__all__ = ["PromptKD", "PromptKDModel", "extend_cfg"]
