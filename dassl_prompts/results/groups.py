"""Runs that differ in the seed alone, and their statistics; different settings never share a group."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dassl_prompts.engine.places import place_in_tree
from dassl_prompts.results.runs import Run
from dassl_prompts.results.statistics import BySeed, Value, hm_over_seeds

#: settings that a recipe may choose per dataset
PER_DATASET = ("TRAINER.PROMPTKD.KD_WEIGHT",)


@dataclass
class Method:
    """A method with one configuration on one or several datasets: a row of a table.

    Attributes:
        variant: counts the configurations that share trainer, recipe, shots and backbone, from 1. differs:
        the settings in which this one differs from the first. runs: by (dataset, class set, seed). doubles:
        (counted, left out) where a key occurred twice. configs: what its runs say of the settings, by
        (dataset, recipe).
    """

    protocol: str
    trainer: str
    cfg: str
    shots: int
    backbone: str
    source: str = ""
    variant: int = 1
    differs: dict[str, tuple[str, str]] = field(default_factory=dict)
    runs: dict[tuple[str, str, int], Run] = field(default_factory=dict)
    doubles: list[tuple[Run, Run]] = field(default_factory=list)
    configs: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(dataset for dataset, _, _ in self.runs))

    def seeds(self, dataset: str | None = None, classes: str | None = None) -> list[int]:
        return sorted({s for d, c, s in self.runs if dataset in (None, d) and classes in (None, c)})

    def of(self, dataset: str, classes: str) -> dict[int, Run]:
        """Runs by seed."""
        return {s: run for (d, c, s), run in self.runs.items() if (d, c) == (dataset, classes)}

    @property
    def label(self) -> str:
        """What a table calls the method."""
        return f"{self.trainer} ({self.cfg}{f', settings {self.variant}' if self.variant > 1 else ''})"

    @property
    def order(self) -> tuple:
        """Where the method stands in every table and plot: zero-shot first, DPC below its backbone, then by name."""
        backbone = self.trainer.removeprefix("DPC_")
        return (
            not self.trainer.startswith("Zeroshot"),
            backbone.lower(),
            backbone != self.trainer,
            self.cfg,
            self.backbone,
            self.source,
            self.variant,
            self.shots,
        )

    def add(self, run: Run) -> None:
        """Take a run in; of two for the same cell the newer one counts."""
        key = (run.dataset, run.classes, run.seed)
        other = self.runs.get(key)
        if other is not None:
            older, run = sorted((other, run), key=lambda r: (r.folder / "results.json").stat().st_mtime)
            self.doubles.append((run, older))
        self.runs[key] = run
        config = self.configs.setdefault((run.dataset, run.cfg), {})
        config.update({k: v for k, v in run.config.items() if k not in config or v != "''"})

    def differs_from(self, run: Run) -> dict[str, tuple[str, str]]:
        """Settings in which a run differs from this method's: ``{key: (here, there)}``.

        It is compared with the runs on the same dataset or, if there are none, with another dataset's of the
        same recipe; then the settings of the dataset do not count. An empty path says nothing: evaluations do
        not name a first stage.
        """
        same = [config for (dataset, _), config in self.configs.items() if dataset == run.dataset]
        others = [config for (_, cfg), config in self.configs.items() if cfg == run.cfg]
        mine, theirs = next(iter(same or others), {}), run.config
        keys = [k for k in mine.keys() & theirs.keys() if mine[k] != theirs[k]]
        keys = [k for k in keys if not (k.endswith("DIR") and "''" in (mine[k], theirs[k]))]
        if not same:
            keys = [k for k in keys if not k.startswith(("DATASET", "CIR.")) and k not in PER_DATASET]
        return {k: (mine[k], theirs[k]) for k in sorted(keys)}


def group(runs: Iterable[Run], join: Sequence[str] = ()) -> list[Method]:
    """Methods in their order; the runs of one method have equal settings.

    Args:
        join: names of recipes that count as one, by the name of the first, such as a recipe and its variant
        for one dataset.
    """
    found: dict[tuple, list[Method]] = {}
    for run in runs:
        source = run.source if run.protocol == "transfer" else ""
        cfg = join[0] if run.cfg in join else run.cfg
        key = (run.protocol, run.trainer, cfg, run.shots, run.backbone, source)
        place(run, found.setdefault(key, []), key)
    return sorted((method for variants in found.values() for method in variants), key=lambda method: method.order)


def place(run: Run, variants: list[Method], key: tuple) -> None:
    """Add a run to the variant with its settings, or to a new one."""
    for method in variants:
        if not method.differs_from(run):
            method.add(run)
            return
    new = Method(*key, variant=len(variants) + 1, differs=variants[0].differs_from(run) if variants else {})
    new.add(run)
    variants.append(new)


def built_on(method: Method, methods: Iterable[Method]) -> Method | None:
    """The method whose runs are the first stages of DPC's, where all of them are there."""
    named = {run.setting("TRAINER.DPC.CKPT_DIR") for run in method.runs.values()} - {""}
    stages = {place_in_tree(folder) for folder in named}
    for other in methods if stages else ():
        if stages <= {place_in_tree(str(run.folder)) for run in other.runs.values()}:
            return other
    return None


# -- statistics ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseNew:
    """Base and new accuracy by seed, over the seeds that have both, and HM of the two means (specs/dpc.md 6.2)."""

    base_by_seed: BySeed
    new_by_seed: BySeed

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.base_by_seed)

    @property
    def base(self) -> Value:
        return Value.over(self.base_by_seed.values())

    @property
    def new(self) -> Value:
        return Value.over(self.new_by_seed.values())

    @property
    def hm_value(self) -> Value:
        """With the deviation of the seeds' own HMs."""
        return hm_over_seeds(self.base_by_seed, self.new_by_seed)

    @property
    def hm(self) -> float:
        return self.hm_value.mean


def base_new(method: Method, dataset: str) -> BaseNew | None:
    """None unless a seed has both numbers."""
    base, new = (
        {s: r.accuracy for s, r in method.of(dataset, c).items() if r.accuracy is not None} for c in ("base", "new")
    )
    seeds = sorted(base.keys() & new.keys())
    return BaseNew({s: base[s] for s in seeds}, {s: new[s] for s in seeds}) if seeds else None


def averaged(scores: Sequence[BaseNew]) -> BaseNew | None:
    """The average over datasets seed by seed; None unless all of them have the same seeds.

    Its deviation over the seeds is that of the average: what a single dataset's few test pictures add largely cancels out.
    """
    seeds = scores[0].seeds
    if any(set(s.seeds) != set(seeds) for s in scores):
        return None
    sides = ([s.base_by_seed for s in scores], [s.new_by_seed for s in scores])
    return BaseNew(*({seed: statistics.fmean(side[seed] for side in each) for seed in seeds} for each in sides))


def accuracy_by_seed(method: Method, dataset: str) -> dict[int, float]:
    """Accuracy on all classes, by seed."""
    return {s: r.accuracy for s, r in method.of(dataset, "all").items() if r.accuracy is not None}


def accuracy(method: Method, dataset: str) -> Value | None:
    """Accuracy on all classes."""
    return Value.over(accuracy_by_seed(method, dataset).values())
