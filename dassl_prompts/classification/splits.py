"""Splits of classification datasets: base and new classes, few-shot draws, random splits of our own.

Everything here gives the images that Dassl and CoOp give for the same seed. What differs is what happens
around it: the few-shot draw is kept as JSON with relative paths, so that a dataset folder can be moved.
Dassl's own pickled draws are read without executing what is in them.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dassl_prompts.classification.split_files import (
    Splits,
    relative_path,
    to_data,
    to_entries,
)
from dassl_prompts.engine import Datum
from dassl_prompts.engine.files import write_json
from dassl_prompts.engine.reading import read_json
from dassl_prompts.engine.unpickle import read_pickle
from dassl_prompts.images import IMAGE_SUFFIXES, is_image_name, suffix_of

SUBSAMPLES = ("all", "base", "new")
FEWSHOT_FORMAT = 1


# -- folders -----------------------------------------------------------------------------------------------


def list_images(folder: str, left_out: Counter | None = None) -> list[str]:
    """Sorted paths of the image files in ``folder``; ``left_out`` counts the suffixes of the other files.

    Raises:
        ValueError: there is none.
    """
    with os.scandir(folder) as entries:
        files = sorted(entry.name for entry in entries if entry.name[0] != "." and not entry.is_dir())
    names = [name for name in files if is_image_name(name)]
    if left_out is not None:
        left_out.update(suffix_of(name) for name in files if not is_image_name(name))
    if not names:
        raise ValueError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [os.path.join(folder, name) for name in names]


def list_folders(root: str) -> list[str]:
    """Sorted names of the folders in ``root``, hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


# -- random splits of our own, in CoOp's proportions -------------------------------------------------------


def split_by_class(items: Sequence[Datum], rng: random.Random, p_train: float = 0.5, p_val: float = 0.2) -> Splits:
    """Split every class at random into train, val and test (the rest).

    Raises:
        ValueError: a class is too small to give each part an image.
    """
    train, val, test = [], [], []
    for same in by_label(items).values():
        same = rng.sample(same, len(same))
        n_train, n_val = round(len(same) * p_train), round(len(same) * p_val)
        if not (n_train and n_val and n_train + n_val < len(same)):
            raise ValueError(
                f"class {same[0].classname!r} has {len(same)} images, too few for train, val and test: add some, leave the class "
                "out, or say yourself what is train and test"
            )
        train += same[:n_train]
        val += same[n_train : n_train + n_val]
        test += same[n_train + n_val :]
    return Splits(train, val, test)


def split_trainval(trainval: Sequence[Datum], rng: random.Random, p_val: float = 0.2) -> tuple[list, list]:
    """Take ``p_val`` of every class out of an official training list.

    Raises:
        ValueError: a class is too small to give an image to both parts.
    """
    train, val = [], []
    for same in by_label(trainval).values():
        same = rng.sample(same, len(same))
        n_val = round(len(same) * p_val)
        if not 0 < n_val < len(same):
            raise ValueError(f"class {same[0].classname!r} has {len(same)} training images, too few to take val from")
        val += same[:n_val]
        train += same[n_val:]
    return train, val


# -- classes and shots -------------------------------------------------------------------------------------


def by_label(items: Iterable[Datum]) -> dict[int, list[Datum]]:
    """Items of each label; labels in order of first appearance, which is the order that Dassl draws in."""
    groups = defaultdict(list)
    for item in items:
        groups[item.label].append(item)
    return dict(groups)


def subsample_classes(*sets: Sequence[Datum], subsample: str = "all") -> list[list[Datum]]:
    """CoOp's base-to-new protocol: the first ceil(n/2) labels of the first set are base, the rest new.

    Labels are renumbered from 0 in each half.

    Raises:
        ValueError: ``subsample`` is not all, base or new, or the half has no class.
    """
    if subsample not in SUBSAMPLES:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}; choose one of {', '.join(SUBSAMPLES)}")
    if subsample == "all":
        return [list(items) for items in sets]
    labels = sorted({item.label for item in sets[0]})
    n_base = math.ceil(len(labels) / 2)
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    chosen = labels[:n_base] if subsample == "base" else labels[n_base:]
    if not chosen:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES {subsample}: {len(labels)} class leaves none for it")
    new_label = {label: i for i, label in enumerate(chosen)}
    return [
        [
            Datum(impath=x.impath, label=new_label[x.label], domain=x.domain, classname=x.classname)
            for x in items
            if x.label in new_label
        ]
        for items in sets
    ]


def draw_shots(items: Sequence[Datum], shots: int, rng: random.Random, repeat: bool = False) -> list[Datum]:
    """``shots`` items of every class, as Dassl's sampler draws them from the same generator state.

    A class with fewer items gives all of them in their order, or with ``repeat`` draws with replacement.
    """
    drawn = []
    for same in by_label(items).values():
        if len(same) >= shots:
            drawn += rng.sample(same, shots)
        else:
            drawn += rng.choices(same, k=shots) if repeat else same
    return drawn


def few_shot(
    train: Sequence[Datum],
    val: Sequence[Datum],
    shots: int,
    seed: int,
    image_root: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
) -> tuple[list[Datum], list[Datum]]:
    """Draw ``shots`` training and ``min(shots, 4)`` validation images of every class.

    The draw equals Dassl's after ``set_random_seed(seed)``, but from a generator of its own, so that the rest
    of the run does not depend on whether a cached draw was found. A negative seed draws from Python's global
    generator and is never cached.

    Args:
        train, val: the full lists over all classes; the base/new split comes after the draw. val may be
            empty.
        shots: images per class; below 1 the lists are returned as they are.
        image_root: what cached paths are relative to.
        cache_dir: CoOp's ``split_fewshot`` folder; None neither reads nor writes. A ``shot_N-seed_S.pkl`` of
            Dassl's found there decides which images are used; otherwise the draw is kept in
            ``shot_N-seed_S.json``. A folder that cannot be written is reported once and costs nothing but the
            draw.

    Raises:
        ValueError: a cache file is damaged, or names other images or labels than ``train`` and ``val`` have; a ``.json``
            also where a class has not its number of shots.
    """
    if shots < 1:
        return list(train), list(val)
    _report_small_classes(train, shots)
    if cache_dir is None or seed < 0:
        return _draw(train, val, shots, random if seed < 0 else random.Random(seed))

    stem = os.path.join(os.fspath(cache_dir), f"shot_{shots}-seed_{seed}")
    if os.path.exists(stem + ".pkl"):
        print(f"Loading preprocessed few-shot data from {stem}.pkl")
        return _read_dassl_fewshot(stem + ".pkl", train, val, image_root)
    source = {"num_shots": shots, "seed": seed, "source_sha256": _hash_source(train, val, image_root)}
    cached = _read_fewshot(stem + ".json", source, train, val, image_root)
    if cached is None:
        cached = _draw(train, val, shots, random.Random(seed))
        _write_fewshot(stem + ".json", source, cached, image_root)
    return cached


def _draw(train, val, shots: int, rng) -> tuple[list[Datum], list[Datum]]:
    print(f"Creating a {shots}-shot dataset")
    train = draw_shots(train, shots, rng)
    if not val:
        return train, []
    print(f"Creating a {min(shots, 4)}-shot dataset")
    return train, draw_shots(val, min(shots, 4), rng)


def _report_small_classes(train: Sequence[Datum], shots: int) -> None:
    if said := small_classes({same[0].classname: len(same) for same in by_label(train).values()}, shots):
        print(said)


def small_classes(counts: Mapping[str, int], shots: int) -> str:
    """A line that names the classes with fewer training images than a draw asks for; "" if there is none.

    Args:
        counts: training images by class name.
    """
    small = sorted((count, name) for name, count in counts.items() if count < shots)
    if not small:
        return ""
    named = ", ".join(f"{name!r} {count}" for count, name in small[:5])
    more = f" and {len(small) - 5} more" if len(small) > 5 else ""
    return f"{len(small)} classes have fewer than {shots} training images and give all they have: {named}{more}"


def _hash_source(train: Sequence[Datum], val: Sequence[Datum], image_root) -> str:
    digest = hashlib.sha256()
    for part in (train, val):
        for relative, label, _ in to_entries(part, image_root):
            digest.update(f"{relative}\t{label}\n".encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()


def _read_fewshot(path: str, source: dict, train, val, image_root) -> tuple[list[Datum], list[Datum]] | None:
    """The draw kept in ``path``; None when there is none or it was drawn from other lists.

    Raises:
        ValueError: it does not belong to these lists, although it says so: an image of another part, another label, a class
            without its number of shots.
    """
    if not os.path.exists(path):
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in ("train", "val")):
        raise ValueError(f"few-shot file {path} lacks the lists train and val; delete it, the draw is repeatable")
    if content.get("format") != FEWSHOT_FORMAT or any(content.get(key) != value for key, value in source.items()):
        print(f"{path} was drawn from another split: drawing again")
        return None
    print(f"Loading preprocessed few-shot data from {path}")
    root = os.path.join(os.fspath(image_root), "")
    drawn = []
    for part, items, shots in (("train", train, source["num_shots"]), ("val", val, min(source["num_shots"], 4))):
        origin = f"{path}, {part}"
        known = {relative_path(item.impath, root): item for item in items}
        kept = [_match(old, known, origin) for old in to_data(content[part], os.fspath(image_root), origin)]
        _check_counts(kept, items, shots, origin)
        drawn.append(kept)
    return drawn[0], drawn[1]


def _check_counts(kept: Sequence[Datum], items: Sequence[Datum], shots: int, origin: str) -> None:
    """
    Raises:
        ValueError: an image stands twice, or a class has more or fewer images than a draw gives it.
    """
    wanted = {label: min(shots, len(same)) for label, same in by_label(items).items()}
    distinct = {label: len({item.impath for item in same}) for label, same in by_label(kept).items()}
    wrong = [f"{distinct.get(k, 0)} of {n} images of label {k}" for k, n in wanted.items() if distinct.get(k, 0) != n]
    if len(kept) != sum(wanted.values()):
        wrong.append(f"{len(kept)} images, not {sum(wanted.values())}")
    if wrong:
        raise ValueError(f"few-shot cache {origin}: it has {wrong[0]}; delete it to draw again")


_unwritable: set[str] = set()


def _write_fewshot(path: str, source: dict, drawn: tuple[list[Datum], list[Datum]], image_root) -> None:
    train, val = (to_entries(part, image_root) for part in drawn)
    try:
        write_json({"format": FEWSHOT_FORMAT, **source, "train": train, "val": val}, path)
    except OSError as error:
        folder = os.path.dirname(path)
        if folder not in _unwritable:
            _unwritable.add(folder)
            print(f"The few-shot draw is not kept: {folder} cannot be written ({error.strerror})")
    else:
        print(f"Saving preprocessed few-shot data to {path}")


def _read_dassl_fewshot(path: str, train, val, image_root) -> tuple[list[Datum], list[Datum]]:
    """Our items of the images that Dassl's pickled draw names, in its order.

    The pickle holds absolute paths of the machine that wrote it. Each is matched by its longest trailing part
    that is a relative path of the split, so the dataset folder may have moved.
    """
    content = read_pickle(path)
    root = os.path.join(os.fspath(image_root), "")
    drawn = []
    for part, source in (("train", train), ("val", val)):
        if not source:  # ImageNet's draw has no val
            drawn.append([])
            continue
        if not isinstance(content, dict) or part not in content:
            raise ValueError(f"few-shot cache {path} has no list {part!r}; delete it to draw again")
        known = {relative_path(item.impath, root): item for item in source}
        drawn.append([_match(old, known, f"{path}, {part}") for old in content[part]])
    return drawn[0], drawn[1]


def _match(old: Datum, known: dict[str, Datum], origin: str) -> Datum:
    if not hasattr(old, "impath"):
        raise ValueError(f"few-shot cache {origin}: {old!r} is no image record; delete it to draw again")
    parts = old.impath.replace("\\", "/").split("/")
    item = next((known[tail] for i in range(len(parts)) if (tail := "/".join(parts[i:])) in known), None)
    if item is None:
        raise ValueError(f"few-shot cache {origin}: {old.impath!r} is not in this split; delete it to draw again")
    if item.label != old.label:
        raise ValueError(
            f"few-shot cache {origin}: {old.impath!r} has label {old.label} there and {item.label} "
            "in this split; delete it to draw again"
        )
    return item
