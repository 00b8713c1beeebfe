"""Compare settings of a classification recipe on *training* pictures of the embedded sets, so that no test picture chooses one.

    python tools/choose_recipe.py CoOp --seed 1 2 3 --try "OPTIM.LR 0.002" --try "OPTIM.LR 0.02 OPTIM.MAX_EPOCH 20"
    python tools/choose_recipe.py ZeroshotCLIP                       # what the others are held against

Per set and seed, a third of the concept families of every class (of its pictures, where a set has no families) is set aside with
the validation pictures and judged after training on the rest: base classes on what base training left out, new classes on
theirs. Every --try is a variant of the shipped recipe ``configs/trainers/<TRAINER>/open_tiny.yaml``; the first stage of DPC and
PromptKD's teacher keep their own recipes. Every --judge is a setting that matters only in judging, such as
"TRAINER.DPC.OMEGA_B 0.5": trained variants are judged with each. One recipe serves all sets: rows are means over them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import shlex
import statistics
import tempfile
from itertools import product
from pathlib import Path

import dassl_prompts
from dassl_prompts.classification.splits import subsample_classes
from dassl_prompts.classification.templates import CUSTOM_TEMPLATES
from dassl_prompts.datasets.emoji import Emoji
from dassl_prompts.datasets.testbed import ClipArt, IconPark, QuickDraw
from dassl_prompts.datasets.testbed import read_splits as read_testbed
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.splits import read_splits as read_emoji
from dassl_prompts.engine import (
    DatasetBase,
    build_trainer,
    get_cfg_default,
    merge_file,
    merge_opts,
    register_dataset,
    set_random_seed,
)
from dassl_prompts.run.distillation import TEACHER_DIR
from dassl_prompts.run.job import config_file, stage1_recipe
from dassl_prompts.run.tables import harmonic_mean, table

RECIPE = "open_tiny"


def families_of(name: str) -> dict[str, str]:
    """Path of a training or validation picture -> what must stay together: its concept, or the drawing whatever its style."""
    if name == "Emoji":
        return {p.path: p.concept.family for p in emoji.pictures(Emoji.style, tones=False)}
    train, val, _ = splits_of(name)
    return {item.impath: Path(item.impath).stem.removesuffix("-colour").removesuffix("-solid") for item in train + val}


def splits_of(name: str):
    return read_emoji(Emoji.style) if name == "Emoji" else read_testbed(SETS[name].archive)


class Families(DatasetBase):
    """The training pictures of the set `source`, a third of the families of each class judged instead of learned."""

    source = ""

    def __init__(self, cfg):
        train, val, _ = splits_of(self.source)
        family = families_of(self.source)
        rng = random.Random(cfg.SEED)
        judged = set()
        for label in sorted({item.label for item in train}):
            families = sorted({family[item.impath] for item in train if item.label == label})
            judged.update((label, f) for f in rng.sample(families, len(families) // 3))
        test = [item for item in train if (item.label, family[item.impath]) in judged] + val
        train = [item for item in train if (item.label, family[item.impath]) not in judged]
        train, test = subsample_classes(train, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, test=test)


SETS = {cls.__name__: cls for cls in (Emoji, QuickDraw, IconPark, ClipArt)}
for name in SETS:
    register_dataset(type(f"{name}Families", (Families,), {"source": name}))
    CUSTOM_TEMPLATES[f"{name}Families"] = CUSTOM_TEMPLATES[name]


def accuracy(
    trainer: str,
    cfg_name: str,
    dataset: str,
    seed: int,
    classes: str,
    output,
    opts: list[str],
    model: Path | None = None,
) -> float:
    """Train on ``classes`` and judge, or only judge the trained ``model`` on them; percent."""
    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    merge_file(cfg, config_file("trainers", trainer, cfg_name))
    merge_opts(
        cfg,
        [
            "TRAINER.NAME",
            trainer,
            "DATASET.NAME",
            f"{dataset}Families",
            "SEED",
            seed,
            "OUTPUT_DIR",
            str(output),
            "DATASET.SUBSAMPLE_CLASSES",
            classes,
            *opts,
        ],
    )
    cfg.freeze()
    set_random_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = build_trainer(cfg)
        if trainer.startswith("Zeroshot"):
            return made.test()
        if model is None:
            made.train()
            made = build_trainer(cfg)  # judged from its checkpoint, as the scripts do
            model = output
        made.load_model(str(model))
        return made.test()


class Runs:
    """The runs of one set and seed; what several variants build on is trained once."""

    def __init__(self, dataset: str, seed: int, folder: Path, first: list[str]):
        self.dataset, self.seed, self.folder, self.first = dataset, seed, folder / dataset / f"seed{seed}", first

    def base_new(self, trainer: str, name: str, opts: list[str], judge=(), recipe=RECIPE) -> tuple[float, float]:
        """Base and new accuracy of one variant, which is trained unless it was."""
        opts, trained = [*self.needs(trainer), *opts], self.folder / name
        of = (trainer, recipe, self.dataset, self.seed)
        if not trained.exists():  # PromptKD is distilled on all classes and judged on each half
            accuracy(*of, "all" if trainer == "PromptKD" else "base", trained, opts)
        self.folder.mkdir(parents=True, exist_ok=True)
        return tuple(
            accuracy(*of, classes, tempfile.mkdtemp(dir=self.folder), [*opts, *judge], trained)
            for classes in ("base", "new")
        )

    def needs(self, trainer: str) -> list[str]:
        """Options that name a first stage or a teacher, which are trained if they are not there."""
        opts = []
        if trainer.endswith("PromptKD"):
            teacher = self.folder / "teacher"
            if not teacher.exists():
                accuracy("PromptSRC", RECIPE, self.dataset, self.seed, "base", teacher, [])
            opts = [TEACHER_DIR, str(teacher)]
        if trainer.startswith("DPC_"):
            first = self.folder / "first"
            if not first.exists():
                backbone = trainer.removeprefix("DPC_")
                scores = self.base_new(backbone, "first", self.first, recipe=stage1_recipe(backbone, "emoji"))
                print(f"{self.dataset} seed {self.seed}: {backbone} {scores[0]:.2f} / {scores[1]:.2f}", flush=True)
            opts += ["TRAINER.DPC.CKPT_DIR", str(first)]
        return opts


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("trainer")
    p.add_argument("--dataset", nargs="+", choices=sorted(SETS), default=list(SETS))
    p.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--try", dest="variants", action="append", metavar='"KEY VALUE ..."', help="a variant of the recipe")
    p.add_argument("--judge", action="append", metavar='"KEY VALUE ..."', help="a setting of the judging")
    p.add_argument("--first", default="", metavar='"KEY VALUE ..."', help="changes the recipe of DPC's first stage")
    args = p.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        runs = [Runs(d, seed, Path(folder), shlex.split(args.first)) for d in args.dataset for seed in args.seed]
        for (i, words), judge in product(enumerate(args.variants or [""]), args.judge or [""]):
            scores = {
                run: run.base_new(args.trainer, f"variant{i}", shlex.split(words), shlex.split(judge)) for run in runs
            }
            base, new = (statistics.mean(column) for column in zip(*scores.values()))
            name = f"{words} {judge}".strip() or "as shipped"
            row = {"variant": name, "Base": base, "New": new, "HM": harmonic_mean(base, new)}
            for dataset in args.dataset:
                of = [s for run, s in scores.items() if run.dataset == dataset]
                row[dataset] = " / ".join(f"{statistics.mean(column):.1f}" for column in zip(*of))
            rows.append(row)
            print(f"{args.trainer} {name}: {base:.2f} / {new:.2f}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
