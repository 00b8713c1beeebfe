"""What a reader of the tables has to know: missing runs, unfinished ones, mixed configurations."""

from __future__ import annotations

from collections.abc import Sequence

from dassl_prompts.engine.places import place_in_tree
from dassl_prompts.results.groups import Method
from dassl_prompts.results.runs import CLASS_SETS, Run, Unfinished


def teachers(runs: list[Run]) -> set[str]:
    """Folders that other runs were taught by, as places in an output tree."""
    named = {run.setting("TRAINER.PROMPTKD.TEACHER_DIR") for run in runs}
    return {place_in_tree(name) for name in named if name}


def missing(methods: list[Method], runs: list[Run], seeds: Sequence[int] | None = None) -> list[str]:
    """One line per method and dataset that lacks seeds others have, or the seeds asked for."""
    lines, taught = [], teachers(runs)
    for protocol in dict.fromkeys(m.protocol for m in methods):
        same = [m for m in methods if m.protocol == protocol]
        wanted = sorted(seeds or {s for m in same for s in m.seeds()})
        for method in same:
            if all(place_in_tree(str(run.folder)) in taught for run in method.runs.values()):
                continue  # a teacher has no test of its own
            for dataset in expected_datasets(method, same):
                own = method.seeds(dataset) if method.trainer.startswith("Zeroshot") else []  # the same for every seed
                lines += missing_cells(method, dataset, own or wanted)
    return lines


def expected_datasets(method: Method, same: list[Method]) -> list[str]:
    """Datasets that the methods of a table have (of one source); retrieval methods answer for their own."""
    if method.protocol in ("retrieval", "composed"):
        return method.datasets
    alike = [m for m in same if m.source == method.source]
    return sorted({d for m in alike for d in m.datasets})


def missing_cells(method: Method, dataset: str, wanted: list[int]) -> list[str]:
    sides = CLASS_SETS if method.protocol == "base2new" else ("all",)
    shots = f", {method.shots} shots" if method.shots > 0 else ""
    lacking = {side: [s for s in wanted if s not in method.of(dataset, side)] for side in sides}
    if not any(lacking.values()):
        return []
    if all(lacking[side] == wanted for side in sides):
        return [f"{method.label} has nothing on {dataset}{shots} (seeds {numbers(wanted)})"]
    parts = [
        f"{f'{side} classes ' if side != 'all' else ''}seed {numbers(some)}" for side, some in lacking.items() if some
    ]
    return [f"{method.label} on {dataset}{shots}: {', '.join(parts)}"]


def numbers(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def mixed(methods: list[Method]) -> list[str]:
    """Methods whose name and recipe are the same but whose settings are not: they have rows of their own."""
    lines = []
    for method in methods:
        if method.variant > 1:
            keys = [f"{key} {a} -> {b}" for key, (a, b) in list(method.differs.items())[:6]]
            more = f" and {len(method.differs) - 6} more" if len(method.differs) > 6 else ""
            where = next(iter(method.runs.values())).folder
            lines.append(f"{method.label} has other settings than the first: {'; '.join(keys)}{more} (e.g. {where})")
    return lines


def doubles(methods: list[Method]) -> list[str]:
    """Several folders with the same method, dataset, classes and seed: the newest counts."""
    return [f"{new.folder} counts, {old.folder} is older and left out" for m in methods for new, old in m.doubles]


def half_written(unfinished: list[Unfinished]) -> list[str]:
    return [f"{run.folder}: {run.why}" for run in unfinished]


def sections(
    methods: list[Method], runs: list[Run], unfinished: list[Unfinished], seeds: Sequence[int] | None
) -> dict[str, list[str]]:
    """Heading -> lines; headings without lines are left out."""
    found = {
        "Missing": missing(methods, runs, seeds),
        "Not finished (not in the tables)": half_written(unfinished),
        "Mixed settings or data (kept apart)": mixed(methods),
        "The same run twice": doubles(methods),
    }
    return {heading: lines for heading, lines in found.items() if lines}
