"""Protocols (base-to-new, cross-dataset, ...) as chains of training and evaluation runs."""

from dassl_prompts.run.execute import execute
from dassl_prompts.run.job import Job
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.run.steps import Step

__all__ = ["Job", "PROTOCOLS", "Step", "execute"]
