"""Retrieval annotations of the embedded emoji data, in the formats of FDRD, CIRR and Laion-CIR.

Everything is generated at load time from the embedded annotation and is the same on every machine. Concept
families of the test split occur in no training item; the composed queries are asked in the style that the
backbones have not seen.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.archives import Picture
from dassl_prompts.emoji.changes import COLOURS, TONES, Changes
from dassl_prompts.engine.files import write_text

# ---- captioned pictures (FDRD) ---------------------------------------------------------------------------


def attributes(picture: Picture) -> dict:
    """What the caption says, by name; absent attributes are left out."""
    c = picture.concept
    found = {
        "concept": c.name,
        "category": emoji.category(c),
        "tone": picture.tone,
        "gender": c.gender,
        "hair": c.hair,
        "facing": c.facing,
        "colours": c.colours[picture.style],
        "style": emoji.STYLE_WORDS[picture.style],
    }
    return {k: v for k, v in found.items() if v}


def attribute_negatives(picture: Picture, relatives: list, rng: random.Random) -> list[str]:
    """Captions with one attribute wrong, in this order: tone; gender, hair or direction; colour; style."""
    c, wrong = picture.concept, []
    if c.tones:
        tone = rng.choice([t for t in TONES if t != picture.tone])
        wrong.append(emoji.caption(picture, what=f"{c.name} with {tone} skin tone"))
    others = [Picture(r, picture.style, picture.tone) for r in relatives]
    others = [p for p in others if not emoji.is_twin(p)]
    if others:
        wrong.append(emoji.caption(picture, what=emoji.description(rng.choice(others))))
    own = c.colours[picture.style]
    if own:
        wrong.append(emoji.caption(picture, colours=rng.sample([w for w in COLOURS if w not in own], len(own))))
    wrong.append(emoji.caption(picture, style=rng.choice([s for s in emoji.STYLES if s != picture.style])))
    return wrong


def category_negatives(picture: Picture, others: list, rng: random.Random, count: int) -> list[str]:
    """Captions with another category and one of its concepts; colours and style stay."""
    own = emoji.category(picture.concept)
    pool = [c for c in others if emoji.category(c) != own]
    return [emoji.caption(picture, classname=emoji.category(c), what=c.name) for c in rng.sample(pool, count)]


def emoji_fdrd(split: str = "test", style: str = emoji.HELD_OUT) -> dict[str, dict]:
    """FDRD's JSON object {key: record} of one split and style; key and file_name are '<style>-<code points>'.

    A record has file_name, class_name, file_path ('<archive>.zip::<member>'), positive (one caption),
    negative (four: two category swaps, then two attribute swaps) and attributes (what the caption says).

    Args:
        split: train, val or test; concept families do not cross splits.

    Raises:
        ValueError: unknown split or style.
        EmojiDataError: damaged archive.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"unknown split {split!r}: train, val or test")
    pictures = emoji.pictures(style, splits=(split,))
    concepts = [c for c in emoji.concepts() if c.split == split]
    changes = Changes(concepts)
    records = {}
    for p in pictures:
        rng = random.Random(f"fdrd {p.key}")
        swapped = attribute_negatives(p, changes.relatives(p), rng)[:2]
        records[p.key] = {
            "file_name": p.key,
            "class_name": emoji.category(p.concept),
            "file_path": p.path,
            "positive": emoji.caption(p),
            "negative": category_negatives(p, concepts, rng, 4 - len(swapped)) + swapped,
            "attributes": attributes(p),
        }
    return records


# ---- composed queries ------------------------------------------------------------------------------------


def draw_triplets(pictures, kind, change, count, seed) -> list[tuple]:
    """Up to `count` distinct (kind, reference, text, target), references in a seeded order."""
    rng = random.Random(f"{seed} {kind}")
    found, order = {}, list(pictures)
    for _ in range(3):
        rng.shuffle(order)
        for p in order:
            if len(found) >= count:
                return list(found.values())
            drawn = change(p, rng)
            if drawn and not emoji.is_twin(drawn[0]):
                found.setdefault((p.key, drawn[0].key), (kind, p, drawn[1], drawn[0]))
    return list(found.values())


def restyle(pictures, style, text_rng):
    """The same concept and tone drawn by another artist."""
    word = emoji.STYLE_WORDS[style]
    texts = (f"drawn in {word} style", f"the same in {word} style", f"make the drawing {word}")
    drawn = [("style", p, text_rng.choice(texts), Picture(p.concept, style, p.tone)) for p in pictures]
    return [t for t in drawn if not emoji.is_twin(t[3])]


# Queries per kind of change; fewer where the concepts do not offer as many.
VAL_QUERIES = {
    "tone": 350,
    "gender": 250,
    "hair": 100,
    "facing": 50,
    "colour": 50,
    "concept": 450,
    "compound": 150,
    "style": 150,
}
TRAIN_TRIPLETS = {
    "tone": 700,
    "gender": 500,
    "hair": 200,
    "facing": 100,
    "colour": 100,
    "concept": 900,
    "compound": 300,
    "style": 300,
}  # per style


def look_alikes(reference: Picture, target: Picture, changes: Changes, rng: random.Random) -> list[Picture]:
    """Reference, target and four pictures like them: other tones and relatives first, then the subgroup, the group, any."""
    members = {p.key: p for p in (reference, target)}

    def near():
        for c in (target.concept, reference.concept):
            yield from (Picture(c, target.style, tone) for tone in (None, *c.tones))
        yield from (Picture(r, target.style, target.tone) for r in changes.relatives(target))

    def far():
        return (Picture(c, target.style) for c in changes.by_subgroup[target.concept.subgroup])

    def everything():
        return (Picture(c, target.style) for group in changes.by_subgroup.values() for c in group)

    def wide():
        return (p for p in everything() if p.concept.group == target.concept.group)

    for draw in (near, far, wide, everything):
        if len(members) == 6:
            break  # the wide pools are large and seldom needed
        pool = list(draw())
        rng.shuffle(pool)
        for p in pool:
            if len(members) < 6 and not emoji.is_twin(p):
                members.setdefault(p.key, p)
    chosen = list(members.values())
    rng.shuffle(chosen)
    return chosen


def emoji_cirr(split: str = "val") -> dict:
    """CIRR's files for one split: {'captions': cap.rc2 list, 'captions_ext': cap.ext.rc2 list,
    'image_splits': {name: path}}.

    References and targets are test concepts in the held-out style; style queries start from OpenMoji's
    drawing. The gallery (image_splits) holds every held-out picture of the test concepts and OpenMoji's
    default drawings of them.

    Raises:
        ValueError: another split than val (the only one with targets here).
    """
    if split != "val":
        raise ValueError(f"the emoji data has CIRR queries for val only, not {split!r}")
    gallery = emoji.pictures(emoji.HELD_OUT, splits=("test",))
    outlined = emoji.pictures("openmoji", splits=("test",), tones=False)
    changes = Changes([c for c in emoji.concepts() if c.split == "test"])
    rng = random.Random("cirr")
    queries = restyle(rng.sample(outlined, VAL_QUERIES["style"]), emoji.HELD_OUT, rng)
    for kind, change in changes.kinds().items():
        queries += draw_triplets(gallery, kind, change, VAL_QUERIES[kind], "cirr")
    captions, extended = [], []
    for pair, (kind, reference, text, target) in enumerate(queries):
        members = [p.key for p in look_alikes(reference, target, changes, random.Random(f"set {pair}"))]
        captions.append(
            {
                "pairid": pair,
                "reference": reference.key,
                "target_hard": target.key,
                "target_soft": {target.key: 1.0},
                "caption": text,
                "img_set": {
                    "id": pair,
                    "members": members,
                    "reference_rank": members.index(reference.key),
                    "target_rank": members.index(target.key),
                },
            }
        )
        extended.append(
            {
                "pairid": pair,
                "reference": reference.key,
                "target_hard": target.key,
                "caption_extend": {
                    "0": kind,
                    "1": emoji.description(reference),
                    "2": emoji.description(target),
                    "3": "",
                },
            }
        )
    return {
        "captions": captions,
        "captions_ext": extended,
        "image_splits": {p.key: p.path for p in (*gallery, *outlined)},
    }


def emoji_laion_cir() -> dict:
    """Training triplets in Laion-CIR's Template format: {'triplets': [{ref_image_id, relative_cap,
    tgt_image_id}], 'images': {id: path}}.

    Training concepts in the three styles that the backbones have seen.
    """
    concepts = [c for c in emoji.concepts() if c.split == "train"]
    changes, triplets, images = Changes(concepts), [], {}
    seen = [s for s in emoji.STYLES if s != emoji.HELD_OUT]
    for i, style in enumerate(seen):
        pictures = emoji.pictures(style, splits=("train",))
        drawn = [
            t
            for kind, change in changes.kinds().items()
            for t in draw_triplets(pictures, kind, change, TRAIN_TRIPLETS[kind], f"laion {style}")
        ]
        rng = random.Random(f"laion {style} style")
        drawn += restyle(rng.sample(pictures, TRAIN_TRIPLETS["style"]), seen[(i + 1) % len(seen)], rng)
        for _, reference, text, target in drawn:
            triplets.append({"ref_image_id": reference.key, "relative_cap": text, "tgt_image_id": target.key})
            images.update({p.key: p.path for p in (reference, target)})
    return {"triplets": triplets, "images": images}


def write_annotations(folder: str | os.PathLike) -> list[Path]:
    """Write all annotations below `folder` as FDRD/, cirr/ and laion_cir/ files; returns the paths."""
    folder, cirr, laion = Path(folder), emoji_cirr(), emoji_laion_cir()
    files = {f"FDRD/{split}/emoji_{split}.json": emoji_fdrd(split) for split in ("train", "val", "test")}
    files |= {
        "cirr/captions/cap.rc2.val.json": cirr["captions"],
        "cirr/captions_ext/cap.ext.rc2.val.json": cirr["captions_ext"],
        "cirr/image_splits/split.rc2.val.json": cirr["image_splits"],
        "laion_cir/laion_template_info.json": laion["triplets"],
        "laion_cir/images.json": laion["images"],
    }
    for name, content in files.items():
        write_text(json.dumps(content, indent=1) + "\n", folder / name)
    return [folder / name for name in files]
