"""What per-image prompts cost: text token-passes, wall clock of evaluation and training, share of k-means.

    python benchmarks/attriprompt.py [--device cuda] [--images 4] [--write]     --write renews docs/benchmarks/attriprompt.md

Random weights of ViT-B/16, the first 50 class names of Caltech101, and whatever else the tables name. A *token-pass* is one
token through one block of the text tower, counted by hooks on the blocks' MLPs while the model runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from methods import NOUNS
from yacs.config import CfgNode

from dassl_prompts.models import build_clip
from dassl_prompts.models.prompted import normalize
from dassl_prompts.trainers.attriprompt import AttriPromptModel, extend_cfg

DOC = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "attriprompt.md"
VIT_B16 = {
    "embed_dim": 512, "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}  # fmt: skip
#: name -> switches of the text pass
PATHS = {
    "77 tokens": {"SHARE_PREFIX": False, "TRIM": False, "MEMO": False},
    "trimmed": {"SHARE_PREFIX": False, "TRIM": True, "MEMO": False},
    "shared prefix": {"SHARE_PREFIX": True, "TRIM": True, "MEMO": False},
}
