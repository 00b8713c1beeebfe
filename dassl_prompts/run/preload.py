"""What every run imports, imported once by the fork server of :mod:`dassl_prompts.run.warm`."""

import shutil

import open_clip
import safetensors.torch
import torch

import dassl_prompts
import dassl_prompts.train
from dassl_prompts.engine import collect_env_info

dassl_prompts.register_all("replace")
if shutil.which("nvidia-smi") is None:  # with a GPU this would ask CUDA, which a forked process could then not use
    collect_env_info()  # asks many programs of the machine; kept for the runs

__all__ = ["dassl_prompts", "open_clip", "safetensors", "torch"]
