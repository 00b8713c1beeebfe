"""Published results, each with its source (dassl_prompts/assets/published.json), next to ours."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

from dassl_prompts.engine.reading import parse_json
from dassl_prompts.results.groups import Method

#: names of one dataset in papers and in registries
ALIASES = {"describabletextures": "dtd", "flowers102": "oxfordflowers", "fdrdflowers102": "fdrdoxfordflowers"}


@dataclass(frozen=True, eq=False)
class Published:
    """One method of a published table.

    Attributes:
        table, source: where it stands. method: its name there. trainer: our name of it. cfg: recipes that it
        is compared with, empty for all. columns: of the values. values: by dataset.
        datasets: what "Average" is over, where a paper gives nothing else.
    """

    table: str
    source: str
    protocol: str
    method: str
    trainer: str
    columns: tuple[str, ...]
    values: dict[str, tuple[float | None, ...]]
    backbone: str = ""
    shots: int | None = None
    trained_on: str = ""
    cfg: tuple[str, ...] = ()
    config: tuple[tuple[str, str], ...] = ()
    datasets: tuple[str, ...] = ()

    def averaged(self) -> set[str]:
        """The datasets of the average, in one spelling."""
        names = self.datasets or [name for name in self.values if name != "Average"]
        return {canonical(name) for name in names}

    def on(self, dataset: str) -> dict[str, float]:
        """Column -> number on a dataset (or "Average"); empty if there is none."""
        row = {canonical(name): values for name, values in self.values.items()}.get(canonical(dataset), ())
        return {column: value for column, value in zip(self.columns, row) if value is not None}

    def fits(self, method: Method) -> bool:
        """Whether a method of ours was run in the setting of this row."""
        if (self.protocol, self.trainer) != (method.protocol, method.trainer):
            return False
        if self.backbone and not same_backbone(self.backbone, method.backbone):
            return False
        zero_shot = method.trainer.startswith("Zeroshot")
        if self.shots is not None and method.shots != self.shots and not zero_shot:
            return False
        if self.trained_on and canonical(self.trained_on) != canonical(method.source) and not zero_shot:
            return False
        run = next(iter(method.runs.values()))
        return all(run.setting(key) == value for key, value in self.config) and (not self.cfg or method.cfg in self.cfg)


def canonical(dataset: str) -> str:
    """One spelling for a dataset's names: ``DescribableTextures``, ``dtd`` and ``DTD`` are the same."""
    plain = "".join(c for c in dataset.lower() if c.isalnum())
    return ALIASES.get(plain, plain)


def same_backbone(published: str, ours: str) -> bool:
    """``ViT-B/16`` is also called ``ViT-B-16`` and ``CLIP B/16``; BLIP means any BLIP."""
    plain = [name.lower().replace("clip ", "vit-").replace("/", "-") for name in (published, ours)]
    return plain[0] == plain[1] or (plain[0] == "blip" and plain[1].startswith("blip"))


@functools.cache
def published() -> tuple[Published, ...]:
    """All published rows."""
    text = (resources.files("dassl_prompts") / "assets" / "published.json").read_text(encoding="utf-8")
    found = []
    for table in parse_json(text, "assets/published.json")["tables"]:
        for row in table["rows"]:
            both = {**table, **row}
            found.append(
                Published(
                    table["name"],
                    table["source"],
                    table["protocol"],
                    row["method"],
                    row["trainer"],
                    tuple(table["columns"]),
                    {name: tuple(values) for name, values in row["values"].items()},
                    both.get("backbone", ""),
                    both.get("shots"),
                    both.get("trained_on", ""),
                    tuple(both.get("cfg", ())),
                    tuple(both.get("config", {}).items()),
                    tuple(both.get("datasets", ())),
                )
            )
    return tuple(found)


def counterpart(method: Method, dataset: str = "") -> Published | None:
    """The published row to compare a method with: one for its recipe before one for the method at large.

    Args:
        dataset: that the row has to hold; cross-dataset targets and ImageNet's variants stand in different tables.
    """
    rows = [row for row in published() if row.fits(method) and (not dataset or row.on(dataset))]
    return next(iter(sorted(rows, key=lambda row: not row.cfg)), None)
