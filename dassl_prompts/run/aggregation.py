"""PromptSRC's Gaussian prompt aggregation in the few-shot protocol, where it depends on the dataset."""

from __future__ import annotations

from dassl_prompts.configs.own_data import config_name
from dassl_prompts.run.job import Job

#: datasets on which the authors' few-shot runs average the last epochs only
LATE = ("stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat")


def aggregation(job: Job, protocol: str) -> tuple[str, ...]:
    """Options of a PromptSRC few-shot run; another recipe than the protocol's speaks for itself."""
    if (
        protocol != "fewshot"
        or job.trainer != "PromptSRC"
        or config_name(job.dataset) not in LATE
        or not job.cfg.endswith("_few_shot")
    ):
        return ()
    return "TRAINER.PROMPTSRC.GPA_MEAN", "45", "TRAINER.PROMPTSRC.GPA_STD", "5"
