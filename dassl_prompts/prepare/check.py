"""Examining a dataset tree: are the images of every split there, readable, and as many as published?"""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dassl_prompts.classification.split_files import PARTS, Splits
from dassl_prompts.images import image_notes, missing_images, spelled_otherwise
from dassl_prompts.prepare.sources import SOURCES


@dataclass
class Report:
    """What a check found.

    Attributes:
        classes: number of classes, 0 when the split could not be read.
        counts: images of train, val and test; None where the dataset has no such part.
        problems: one line each; none means that the dataset can be used.
        notes: what is read otherwise than one may expect, one line each.
    """

    name: str
    classes: int = 0
    counts: tuple[int | None, int | None, int | None] = (None, None, None)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line: name, verdict, numbers."""
        numbers = "  ".join(f"{part} {count:,}" for part, count in zip(PARTS, self.counts) if count is not None)
        verdict = "ok     " if not self.problems else "PROBLEM"
        return f"{self.name:<20}{verdict}  " + (f"{self.classes} classes  {numbers}" if self.classes else "not usable")


def check(name: str, root: str | os.PathLike, decode: bool = True, workers: int = 0) -> Report:
    """Examine dataset ``name`` below ``root``.

    Args:
        decode: read every image; otherwise only look whether it is there.
        workers: processes that decode; 0 uses all cores.
    """
    report = Report(name)
    try:
        splits = _read(name, os.fspath(root))
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        report.problems.append(str(error))
        return report

    report.classes = len({item.label for item in splits.train})
    report.counts = _counts(name, splits)
    report.problems += _differences(report)
    paths = list(dict.fromkeys(item.impath for part in splits for item in part))
    missing = missing_images(paths)
    if spelled := spelled_otherwise(missing, paths):
        first = next(iter(spelled))
        report.notes.append(f"{len(spelled):,} images are spelled otherwise: {spelled[first]} for {first}")
        paths = [spelled.get(path, path) for path in paths]
        missing = [path for path in missing if path not in spelled]
    if missing:
        report.problems.append(f"{len(missing):,} of {len(paths):,} images are missing, first {missing[0]}")
    if decode:
        absent = set(missing)
        present = [path for path in paths if path not in absent]
        errors, notes = _examine(present, name, workers)
        if errors:
            report.problems.append(f"{len(errors):,} images cannot be read, first: {errors[0]}")
        report.notes += [f"{len(paths):,} images {note}, first: {paths[0]}" for note, paths in notes.items()]
    return report


def check_fdrd(root: str | os.PathLike) -> list[Report]:
    """A report per domain of FDRD that has a caption file below ``root``; images are looked for, not read."""
    from dassl_prompts.fdrd.check import check_file
    from dassl_prompts.fdrd.domains import DOMAINS, find_file

    reports = []
    for domain in DOMAINS.values():
        report, found, absent = Report(f"FDRD {domain.name}"), {}, []
        for split in ("train", "test"):
            try:
                path = find_file(domain, split, root)
            except FileNotFoundError as error:
                absent.append(str(error))
                continue
            try:
                found[split] = check_file(path, domain, os.fspath(root))
            except ValueError as error:
                report.problems.append(str(error))
        if not found and not report.problems:
            continue
        report.classes = max((facts["classes"] for facts in found.values()), default=0)
        report.counts = tuple(found[part]["records"] if part in found else None for part in PARTS)
        report.problems += absent
        for split, facts in found.items():
            for what, first in (("unusable records", "reasons"), ("images missing", "reasons (images)")):
                if facts[what]:
                    report.problems.append(f"{split}: {facts[what]:,} {what}, first: {facts[first][0]}")
        reports.append(report)
    return reports


def dataset_classes() -> dict[str, type]:
    """The classes that our dataset files define, also where the toolbox has others under their names."""
    from dassl_prompts import datasets

    return {
        value.__name__: value
        for module in datasets.import_all()
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    }


def _read(name: str, root: str) -> Splits:
    cls = dataset_classes()[name]
    if hasattr(cls, "read_all"):
        return cls.read_all(root)
    from dassl_prompts import extend_cfg
    from dassl_prompts.engine import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.ROOT = root
    dataset = cls(cfg)
    return Splits(dataset.train_x, dataset.val or [], dataset.test)


def _counts(name: str, splits: Splits) -> tuple[int | None, int | None, int]:
    """Numbers of images, without the parts that only repeat the test set."""
    own = [None if part is splits.test or not part else len(part) for part in splits[:2]]
    return own[0], own[1], len(splits.test)


def _differences(report: Report) -> list[str]:
    if report.name not in SOURCES:
        return []
    expected = SOURCES[report.name]
    found = dict(zip(("classes", *PARTS), (report.classes, *report.counts)))
    published = dict(zip(("classes", *PARTS), (expected.classes, *expected.counts)))
    return [
        f"{what}: {found[what] or 0:,}, commonly published are {published[what] or 0:,}"
        for what in found
        if found[what] != published[what]
    ]


def _examine(paths: Sequence[str], name: str, workers: int) -> tuple[list[str], dict[str, list[str]]]:
    """Why images cannot be read, and the images by what is worth a note about them."""
    errors, notes = [], defaultdict(list)
    for path, (error, found) in zip(paths, _decode(paths, name, workers)):
        if error:
            errors.append(error)
        for note in found:
            notes[note].append(path)
    return errors, notes


def _decode(paths: Sequence[str], name: str, workers: int) -> Iterable[tuple[str, list[str]]]:
    from tqdm import tqdm

    workers = workers or os.cpu_count() or 1
    bar = tqdm(total=len(paths), desc=f"reading {name}", unit=" images", mininterval=0.5)
    with bar:
        if workers == 1 or len(paths) < 256:
            for path in paths:
                yield _probe(path)
                bar.update()
            return
        # Forked where possible: a spawned worker would import torch first, for nothing.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
        with multiprocessing.get_context(method).Pool(workers) as pool:
            for found in pool.imap(_probe, paths, chunksize=64):
                yield found
                bar.update()


def _probe(path: str) -> tuple[str, list[str]]:
    """Why an image cannot be read, "" where it can, and notes about it."""
    try:
        return "", image_notes(path)
    except OSError as error:
        return str(error), []
