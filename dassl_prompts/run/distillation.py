"""PromptKD's chains of runs: a teacher first, then distillation on unlabelled images.

The teacher is PromptSRC on a larger CLIP. Base-to-new distils once, on all classes, and scores base and new classes apart;
cross-dataset distils on every target with the teacher of the source.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dassl_prompts.run.job import Job, eval_step, subsample, train_step
from dassl_prompts.run.steps import Step

TEACHER_RECIPE = {"emoji": "emoji_base", "*": "vit_l14_c2_ep20_batch8_4+4ctx"}
#: KD_WEIGHT that the authors give for some datasets instead of 1000.0
KD_WEIGHT = {"fgvc_aircraft": "200.0", "oxford_flowers": "200.0", "dtd": "200.0"}


def teacher_job(job: Job) -> Job:
    """The PromptSRC run that teaches ``job``; shared by all its variants."""
    cfg = TEACHER_RECIPE["emoji" if job.dataset.startswith("emoji") else "*"]
    return replace(job, trainer="PromptSRC", cfg=cfg, tag="", opts=())


def has_own_teacher(job: Job) -> bool:
    """Whether the command line names a teacher."""
    return "TRAINER.PROMPTKD.TEACHER_DIR" in job.opts


def teacher_steps(job: Job, protocol: str) -> list[Step]:
    """Training of the teacher: on the base classes for base-to-new, on all classes of the source otherwise."""
    if has_own_teacher(job):
        return []
    teacher = teacher_job(job)
    title = f"PromptSRC teacher on {job.dataset}, seed {job.seed}"
    classes = "base" if protocol == "base2new" else "all"
    return [train_step(teacher, title, teacher_dir(job, protocol), *subsample(classes))]


def teacher_dir(job: Job, protocol: str) -> Path:
    """Run folder of the teacher; for base-to-new the one that PromptSRC's own base-to-new run writes."""
    return job.output / protocol / ("train_base" if protocol == "base2new" else "train") / teacher_job(job).folder


def teacher_opts(job: Job, protocol: str = "base2new") -> tuple[str, ...]:
    """Options of every run that needs the teacher."""
    if job.trainer != "PromptKD" or has_own_teacher(job):
        return ()
    return "TRAINER.PROMPTKD.TEACHER_DIR", str(teacher_dir(job, protocol))


def unlabelled(job: Job, dataset: str = "") -> tuple[str, ...]:
    """Options of a distillation run: the whole training split, and the dataset's weight of the loss."""
    weight = KD_WEIGHT.get(dataset or job.dataset)
    return "DATASET.NUM_SHOTS", "0", *(("TRAINER.PROMPTKD.KD_WEIGHT", weight) if weight else ())


def distilled_dir(job: Job) -> Path:
    """Run folder of the base-to-new student."""
    return job.output / "base2new" / "train_all" / job.folder


def distill_base2new(job: Job, name: str) -> list[Step]:
    """Teacher on base classes, student on all unlabelled images, both evaluations (the last two steps)."""
    student, opts = distilled_dir(job), teacher_opts(job)
    given = replace(job, opts=(*unlabelled(job), *job.opts))
    root = job.output / "base2new"
    return [
        *teacher_steps(job, "base2new"),
        train_step(given, f"{name}: distil on unlabelled images of all classes", student, *subsample("all"), *opts),
        eval_step(given, f"{name}: test base classes", root / "test_base" / job.folder, student, *subsample("base"), *opts),
        eval_step(given, f"{name}: test new classes", root / "test_new" / job.folder, student, *subsample("new"), *opts),
    ]


def distill_targets(protocol: str, job: Job, targets: tuple[str, ...]) -> list[Step]:
    """Teacher on all classes of the source, then a student for every target, distilled on its unlabelled images."""
    opts = (*teacher_opts(job, protocol), "TRAINER.MODAL", "cross")
    steps = teacher_steps(job, protocol)
    for dataset in targets:
        given = replace(job, opts=(*unlabelled(job, dataset), *job.opts))
        output = job.output / protocol / "test" / dataset / job.folder
        title = f"PromptKD with the teacher of {job.dataset}, seed {job.seed}: distil on {dataset} and test it"
        steps.append(train_step(given, title, output, *opts, dataset=dataset))
    return steps
