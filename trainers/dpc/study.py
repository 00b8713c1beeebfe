"""DPC's studies: accuracy along omega, the ablation table of the paper's poster, and the order of feature channels.

``python -m dassl_prompts.trainers.dpc.study omega --backbone CoOp --dataset emoji --seed 1``
``python -m dassl_prompts.trainers.dpc.study ablation --backbone CoOp --dataset emoji --seed 1 2 3 --common OPTIM.MAX_EPOCH 5``
``python -m dassl_prompts.trainers.dpc.study channels --backbone CoOp --dataset emoji --seed 1 2 3``

A trained stage 2 serves every omega, so each needs training once and is then only evaluated.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from dassl_prompts.run.execute import execute
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.protocols import Job, accuracy, base2new, base_step, new_step, stage1
from dassl_prompts.run.steps import Step, StepFailed
from dassl_prompts.run.sweep import split_opts
from dassl_prompts.run.tables import harmonic_mean, mean_over_seeds, table

OMEGAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

#: how stage 2 is trained in the rows of the ablation
TRAININGS = {
    "two_step": (
        "TRAINER.DPC.TOPK",
        "1",
        "TRAINER.DPC.NEG_MIN_FILL",
        "0",
        "TRAINER.DPC.LOSS.CL_W",
        "0.0",
        "TRAINER.DPC.LOSS.CE_W",
        "1.0",
    ),
    "dhno": (),
    "dhno_ce": ("TRAINER.DPC.LOSS.CL_W", "0.0", "TRAINER.DPC.LOSS.CE_W", "1.0"),
}


def with_settings(step: Step, model_dir: Path, settings: list[dict], measure: Callable) -> list:
    """``measure(trainer)`` of one trained run on one class subset, under several settings of :class:`DualPrompts`."""
    from dassl_prompts.engine import build_trainer, set_random_seed

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
    base_curve = evaluate(base, base.output, [{"omega_b": w, "eval_base": "mixed"} for w in OMEGAS])
    new_curve = evaluate(new, base.output, [{"omega_n": w} for w in OMEGAS])
    return [
        {"seed": job.seed, "omega": w, "base at omega_b": b, "new at omega_n": n}
        for w, b, n in zip(OMEGAS, base_curve, new_curve)
    ]


def ablation(job: Job, force: bool = False) -> list[dict]:
    """Rows of the poster's table for one seed.

    Without decoupling new classes are scored as base classes are, PromptKD's projector included.
    """
    scores = {}
    for name, opts in TRAININGS.items():
        base, new = trained(replace(job, tag=name if opts else job.tag, opts=job.opts + opts), force)
        coupled = [
            {"task": "base", "eval_base": "mixed", "omega_b": w} for w in (1.0, base.config().TRAINER.DPC.OMEGA_B)
        ]
        on_base = evaluate(base, base.output, coupled)
        on_new = evaluate(new, base.output, [*coupled, {"task": "new", "omega_n": 0.0}])
        scores[name] = dict(zip(("p_prime", "mixed"), on_base)), dict(zip(("p_prime", "mixed", "p"), on_new))
    first = stage1(job)
    backbone = accuracy(base_step(first)), accuracy(new_step(first))

    def row(label, training, base_key, new_key):
        base, new = (scores[training][0][base_key], scores[training][1][new_key]) if training else backbone
        return {"seed": job.seed, "row": label, "Base": base, "New": new, "HM": harmonic_mean(base, new)}

    return [
        row("0 backbone", None, "", ""),
        row("1 dual prompts only (two-step)", "two_step", "p_prime", "p_prime"),
        row("2 + DHNO", "dhno", "p_prime", "p_prime"),
        row("3 + DHNO + weighting", "dhno", "mixed", "mixed"),
        row("4 two-step + weighting + decoupling", "two_step", "mixed", "p"),
        row("5 DHNO + weighting + decoupling = DPC", "dhno", "mixed", "p"),
        row("6 as 5, cross-entropy for the contrastive loss", "dhno_ce", "mixed", "p"),
    ]


def channel_strength(trainer) -> np.ndarray:
    """Mean absolute text feature of every channel ``[E]``, over the classes."""
    return trainer.model.eval().class_features().abs().mean(dim=0).cpu().numpy()


def channels(job: Job, force: bool = False) -> list[dict]:
    """How alike P, mixtures and P' order the channels of the base classes' text features, by Spearman's rank correlation.

    The paper argues with "feature channel invariance": tuning a prompt changes how strong the channels are, not their order.
    """
    from scipy.stats import spearmanr

    base, _ = trained(job, force)
    settings = [{"omega_b": w, "eval_base": "mixed"} for w in OMEGAS]
    strength = with_settings(base, base.output, settings, channel_strength)
    return [
        {"seed": job.seed, "omega": w, "with P": spearmanr(s, strength[0])[0], "with P'": spearmanr(s, strength[-1])[0]}
        for w, s in zip(OMEGAS, strength)
    ]


#: study -> what computes its rows for one seed, the column that names a row
STUDIES = {"omega": (omega_curve, "omega"), "ablation": (ablation, "row"), "channels": (channels, "omega")}


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
    p.add_argument("--dataset", default="emoji")
    p.add_argument("--seed", type=int, nargs="+", default=[1])
    p.add_argument("--shots", type=int, default=16)
    p.add_argument("--root", default=os.environ.get("DATA", "data"))
    p.add_argument("--output", type=Path, default=Path("output"))
    p.add_argument(
        "--common",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="configuration of every run, stage 1 included",
    )
    p.add_argument("--write", type=Path, help="also write the table into this Markdown page")
    p.add_argument("--force", action="store_true", default=os.environ.get("FORCE", "0") not in ("", "0"))
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    words, opts = split_opts(argv)
    args = parser().parse_args(words)
    common = tuple(word for pair in args.common for word in pair)
    study, key = STUDIES[args.study]
    rows = []
    try:
        for seed in args.seed:
            job = Job(
                f"DPC_{args.backbone}",
                args.dataset,
                seed,
                args.shots,
                root=args.root,
                output=args.output,
                opts=tuple(opts),
                common=common,
            )
            rows += study(job, args.force)
    except (StepFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StepFailed) else 2
    folder = args.output / "studies" / f"dpc_{args.backbone}_{args.dataset}_shots{args.shots}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{args.study}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    text = table(mean_over_seeds(rows, key))
    print(text)
    if args.write:
        title = f"DPC on {args.backbone}, {args.dataset}, {args.shots} shots: {args.study}"
        command = f"python -m dassl_prompts.trainers.dpc.study {shlex.join(argv)}"
        try:
            write_page(args.write, f"run.dpc_study {args.study} {args.backbone} {args.dataset}", title, command, text)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if args.study == "omega":
        picture = folder / "omega.png"
        plot_omega(rows, picture, f"DPC on {args.backbone}, {args.dataset}, seeds {', '.join(map(str, args.seed))}")
        print(f"plot: {picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
