"""The evaluation protocols of the CoOp line of work, and which recipe each method uses in them.

A protocol turns a :class:`Job` into steps and, once they are finished, into table rows. Folder names follow
CoOp's scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dassl_prompts.configs.own_data import config_name, data_name, with_captions
from dassl_prompts.run.aggregation import aggregation
from dassl_prompts.run.distillation import TEACHER_DIR, has_own_teacher, teacher_job, unlabelled
from dassl_prompts.run.job import Job, eval_step, stage1_recipe, subsample, train_step
from dassl_prompts.run.steps import Step
from dassl_prompts.run.tables import harmonic_mean

XD_TARGETS = (
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
DG_TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
#: what `--task unknown` adds to the base-to-new table: test pictures against base and new classes together
UNION_COLUMNS = {"base": "Base in all", "new": "New in all", "hm": "HM in all", "area": "area"}
EMOJI_STYLES = ("emoji_noto", "emoji_twemoji", "emoji_openmoji")


def accuracy(step: Step) -> float:
    """Test accuracy of a finished step, in percent."""
    return step.results()["test"]["accuracy"]


def is_zero_shot(job: Job) -> bool:
    return job.trainer.startswith("Zeroshot")


def is_dpc(job: Job) -> bool:
    return job.trainer.startswith("DPC_")


# -- training, with what a method needs before it ------------------------------------------------------------


def stage1(job: Job, protocol: str = "base2new") -> Job:
    """The backbone's job that a DPC job builds on; its recipe, not the job's own settings."""
    trainer = job.trainer.removeprefix("DPC_")
    return replace(job, trainer=trainer, cfg=stage1_recipe(trainer, job.dataset, protocol, job.cfg), tag="", opts=())


def train_folder(job: Job, protocol: str, which: str) -> Path:
    """Run folder of a trained job; PromptKD distils on all classes whichever are asked for."""
    which = "all" if job.trainer == "PromptKD" else which
    return job.output / protocol / f"train_{which}" / job.folder


def teacher_opts(job: Job, protocol: str, which: str) -> tuple[str, ...]:
    """The teacher's folder, for PromptKD and what is built on it."""
    if not job.trainer.endswith("PromptKD") or has_own_teacher(job):
        return ()
    return TEACHER_DIR, str(train_folder(teacher_job(job), protocol, which))


def teaching(job: Job, protocol: str, which: str) -> list[Step]:
    """Training of PromptKD's teacher, unless the command line names one."""
    return [] if has_own_teacher(job) else training(teacher_job(job), protocol, which)


def training(job: Job, protocol: str, which: str) -> list[Step]:
    """Steps that end with ``job`` trained on base or all classes; its own test is part of the last one."""
    title = f"{job.trainer} on {job.data_name} ({which} classes), {job.shots} shots, seed {job.seed}: train"
    output = train_folder(job, protocol, which)
    if is_zero_shot(job):
        return []
    if job.trainer == "PromptKD":
        opts = (*subsample("all"), *unlabelled(job), *teacher_opts(job, protocol, which))
        return [
            *teaching(job, protocol, which),
            train_step(job, title.replace("train", "distil"), output, *opts),
        ]
    if is_dpc(job):
        first = training(stage1(job, protocol), protocol, which)
        ckpt = ("TRAINER.DPC.CKPT_DIR", str(first[-1].output))
        opts = (*subsample(which), *ckpt, *teacher_opts(job, protocol, which))
        return [*first, train_step(job, f"{title} stage 2", output, *opts)]
    return [train_step(job, title, output, *subsample(which), *aggregation(job, protocol))]


def test_step(job: Job, protocol: str, which: str, trained_on: str, target: str = "") -> Step:
    """Evaluate the trained ``job`` on a class subset of its own or another dataset."""
    model = None if is_zero_shot(job) else train_folder(job, protocol, trained_on)
    output = job.output / protocol / f"test_{which}" / (data_name(target) or ".") / job.folder
    title = f"{job.trainer} on {data_name(target) or job.data_name}, {job.shots} shots, seed {job.seed}: test {which} classes"
    return eval_step(
        job, title, output, model, *subsample(which), *teacher_opts(job, protocol, trained_on), dataset=target
    )


def refuse_class_specific(job: Job, protocol: str, what: str) -> None:
    """Refuse what cannot be tested on other classes than its own before it is trained.

    Raises:
        ValueError: names the key.
    """
    from dassl_prompts.classification.trainer import ClassificationTrainer
    from dassl_prompts.engine import TRAINER_REGISTRY

    if job.trainer not in TRAINER_REGISTRY.registered_names():  # told with the known names where it is built
        return
    trainer = TRAINER_REGISTRY.get(job.trainer)
    if not issubclass(trainer, ClassificationTrainer) or is_zero_shot(job):
        return
    try:
        cfg = training(job, protocol, "base")[-1].config()
    except (ValueError, OSError):  # told with all that would keep a run from starting
        return
    setting = trainer.class_specific(cfg)
    if setting:
        raise ValueError(
            f"{setting} gives every class a context of its own, so {protocol} cannot test it on {what}: leave it out, or choose "
            "the protocol fewshot"
        )


# -- base-to-new ---------------------------------------------------------------------------------------------


def base_step(job: Job) -> Step:
    """The step whose result is the accuracy on base classes."""
    if is_zero_shot(job) or job.trainer == "PromptKD":
        return test_step(job, "base2new", "base", "base")
    return training(job, "base2new", "base")[-1]


def new_step(job: Job) -> Step:
    return test_step(job, "base2new", "new", "base")


def union_step(job: Job) -> Step:
    """The step that tests pictures of base and of new classes against all classes together."""
    model = None if is_zero_shot(job) else train_folder(job, "base2new", "base")
    title = f"{job.trainer} on {job.data_name}, {job.shots} shots, seed {job.seed}: test base and new classes together"
    task = ("TRAINER.DPC.TASK", "union") if is_dpc(job) else ()
    opts = (*subsample("all"), "TEST.EVALUATOR", "Union", *task, *teacher_opts(job, "base2new", "base"))
    return eval_step(job, title, job.output / "base2new" / "test_union" / job.folder, model, *opts)


def compared(job: Job, protocol: str = "base2new") -> list[Job]:
    """The methods in a job's table: DPC stands beside its backbone."""
    return [stage1(job, protocol), job] if is_dpc(job) else [job]


def base2new(job: Job) -> list[Step]:
    """Train on base classes, test on base and, separately, on new classes; with task unknown also on both together."""
    job = job.recipe("base2new")
    refuse_class_specific(job, "base2new", "new classes")
    steps: list[Step] = []
    for method in compared(job):
        union = [union_step(method)] if job.task == "unknown" else []
        for step in (*training(method, "base2new", "base"), base_step(method), new_step(method), *union):
            if step not in steps:
                steps.append(step)
    return steps


def base2new_rows(job: Job) -> list[dict]:
    """Base, New and HM in percent; for DPC also its backbone's."""
    job = job.recipe("base2new")
    rows = []
    for method in compared(job):
        base, new = accuracy(base_step(method)), accuracy(new_step(method))
        row = {"method": method.trainer, "Base": base, "New": new, "HM": harmonic_mean(base, new)}
        if job.task == "unknown":
            found = union_step(method).results()["test"]
            row |= {column: found[key] for key, column in UNION_COLUMNS.items()}
        rows.append(row)
    return rows


# -- few-shot, cross-dataset, domain generalisation ----------------------------------------------------------


def fewshot(job: Job) -> list[Step]:
    """Train on all classes, test on all classes."""
    job = job.recipe("fewshot")
    if job.trainer.endswith("PromptKD"):
        raise ValueError(
            f"PromptKD distils on unlabelled images, {job.trainer} has no few-shot protocol: choose base2new or xd"
        )
    return [test_step(job, "fewshot", "all", "all")] if is_zero_shot(job) else training(job, "fewshot", "all")


def fewshot_rows(job: Job) -> list[dict]:
    return [
        {
            "method": job.trainer,
            "dataset": job.dataset,
            "shots": job.shots,
            "accuracy": accuracy(fewshot(job)[-1]),
        }
    ]


def transfer_tests(job: Job, targets: tuple[str, ...]) -> list[Step]:
    """The steps whose results are the accuracies on the source and on the targets."""
    if job.trainer == "PromptKD":  # transductive: distilled anew on every target, by the teacher of the source
        taught = (*teacher_opts(job, "transfer", "all"), "TRAINER.MODAL", "cross")
        students = [replace(job, dataset=name) for name in (job.dataset, *targets)]
        return [
            train_step(
                s,
                f"{s.trainer} on {s.data_name} by the teacher of {job.data_name}, seed {s.seed}: distil",
                train_folder(s, "transfer", "all"),
                *subsample("all"),
                *unlabelled(s),
                *taught,
            )
            for s in students
        ]
    if job.trainer == "DPC_PromptKD":
        raise ValueError("PromptKD is distilled on every target, which leaves DPC_PromptKD no cross-dataset protocol")
    source = test_step(job, "transfer", "all", "all") if is_zero_shot(job) else training(job, "transfer", "all")[-1]
    return [source, *(test_step(job, "transfer", "all", "all", target=name) for name in targets)]


def transfer(job: Job, targets: tuple[str, ...]) -> list[Step]:
    """Train on the source with all classes, test on every target; for DPC with its backbone's tests."""
    steps: list[Step] = []
    for method in compared(job, "transfer"):
        before = teaching if method.trainer == "PromptKD" else training
        for step in (*before(method, "transfer", "all"), *transfer_tests(method, targets)):
            if step not in steps:
                steps.append(step)
    return steps


def transfer_rows(job: Job, targets: tuple[str, ...]) -> list[dict]:
    """A row per method: the source, every target, and the mean over targets."""
    rows = []
    for method in compared(job, "transfer"):
        values = [accuracy(step) for step in transfer_tests(method, targets)]
        row = {"method": method.trainer, f"{job.data_name} (source)": values[0], **dict(zip(targets, values[1:]))}
        rows.append({**row, "mean of targets": sum(values[1:]) / len(values[1:])})
    return rows


def xd_targets(job: Job) -> tuple[str, ...]:
    return job.targets or (EMOJI_STYLES if config_name(job.dataset).startswith("emoji") else XD_TARGETS)


def dg_targets(job: Job) -> tuple[str, ...]:
    return job.targets or (EMOJI_STYLES if config_name(job.dataset).startswith("emoji") else DG_TARGETS)


def xd(job: Job) -> list[Step]:
    """Cross-dataset transfer: ImageNet to the ten other sets (the emoji set: to the other artists)."""
    job = job.recipe("xd")
    if (
        xd_targets(job) != EMOJI_STYLES
    ):  # the other artists' emoji and ImageNet's variants have the classes of the training
        refuse_class_specific(job, "xd", "the classes of other datasets")
    return transfer(job, xd_targets(job))


def dg(job: Job) -> list[Step]:
    """Domain generalisation: ImageNet to its four variants (the emoji set: to the other artists)."""
    return transfer(job.recipe("dg"), dg_targets(job))


# -- retrieval: run/captions.py and run/composed.py know the runs; here they join the matrix ---------------


def retrieval(job: Job) -> list[Step]:
    """Few-shot image-text retrieval: train on captioned images of a domain, rank both ways."""
    from dassl_prompts.run.captions import METHODS, Runs

    if job.trainer not in METHODS:
        raise ValueError(f"{job.trainer} is no method of image-text retrieval; known: {', '.join(METHODS)}")
    domain = with_captions(job.dataset).removeprefix("fdrd_")
    opts = (*job.common, *job.own_options, *job.opts)
    runs = Runs(domain, job.shots, job.cfg, job.root, job.output, opts, job.epochs, job.imports)
    return [runs.step(job.trainer, job.seed, job.tag)]


def composed(job: Job) -> list[Step]:
    """Composed image retrieval: train on triplets and evaluate, or only evaluate the baselines."""
    from dassl_prompts.run.composed import ALL_NODES, BASELINE, DATASETS, Plan

    for value, known, what in (
        (job.trainer, tuple(ALL_NODES), "method"),
        (job.dataset, tuple(DATASETS), "training set"),
    ):
        if value not in known:
            raise ValueError(f"{value} is no {what} of composed retrieval; known: {', '.join(known)}")
    tag, opts = job.tag, (*job.common, *job.opts)
    if job.epochs and job.trainer != BASELINE:
        tag, opts = "_".join(filter(None, (f"epochs{job.epochs}", tag))), ("OPTIM.MAX_EPOCH", str(job.epochs), *opts)
    runs = Plan(job.dataset, job.cfg or "blip", job.root, job.output, tag, opts)
    step = runs.baselines() if job.trainer == BASELINE else runs.train(job.trainer, job.seed)
    return [replace(step, args=(*(word for module in job.imports for word in ("--import", module)), *step.args))]


@dataclass(frozen=True)
class Protocol:
    """How to run a job.

    Attributes:
        steps: the runs of a job. rows: what one job measured, a row per method, for the ablations of a study; None where there
        are none. Tables over seeds are the report's.
    """

    steps: Callable[[Job], list[Step]]
    rows: Callable[[Job], list[dict]] | None
    help: str


PROTOCOLS = {
    "base2new": Protocol(base2new, base2new_rows, "train on base classes, test base and new classes"),
    "fewshot": Protocol(fewshot, fewshot_rows, "train and test on all classes"),
    "xd": Protocol(
        xd,
        lambda job: transfer_rows(job.recipe("xd"), xd_targets(job)),
        "train on the source, test on ten other datasets",
    ),
    "dg": Protocol(
        dg,
        lambda job: transfer_rows(job.recipe("dg"), dg_targets(job)),
        "train on the source, test on shifted versions of it",
    ),
    "retrieval": Protocol(
        retrieval,
        None,
        "image-text retrieval, e.g. --trainer DCAR --dataset fdrd_dtd or fdrd_emoji",
    ),
    "composed": Protocol(composed, None, "composed retrieval, e.g. --trainer PVLF --dataset laion_combined or emoji"),
}
