"""Making an FDRD file for any data set: ask for captions, accept or reject them, add negatives."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dassl_prompts.captions.bpe import CONTEXT, token_count
from dassl_prompts.captions.negatives import (
    NegativeGenerator,
    name_pattern,
    swap_table_meta,
    swap_table_uniform,
)
from dassl_prompts.fdrd.captioners import Captioner, Request, make_request

ROUNDS = 3
#: --negatives -> (how many, of them attribute negatives)
NEGATIVES = {"none": (0, 0), "swap": (4, 0), "attr": (4, 4), "both": (4, 1)}


@dataclass(frozen=True)
class Item:
    """An image to caption: ``path`` to read, ``relative`` to write, class and split ("train" or "test")."""

    path: str
    relative: str
    classname: str
    split: str


@dataclass
class Built:
    """Result of :func:`build`: FDRD objects by split, and what was rejected or changed."""

    splits: dict[str, dict[str, dict]]
    rejected: list[dict] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


def shorten(caption: str, limit: int) -> str:
    """The longest run of leading sentences with at most ``limit`` tokens including SOT and EOT; "" if there
    is none.
    """
    if token_count(caption) <= limit:
        return caption
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$|[A-Z])", caption)]
    for end in reversed(ends):
        if token_count(caption[:end]) <= limit:
            return caption[:end]
    return ""


def repair(caption: str, request: Request, limit: int, notes: Counter) -> tuple[str, str]:
    """``(accepted caption, "")`` or ``("", reason)``; mendable faults are mended and counted in ``notes``."""
    caption = " ".join(caption.split())
    if not caption:
        return "", "there is no caption"
    if not name_pattern(request.classname).search(caption):
        caption = f"A photo of {request.classname}. {caption}"
        notes["opening sentence added, the class name was absent"] += 1
    if not caption.endswith((".", "!", "?")):
        caption += "."
        notes["full stop added"] += 1
    short = shorten(caption, limit)
    if not short or not name_pattern(request.classname).search(short):
        return "", f"longer than {limit} tokens and cannot be cut at a sentence"
    notes["cut to fit"] += short != caption
    return short, ""


def build(
    items: Sequence[Item],
    captioner: Captioner,
    dataset: str,
    *,
    n_ctx: int = 4,
    rounds: int = ROUNDS,
    judge: Callable[[Request, str], str] | None = None,
) -> Built:
    """Caption every item; a rejected caption is asked for again with the reason, at most ``rounds`` times.

    Args:
        items: images; class and split as they shall stand in the file.
        captioner: asked with a :class:`Request`.
        dataset: name that the questions mention.
        n_ctx: prompt tokens for which room is kept: captions have at most 77 - n_ctx - 2 tokens of their own.
        rounds: tries per image.
        judge: a further test, ``(request, caption) -> reason or ""`` (another model, a CLIP score).

    Returns:
        records without negatives, and the rejected images with the last reason.
    """
    if not items:
        raise ValueError("there is no image to caption")
    repeated = [name for name, n in Counter(item.relative for item in items).items() if n > 1]
    if repeated:
        raise ValueError(f"{len(repeated)} images occur more than once, e.g. {repeated[0]}")
    built = Built({item.split: {} for item in items})
    for number, item in enumerate(items):
        request = make_request(item.path, item.relative, item.classname, dataset)
        caption, reason = _ask(request, captioner, CONTEXT - n_ctx, rounds, judge, built.notes)
        if reason:
            built.rejected.append({"path": item.relative, "class": item.classname, "reason": reason})
            continue
        built.splits[item.split][item.relative] = {
            "file_name": item.relative.rpartition("/")[2],
            "class_name": item.classname,
            "file_path": item.relative,
            "positive": caption,
            "negative": [],
            "caption_id": number,
        }
    for split, records in built.splits.items():
        counts = Counter(r["positive"] for r in records.values())
        built.notes[f"captions shared with another image ({split})"] = sum(n for n in counts.values() if n > 1)
    return built


def _ask(request: Request, captioner: Captioner, limit: int, rounds: int, judge, notes: Counter) -> tuple[str, str]:
    """An accepted caption and "", or "" and the reason of the last rejection."""
    reason = ""
    for number in range(1, rounds + 1):
        request = dataclasses.replace(request, round=number, feedback=reason)
        changes = Counter()
        caption, reason = repair(captioner(request), request, limit, changes)
        if not reason and judge is not None:
            reason = judge(request, caption)
        if not reason:
            notes.update(changes)
            return caption, ""
    return "", reason


def add_negatives(built: Built, kind: str, meta: Mapping[str, str] | None = None, seed: int = 0) -> None:
    """Fill ``negative`` (and ``meta``) of all records, split by split.

    Raises:
        ValueError: unknown kind, or the meta table lacks a class.
    """
    if kind not in NEGATIVES:
        raise ValueError(f"--negatives {kind}: choose one of {', '.join(NEGATIVES)}")
    total, n_attr = NEGATIVES[kind]
    names = sorted({r["class_name"] for records in built.splits.values() for r in records.values()})
    swaps = swap_table_meta(names, meta, "--meta") if meta else swap_table_uniform(len(names))
    for records in built.splits.values():
        captions = [r["positive"] for r in records.values()]
        labels = [names.index(r["class_name"]) for r in records.values()]
        generate = (
            NegativeGenerator(names, swaps, captions, labels, total, n_attr, seed=seed, fill=kind == "both")
            if total
            else None
        )
        for index, record in enumerate(records.values()):
            record["negative"] = [text for text, _ in generate(index)] if generate else []
            if meta:
                record["meta"] = meta[record["class_name"]]


def drop_low_scores(built: Built, scores: Mapping[str, float], percentile: float) -> None:
    """Reject the records whose CLIP score lies below the given percentile (0 .. 100) of all scores.

    Args:
        scores: cosine of image and caption by the record's key.
    """
    import numpy as np

    limit = float(np.percentile(list(scores.values()), percentile))
    for records in built.splits.values():
        for key in [key for key in records if scores[key] < limit]:
            reason = f"CLIP score {scores[key]:.3f} is below {limit:.3f}, percentile {percentile:g}"
            built.rejected.append({"path": key, "class": records.pop(key)["class_name"], "reason": reason})
