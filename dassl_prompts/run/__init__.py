"""Protocols (base-to-new, cross-dataset, ...) as chains of training and evaluation runs."""

from dassl_prompts.run.job import Job
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.run.steps import Step, execute

__all__ = ["Job", "PROTOCOLS", "Step", "execute"]
