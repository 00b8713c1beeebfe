"""Facts of the annotation files that bound or blur results: repetitions, contradictions, blanks.

Made from the files themselves, so that another release gives its own numbers:
``python -m dassl_prompts.composed.data_report CIRR FashionIQ LaionCIR CIRCO --root DATA --facts``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from statistics import mean

from dassl_prompts.composed.triplets import Query, RetrievalTask, TripletDataset

#: part of the data, what is counted, the number as text
Fact = tuple[str, str, str]


def r1_bound(queries: Sequence[Query]) -> float:
    """The highest R@1 in percent that any method can reach.

    Queries of the same reference and wording get the same ranking, and only one image comes first in it: of several
    targets the most frequent one can be right.

    Args:
        queries: at least one, all with targets.
    """
    targets: dict[tuple, Counter] = defaultdict(Counter)
    for query in queries:
        targets[query.reference, query.texts][query.target] += 1
    return 100 * sum(max(found.values()) for found in targets.values()) / len(queries)


def contradictions(queries: Sequence[Query]) -> list[int]:
    """Numbers of different targets of the questions, equal reference and wording, that have several."""
    targets = defaultdict(set)
    for query in queries:
        targets[query.reference, query.texts].add(query.target)
    return [len(found) for found in targets.values() if len(found) > 1]


def repeated(items: Sequence) -> int:
    """Items in excess of the distinct ones."""
    return len(items) - len(set(items))


def task_facts(task: RetrievalTask) -> list[tuple[str, str]]:
    """What every benchmark is asked about."""
    queries = task.queries
    found = [
        ("queries", f"{len(queries):,}"),
        ("pictures in the gallery", f"{len(task.gallery):,}"),
        ("queries that repeat another (reference, caption, target)", f"{repeated(questions(queries, True)):,}"),
    ]
    if all(query.target is not None for query in queries):
        several = contradictions(queries)
        found += [
            ("questions (reference, caption) with several targets", f"{len(several):,}"),
            ("highest R@1 that a method can reach (%)", f"{r1_bound(queries):.2f}"),
        ]
    return found


def questions(queries: Sequence[Query], target: bool) -> list[tuple]:
    return [(q.reference, q.texts, q.target if target else None) for q in queries]


def cirr_facts(dataset: TripletDataset) -> list[Fact]:
    """CIRR val and test1; ``target_soft`` holds graded answers beside ``target_hard``."""
    found = []
    for split in ("val", "test1"):
        (task,) = dataset.tasks(split)
        entries = dataset.read("captions", f"cap.rc2.{split}.json")
        captions = [entry["caption"] for entry in entries]
        facts = task_facts(task)
        facts += [
            ("captions in excess of the distinct ones", f"{repeated(captions):,}"),
            ("blank captions", f"{sum(not caption.strip() for caption in captions):,}"),
        ]
        soft = [(entry, entry["target_soft"]) for entry in entries if "target_soft" in entry]
        if soft:
            lost = sum(t.get(e["reference"]) == 1 and e["target_hard"] not in t for e, t in soft)
            values = Counter(value for _, t in soft for value in t.values())
            others = ", ".join(f"{value:g}: {count:,}" for value, count in sorted(values.items()) if value != 1)
            facts += [
                ("target_soft names the reference with 1 and leaves the target out", f"{lost:,}"),
                ("values in target_soft besides 1", others),
            ]
        found += [(task.name, what, number) for what, number in facts]
    return found


def fashioniq_facts(dataset: TripletDataset) -> list[Fact]:
    """FashionIQ val by category, and what the galleries share."""
    found, galleries = [], {}
    for task in dataset.tasks("val"):
        category = task.name.split()[1]
        entries = dataset.read("captions", f"cap.{category}.val.json")
        pairs = [[caption.strip().lower() for caption in entry["captions"]] for entry in entries]
        asked = [(entry["candidate"], *entry["captions"]) for entry in entries]
        facts = [
            *task_facts(task),
            ("queries that repeat another (reference, captions)", f"{repeated(asked):,}"),
            ("queries with two captions equal up to case", f"{sum(one == other for one, other in pairs):,}"),
            ("queries with an empty first caption", f"{sum(not one for one, _ in pairs):,}"),
        ]
        found += [(task.name, what, number) for what, number in facts]
        galleries[category] = set(task.gallery)
    names = sorted(galleries)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = len(galleries[one] & galleries[other])
            found.append((f"FashionIQ {one}, {other} val", "pictures in both galleries", f"{shared:,}"))
    return found


def laion_facts(dataset: TripletDataset) -> list[Fact]:
    """Laion-CIR's two files, which have two structures."""
    found = []
    for file in dataset.files:
        content = dataset.read(file)
        entries = list(content.values() if isinstance(content, dict) else content)
        numbers = sum(isinstance(entry["tgt_image_id"], int) for entry in entries)
        structure = "dictionary by reference" if isinstance(content, dict) else "list"
        found += [
            (file, "structure", structure),
            (file, "triplets", f"{len(entries):,}"),
            (file, "target ids that are numbers instead of text", f"{numbers:,}"),
        ]
    return found


def circo_facts(dataset: TripletDataset) -> list[Fact]:
    """CIRCO val and test; of the gallery only what the annotations name is needed."""
    found = []
    for split in ("val", "test"):
        entries = dataset.entries(split)
        captions = [entry["relative_caption"] for entry in entries]
        facts = [
            ("queries", f"{len(entries):,}"),
            ("queries that repeat another (reference, caption)", f"{repeated(reference_and_caption(entries)):,}"),
            ("captions in excess of the distinct ones", f"{repeated(captions):,}"),
            ("blank captions", f"{sum(not caption.strip() for caption in captions):,}"),
        ]
        answered = [entry for entry in entries if "gt_img_ids" in entry]
        if answered:
            counts = [len(e["gt_img_ids"]) for e in answered]
            first = sum(e["target_img_id"] == e["gt_img_ids"][0] for e in answered)
            among = sum(e["reference_img_id"] in e["gt_img_ids"] for e in answered)
            aspects = Counter(aspect for e in answered for aspect in e.get("semantic_aspects", []))
            facts += [
                ("the target is the first of the ground truths", f"{first:,} of {len(answered):,}"),
                ("ground truths per query: least, mean, most", f"{min(counts)}, {mean(counts):.2f}, {max(counts)}"),
                ("queries whose ground truths name a picture twice", f"{sum(map(repeats, answered)):,}"),
                ("queries whose reference is a ground truth", f"{among:,}"),
                ("queries per semantic aspect", ", ".join(f"{a}: {n:,}" for a, n in sorted(aspects.items()))),
            ]
        found += [(f"CIRCO {split}", what, number) for what, number in facts]
    return [*found, ("CIRCO", "pictures that the annotations name", f"{len(dataset.named()):,}")]


def reference_and_caption(entries: Sequence[dict]) -> list[tuple]:
    return [(entry["reference_img_id"], entry["relative_caption"]) for entry in entries]


def repeats(entry: dict) -> bool:
    return repeated(entry["gt_img_ids"]) > 0


FACTS: dict[str, Callable[[TripletDataset], list[Fact]]] = {
    "CIRR": cirr_facts,
    "FashionIQ": fashioniq_facts,
    "LaionCIR": laion_facts,
    "CIRCO": circo_facts,
}


def facts_table(datasets: dict[str, TripletDataset]) -> str:
    """A Markdown table of the facts of datasets by name; their images are not looked for."""
    lines = ["| data | fact | number |", "|---|---|---|"]
    for name, dataset in datasets.items():
        dataset.images_optional = True
        lines += [f"| {part} | {what} | {number} |" for part, what, number in FACTS[name](dataset)]
    return "\n".join(lines)
