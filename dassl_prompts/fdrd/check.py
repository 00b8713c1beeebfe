"""What is wrong with an FDRD file: every class of defect that the released files have, counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dassl_prompts.captions.bpe import CONTEXT, token_count
from dassl_prompts.captions.records import FDRDError, Record, load_object, parse_records, usable_negatives
from dassl_prompts.fdrd.domains import CUSTOM, DOMAINS, Domain, ImageFinder

#: prompt lengths for which captions that no longer fit are counted
PROMPT_LENGTHS = (0, 4, 16)
ENDINGS = (".", "!", "?")
#: UCF101: clips of one group are cut from one video, so their frames are near-duplicates
VIDEO_GROUP = re.compile(r"^(.*_g\d+)_")


def guess_domain(path: str | os.PathLike) -> Domain:
    """The domain that a file's name speaks of; ``custom`` when it is none of the nine."""
    stem = Path(path).stem.removeprefix("inter_")
    for domain in DOMAINS.values():
        if stem.rpartition("_")[0] == domain.stem:
            return domain
    return CUSTOM


def check_file(path: str | os.PathLike, domain: Domain | None = None, root: str = "") -> dict:
    """All findings about one file: name -> count or value.

    Args:
        path: the JSON file.
        domain: how to read classes and images; default by the file's name.
        root: dataset root; given, missing images are counted.

    Raises:
        FileNotFoundError, FDRDError: the file cannot be read at all.
    """
    domain = domain or guess_domain(path)
    pairs = load_object(path)
    records, problems = parse_records(pairs)
    classes, unknown = _classes(records, domain)
    report = {
        "domain": domain.name,
        "records": len(pairs),
        "unusable records": len(problems) + len(unknown),
        "reasons": problems + unknown,
        "classes": len(set(classes.values())),
        "records per class": _span(Counter(classes.values()).values()),
        "without class_name": sum(not r.class_name for r in records),
        "key differs from file_name": sum(r.key != r.file_name for r in records),
        "placeholder path": sum(not r.has_path for r in records),
        "absolute path": sum(os.path.isabs(r.file_path.partition("::")[0]) for r in records),
    }
    if records:
        report |= check_captions(records) | check_class_names(records, classes) | check_negatives(records)
        report |= check_substitution(records, classes) | check_video_groups(records)
    if root:
        report |= check_images(records, domain, root)
    return report


def _span(values) -> str:
    values = list(values)
    if not values:
        return "-"
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _classes(records: Sequence[Record], domain: Domain) -> tuple[dict[str, str], list[str]]:
    classes, unknown = {}, []
    for record in records:
        try:
            classes[record.key] = domain.class_of(record)
        except FDRDError as error:
            unknown.append(str(error))
    return classes, unknown


def check_captions(records: Sequence[Record]) -> dict:
    """Length in tokens, repetitions, endings, sides."""
    captions = [r.caption for r in records]
    lengths = sorted(token_count(caption) for caption in captions)
    percent = lambda hits: round(100 * sum(hits) / len(captions), 1)
    report = {
        "caption tokens, mean": round(sum(lengths) / len(lengths), 1),
        "caption tokens, 95th percentile": lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        "caption tokens, longest": lengths[-1],
    }
    for k in PROMPT_LENGTHS:
        name = "captions longer than 77 tokens" if not k else f"captions too long beside {k} prompt tokens"
        report[name] = sum(n > CONTEXT - k for n in lengths)
    return report | {
        "duplicate captions": len(captions) - len(set(captions)),
        "captions without final punctuation (%)": percent(not c.endswith(ENDINGS) for c in captions),
        "captions that mention left or right (%)": percent(
            bool(re.search(r"\b(left|right)\b", c, re.I)) for c in captions
        ),
    }


def check_class_names(records: Sequence[Record], classes: dict[str, str]) -> dict:
    """Captions that do not name their class: by its name, as the key spells it, and as a whole word."""
    plain = lambda text: text.replace("_", " ").lower()
    absent = as_spelled = inside = 0
    for record in records:
        if record.key not in classes:
            continue
        caption, name = plain(record.caption), plain(classes[record.key])
        spelled = name if record.class_name else plain(record.key.rpartition("_")[0])
        absent += name not in caption
        as_spelled += spelled not in caption
        inside += name in caption and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", caption)
    return {
        "class name absent from the caption": absent,
        "class name absent, as the key spells it": as_spelled,
        "class name only inside a longer word": inside,
    }


def check_negatives(records: Sequence[Record]) -> dict:
    """Negatives that equal the positive or each other, and how many are left."""
    same = [[n.strip() == r.caption for n in r.negatives] for r in records]
    left = [len(usable_negatives(r.caption, r.negatives)) for r in records]
    return {
        "negatives per record": _span(len(r.negatives) for r in records),
        "records without negatives": sum(not r.negatives for r in records),
        "records with a negative equal to the positive": sum(any(hits) for hits in same),
        "records whose negatives all equal the positive": sum(bool(hits) and all(hits) for hits in same),
        "records that repeat a negative": sum(len(set(r.negatives)) < len(r.negatives) for r in records),
        "usable negatives": sum(left),
        "usable negatives per record": _span(left),
    }


def check_substitution(records: Sequence[Record], classes: dict[str, str]) -> dict:
    """Words that a careless replacement of the class name broke: "scattered" with "cat" replaced."""
    glued = damaged = 0
    for record in records:
        names = {classes.get(record.key, ""), record.key.rpartition("_")[0].replace("_", " ")} - {""}
        broken = [name for name in names if any(_inside_word(record.caption, m) for m in _places(name, record.caption))]
        glued += bool(broken)
        damaged += sum(any(_is_substitution(record.caption, n, name) for name in broken) for n in record.negatives)
    return {
        "captions with the class name inside another word": glued,
        "negatives damaged by substring replacement": damaged,
    }


def _places(name: str, caption: str, flags: int = re.I) -> list[re.Match]:
    return list(re.finditer(re.escape(name), caption, flags))


def _inside_word(caption: str, place: re.Match) -> bool:
    """Whether letters touch the name; a plural s does not count."""
    before = re.search(r"\w*$", caption[: place.start()])[0]
    after = re.match(r"\w*", caption[place.end() :])[0]
    return bool(before) or after not in ("", "s")


def _is_substitution(caption: str, negative: str, name: str) -> bool:
    """Whether ``negative`` is ``caption`` with one other text at every place of the name."""
    negative = negative.strip()
    if negative == caption:
        return False
    for flags in (0, re.I):
        first, *rest = (re.escape(piece) for piece in re.split(re.escape(name), caption, flags=flags))
        if rest and re.fullmatch(
            f"{first}(.+?){rest[0]}" + "".join(rf"\1{piece}" for piece in rest[1:]), negative, re.S
        ):
            return True
    return False


def video_group(key: str) -> str:
    """The group of a UCF101 key (``v_Archery_g01_c02`` -> ``v_Archery_g01``); "" for other keys."""
    found = VIDEO_GROUP.match(key)
    return found[1] if found else ""


def check_video_groups(records: Sequence[Record]) -> dict:
    """Near-duplicates that bound recall at 1; nothing for files without video groups."""
    groups = Counter(filter(None, (video_group(r.key) for r in records)))
    if not groups:
        return {}
    return {
        "video groups": len(groups),
        "records per video group": _span(groups.values()),
        "near-duplicates (records beyond the first of their video group)": sum(groups.values()) - len(groups),
    }


def check_images(records: Sequence[Record], domain: Domain, root: str) -> dict:
    """Images that the records name and that are not below ``root``."""
    from dassl_prompts.images import missing_images

    find, paths, lost = ImageFinder(domain, root), [], []
    for record in records:
        try:
            paths.append(find(record))
        except FDRDError as error:
            lost.append(str(error))
    missing = missing_images(paths)
    return {"images missing": len(missing) + len(lost), "reasons (images)": [*lost, *missing]}


def check_pair(train: str | os.PathLike, test: str | os.PathLike) -> dict:
    """What two splits share: images, captions word by word, and UCF101's video groups."""
    (train_records, _), (test_records, _) = (parse_records(load_object(path)) for path in (train, test))
    seen = {r.caption for r in train_records}
    report = {
        "keys in both files": len({r.key for r in train_records} & {r.key for r in test_records}),
        "captions of the second file that occur in the first": sum(r.caption in seen for r in test_records),
    }
    groups = [{video_group(r.key) for r in records} - {""} for records in (train_records, test_records)]
    return report | ({"video groups in both files": len(groups[0] & groups[1])} if any(groups) else {})
