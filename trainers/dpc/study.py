"""DPC's studies: the readings of the method, the paper's ablations, accuracy along omega, base and new classes together.

``python -m dassl_prompts.trainers.dpc.study omega --backbone CoOp --dataset emoji --seed 1``
``python -m dassl_prompts.trainers.dpc.study ablation --backbone CoOp --dataset emoji --seed 1 2 3 --common OPTIM.MAX_EPOCH 5``
``python -m dassl_prompts.trainers.dpc.study channels --backbone CoOp --dataset emoji --seed 1 2 3``  order of feature channels
``python -m dassl_prompts.trainers.dpc.study readings --backbone CoOp --dataset emoji --seed 1 2 3``  every preset
``python -m dassl_prompts.trainers.dpc.study short    --backbone CoOp --dataset emoji --seed 1 2 3``  5 + 5 epochs
``python -m dassl_prompts.trainers.dpc.study union    --backbone CoOp --dataset emoji --seed 1 2 3``  the task unknown

Of several data sets (``--dataset emoji icon_park``) every seed's average over them is shown, as the papers do. A trained stage 2
serves every omega and every way of joining scores, so each needs training once and is then only evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from dassl_prompts.classification.union import measure
from dassl_prompts.engine import TRAINER_REGISTRY, DatasetWrapper, build_trainer, build_transform, set_random_seed
from dassl_prompts.run.arguments import add_places
from dassl_prompts.run.execute import execute
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.protocols import (
    UNION_COLUMNS,
    Job,
    accuracy,
    base2new,
    base_step,
    new_step,
    stage1,
    train_folder,
    union_step,
)
from dassl_prompts.run.steps import Step, StepFailed
from dassl_prompts.run.sweep import split_opts
from dassl_prompts.run.tables import harmonic_mean, mean_over_seeds, over_sets, study_text
from dassl_prompts.trainers.dpc import calibration
from dassl_prompts.trainers.dpc.settings import PRESETS

OMEGAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

#: how stage 2 is trained in the rows of the ablation: with cross-entropy on the anchors alone, at the plain rate, both
CROSS_ENTROPY = ("TRAINER.DPC.LOSS.CL_W", "0.0", "TRAINER.DPC.LOSS.CE_W", "1.0")
NO_NEGATIVES = ("TRAINER.DPC.TOPK", "1", "TRAINER.DPC.NEG_MIN_FILL", "0", *CROSS_ENTROPY)
PLAIN = ("TRAINER.DPC.GRAD_SCALE", "1.0", "TRAINER.DPC.TRAIN_FORWARD", "parallel")
TRAININGS = {
    "two_step_plain": (*NO_NEGATIVES, *PLAIN),
    "dhno_plain": PLAIN,
    "two_step": NO_NEGATIVES,
    "dhno": (),
    "dhno_ce": CROSS_ENTROPY,
}


def with_settings(step: Step, model_dir: Path, settings: list[dict], measure: Callable) -> list:
    """``measure(trainer)`` of one trained run on one class subset, under several settings of :class:`DualPrompts`."""
    cfg = step.config().clone()
    cfg.defrost()
    results = []
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        cfg.OUTPUT_DIR = scratch  # the run's own results.json stays as it is
        cfg.freeze()
        set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        trainer.load_model(str(model_dir))
        for values in settings:
            for name, value in values.items():
                setattr(trainer.model, name, value)
            results.append(measure(trainer))
    return results


def evaluate(step: Step, model_dir: Path, settings: list[dict]) -> list[float]:
    """Accuracy under every setting."""
    return with_settings(step, model_dir, settings, lambda trainer: trainer.test())


def trained(job: Job, force: bool) -> tuple[Step, Step]:
    """Run a DPC base-to-new job; returns its base and its new step."""
    execute(base2new(job), force=force, quiet=True)
    job = job.recipe("base2new")
    return base_step(job), new_step(job)


def omega_curve(job: Job, force: bool = False) -> list[dict]:
    """Base accuracy along omega_b and new accuracy along omega_n."""
    base, new = trained(job, force)
    base_curve = evaluate(base, base.output, [{"omega_b": w} for w in OMEGAS])
    new_curve = evaluate(new, base.output, [{"omega_n": w} for w in OMEGAS])
    return [
        {"seed": job.seed, "omega": w, "base at omega_b": b, "new at omega_n": n}
        for w, b, n in zip(OMEGAS, base_curve, new_curve)
    ]


def ablation(job: Job, force: bool = False) -> list[dict]:
    """Rows of the poster's table for one seed, in the reading of the job's preset.

    Weighting is what omega_b 0.2 means there: a step five times as large and all of the move, or a fifth of the plain one.
    Without it the rate is plain and P' scores alone. Without decoupling new classes are scored as base classes are, PromptKD's
    projector included, where weighting gives P' the weight 0.2 in both readings.
    """
    settings = settings_of(job)
    weight, coupled = settings.omega_b, settings.omega_b / settings.grad_scale
    scores = {}
    for name, opts in TRAININGS.items():
        base, new = trained(
            replace(job, tag="_".join(filter(None, (job.tag, opts and name))), opts=job.opts + opts), force
        )
        as_base = [{"task": "base", "omega_b": w} for w in (1.0, weight, coupled)]
        on_base = evaluate(base, base.output, as_base[:2])
        on_new = evaluate(new, base.output, [as_base[0], as_base[2], {"task": "new", "omega_n": 0.0}])
        scores[name] = dict(zip(("all", "weighted"), on_base)), dict(zip(("all", "coupled", "p"), on_new))
    first = stage1(job)
    backbone = accuracy(base_step(first)), accuracy(new_step(first))

    def row(label, training, base_key, new_key):
        base, new = (scores[training][0][base_key], scores[training][1][new_key]) if training else backbone
        values = {"Base": base, "New": new, "HM": harmonic_mean(base, new)}
        return {"seed": job.seed, "row": label, **values}

    return [
        row("0 backbone", None, "", ""),
        row("1 dual prompts only (two-step)", "two_step_plain", "all", "all"),
        row("2 + DHNO", "dhno_plain", "all", "all"),
        row("3 + DHNO + weighting", "dhno", "weighted", "coupled"),
        row("4 two-step + weighting + decoupling", "two_step", "weighted", "p"),
        row("5 DHNO + weighting + decoupling = DPC", "dhno", "weighted", "p"),
        row("6 as 5, cross-entropy for the contrastive loss", "dhno_ce", "weighted", "p"),
    ]


def settings_of(job: Job):
    """The resolved settings of a job's second stage."""
    return TRAINER_REGISTRY.get(job.trainer).settings(base_step(job.recipe("base2new")).config())


def paired(job: Job, label: str, force: bool) -> list[dict]:
    """A backbone and DPC on it: base and new accuracy."""
    base, new = trained(job, force)
    first = stage1(job.recipe("base2new"))
    scores = [(accuracy(base_step(first)), accuracy(new_step(first))), (accuracy(base), accuracy(new))]
    rows = []
    for name, (on_base, on_new) in zip((first.trainer, job.trainer), scores):
        values = {"Base": on_base, "New": on_new, "HM": harmonic_mean(on_base, on_new)}
        rows.append({"seed": job.seed, "row": f"{name}, {label}", **values})
    return rows


def readings(job: Job, force: bool = False) -> list[dict]:
    """Every preset on the same stage 1."""
    rows = []
    for preset in PRESETS:
        opts = ("TRAINER.DPC.PRESET", preset)
        found = paired(replace(job, tag="_".join(filter(None, (job.tag, preset))), opts=job.opts + opts), preset, force)
        rows += found[1:] if rows else [{**found[0], "row": "backbone"}, found[1]]
    return rows


def short(job: Job, force: bool = False) -> list[dict]:
    """Both stages with five epochs each, beside the recipes' own schedules."""
    return [*paired(job, "recipe", force), *paired(replace(job, epochs=5), "5 + 5 epochs", force)]


def union(job: Job, force: bool = False, split: str = "test") -> list[dict]:
    """Base and new classes together: P alone, which is the backbone, and every way to put P' beside it.

    Args:
        split: ``val`` measures on the validation images, where a default may be chosen.
    """
    trained(job, force)
    job = job.recipe("base2new")
    [found] = with_settings(
        union_step(job), train_folder(job, "base2new", "base"), [{}], partial(union_metrics, split=split)
    )
    return [
        {"seed": job.seed, "row": way, **{UNION_COLUMNS[key]: values[key] for key in UNION_COLUMNS}}
        for way, values in found.items()
    ]


@torch.no_grad()
def union_metrics(trainer, split: str) -> dict[str, dict[str, float]]:
    """By the name of the way, accuracies and area on ``split``."""
    is_base = trainer.model.eval().is_base
    items = [item for item in trainer.dm.dataset.train_x if is_base[item.label]]  # no picture of a new class
    plain = DatasetWrapper(trainer.cfg, items, transform=build_transform(trainer.cfg, is_train=False))
    position = is_base.long().cumsum(0) - 1
    fit = scored(trainer, DataLoader(plain, trainer.cfg.DATALOADER.TEST.BATCH_SIZE))
    _, loader = trainer.choose_split(split)
    base_scores, scores, labels = scored(trainer, loader)
    found = {"P alone": measure(scores, labels)[0]}
    for name, way in calibration.ways(*fit[:2], position[fit[2]], is_base).items():
        found[name] = measure(way(base_scores, scores), labels)[0]
    return found


def scored(trainer, loader) -> tuple:
    """:meth:`DualPrompts.union_scores` of all pictures, and their labels."""
    batches = [trainer.parse_batch_test(batch) for batch in loader]
    with trainer.autocast():
        found = [trainer.model.union_scores(images) for images, _ in batches]
    columns = [*zip(*found), [labels for _, labels in batches]]
    return tuple(torch.cat(column).cpu() for column in columns)


def channel_strength(trainer) -> np.ndarray:
    """Mean absolute text feature of every channel ``[E]``, over the classes."""
    return trainer.model.eval().class_features().abs().mean(dim=0).cpu().numpy()


def channels(job: Job, force: bool = False) -> list[dict]:
    """How alike P, mixtures and P' order the channels of the base classes' text features, by Spearman's rank correlation.

    The paper argues with "feature channel invariance": tuning a prompt changes how strong the channels are, not their order.
    """
    from scipy.stats import spearmanr

    base, _ = trained(job, force)
    settings = [{"omega_b": w} for w in OMEGAS]
    strength = with_settings(base, base.output, settings, channel_strength)
    return [
        {"seed": job.seed, "omega": w, "with P": spearmanr(s, strength[0])[0], "with P'": spearmanr(s, strength[-1])[0]}
        for w, s in zip(OMEGAS, strength)
    ]


@dataclass(frozen=True)
class Study:
    """What computes the rows of one seed, the column that names a row, and the row that the others are compared with, in which
    ``{0}`` is the backbone."""

    rows: Callable[..., list[dict]]
    key: str
    reference: object = None


STUDIES = {
    "omega": Study(omega_curve, "omega", 0.0),
    "ablation": Study(ablation, "row", "0 backbone"),
    "channels": Study(channels, "omega"),
    "readings": Study(readings, "row", "backbone"),
    "short": Study(short, "row", "{0}, recipe"),
    "union": Study(union, "row", "P alone"),
}


def plot_omega(rows: list[dict], path: Path, title: str) -> None:
    """Both curves over omega, mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    means = mean_over_seeds(rows, "omega")
    omegas = [r["omega"] for r in means]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
    for axis, column, name in zip(axes, ("base at omega_b", "new at omega_n"), ("base", "new")):
        axis.errorbar(omegas, [r[column].mean for r in means], [r[column].std for r in means], marker="o", capsize=2)
        axis.set_xlabel(rf"$\omega_{name[0]}$  (0 = P, 1 = P')")
        axis.set_ylabel(f"{name} accuracy (%)")
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dassl_prompts.trainers.dpc.study", description=__doc__.splitlines()[0])
    p.add_argument("study", choices=STUDIES)
    p.add_argument("--backbone", default="CoOp", help="CoOp, MaPLe, PromptSRC, PromptKD or IVLP")
    p.add_argument("--dataset", nargs="+", default=["emoji"], help="several: their average, seed by seed")
    p.add_argument("--seed", type=int, nargs="+", default=[1])
    p.add_argument("--shots", type=int, default=16)
    add_places(p)
    p.add_argument(
        "--common",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="configuration of every run, stage 1 included",
    )
    p.add_argument("--split", choices=("test", "val"), default="test", help="what `union` measures on")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    words, opts = split_opts(argv)
    args = parser().parse_args(words)
    common = tuple(word for pair in args.common for word in pair)
    study = STUDIES[args.study]
    rows = []
    try:
        for dataset, seed in itertools.product(args.dataset, args.seed):
            job = Job(
                f"DPC_{args.backbone}",
                dataset,
                seed,
                args.shots,
                root=args.root,
                output=args.output,
                opts=tuple(opts),
                common=common,
            )
            found = study.rows(job, args.force, *([args.split] if args.study == "union" else []))
            rows += [{"dataset": dataset, **row} for row in found]
    except (StepFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StepFailed) else 2
    sets = " ".join(args.dataset)
    folder = args.output / "studies" / f"dpc_{args.backbone}_{'+'.join(args.dataset)}_shots{args.shots}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{args.study}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    rows = over_sets(rows, study.key)
    named = study.reference.format(args.backbone) if isinstance(study.reference, str) else study.reference
    text = study_text(rows, study.key, named)
    print(text)
    if args.write:
        title = f"DPC on {args.backbone}, {sets}, {args.shots} shots: {args.study}"
        command = f"python -m dassl_prompts.trainers.dpc.study {shlex.join(argv)}"
        try:
            write_page(args.write, f"run.dpc_study {args.study} {args.backbone} {sets}", title, command, text)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if args.study == "omega":
        picture = folder / "omega.png"
        plot_omega(rows, picture, f"DPC on {args.backbone}, {sets}, seeds {', '.join(map(str, args.seed))}")
        print(f"plot: {picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
