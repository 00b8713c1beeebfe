"""What PromptKD's runs need besides their own recipe: a teacher, and settings that depend on the dataset.

The teacher is PromptSRC on a larger CLIP (on the embedded data on the student's own). The student is distilled on unlabelled
images of all classes of a dataset.
"""

from __future__ import annotations

from dataclasses import replace

from dassl_prompts.configs.own_data import config_name
from dassl_prompts.configs.recipes import embedded_recipe
from dassl_prompts.run.job import Job

TEACHER_RECIPE = "vit_l14_c2_ep20_batch8_4+4ctx"
#: KD_WEIGHT that the authors give for some datasets instead of 1000.0
KD_WEIGHT = {"fgvc_aircraft": "200.0", "oxford_flowers": "200.0", "dtd": "200.0"}
TEACHER_DIR = "TRAINER.PROMPTKD.TEACHER_DIR"


def teacher_job(job: Job) -> Job:
    """The PromptSRC run that teaches ``job``; shared by all its variants."""
    cfg = embedded_recipe(job.dataset, job.cfg) or TEACHER_RECIPE
    return replace(job, trainer="PromptSRC", cfg=cfg, tag="", opts=(), epochs=0)


def has_own_teacher(job: Job) -> bool:
    """Whether the command line names a teacher."""
    return TEACHER_DIR in (*job.opts, *job.common)


def unlabelled(job: Job) -> tuple[str, ...]:
    """Options of a distillation run: the whole training split, and the dataset's weight of the loss."""
    weight = KD_WEIGHT.get(config_name(job.dataset))
    return "DATASET.NUM_SHOTS", "0", *(("TRAINER.PROMPTKD.KD_WEIGHT", weight) if weight else ())
