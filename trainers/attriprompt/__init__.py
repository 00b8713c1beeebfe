"""AttriPrompt (2025): text prompts composed per image from clustered visual attributes."""

from dassl_prompts.trainers.attriprompt.model import AttriPromptModel
from dassl_prompts.trainers.attriprompt.trainer import AttriPrompt, extend_cfg

__all__ = ["AttriPrompt", "AttriPromptModel", "extend_cfg"]
