"""Image-text retrieval both ways: recall at K, text-equal recall, categories against attributes, per class; files of features."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dassl_prompts.captions.categories import categories, categories_table, negative_accuracy
from dassl_prompts.captions.gallery import DIRECTIONS, Gallery, Negatives, PairScore, rankings
from dassl_prompts.engine import EvaluatorBase, add_defaults, register_evaluator
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.reading import read_npz
from dassl_prompts.ranking.exact import recall_at

KS = (1, 5, 10)


def extend_cfg(cfg) -> None:
    """Keys of the ``Retrieval`` evaluator."""
    add_defaults(
        cfg,
        "TEST.RETRIEVAL",
        {
            "TEXT_EQUAL": False,  # also report recall where every caption with the same text counts
            "SAVE_FEATURES": False,  # write OUTPUT_DIR/features_<split>.npz
            "CHUNK": 0,  # queries ranked at a time; 0 = as many as fit into 64 MB of scores
        },
    )


# -- ranks ---------------------------------------------------------------------------------------------------


def retrieval_ranks(
    gallery: Gallery,
    *,
    text_equal: bool = False,
    chunk: int | None = None,
    rerank: tuple[int, PairScore] | None = None,
) -> dict[str, Tensor]:
    """Rank of the best right answer of every query, in both directions.

    Args:
        gallery: features and pairing.
        text_equal: captions with equal texts are equally right.
        chunk, rerank: as in :class:`Ranking`.
    """
    ways, targets = rankings(gallery, chunk=chunk, rerank=rerank), gallery.targets(text_equal)
    return {direction: way.ranks(targets[direction]) for direction, way in ways.items()}


def summarise(ranks: dict[str, Tensor], ks: Sequence[int] = KS) -> OrderedDict[str, float]:
    """``mean_r1`` (of both directions) first, then ``i2t_r1`` ... ``t2i_r10``, in percent."""
    values = {f"{direction}_r{k}": v for direction, r in ranks.items() for k, v in recall_at(r, ks).items()}
    return OrderedDict(mean_r1=sum(recall_at(r, (1,))[1] for r in ranks.values()) / len(ranks), **values)


def per_class(ranks: dict[str, Tensor], gallery: Gallery, k: int = 1) -> dict[int, dict[str, float]]:
    """Recall at ``k`` of the queries of each class: label -> {direction: percent, "total": images}."""
    labels = {"i2t": torch.as_tensor(gallery.labels).cpu()}
    labels["t2i"] = labels["i2t"][gallery.image_of_text]
    found = {}
    for label in sorted(set(labels["i2t"].tolist())):
        row = {d: recall_at(r.cpu()[labels[d] == label], (k,))[k] for d, r in ranks.items()}
        found[label] = {**row, "total": int((labels["i2t"] == label).sum())}
    return found


def table(results: dict[str, float], ks: Sequence[int] = KS, prefix: str = "") -> str:
    """The two lines that a user reads."""
    return "\n".join(
        f"* {name:<14}" + "".join(f"  R@{k} {results[f'{prefix}{direction}_r{k}']:6.2f}%" for k in ks)
        for direction, name in DIRECTIONS.items()
    )


# -- files of features ---------------------------------------------------------------------------------------

#: arrays of a feature file that make :class:`Negatives`
NEGATIVE_ARRAYS = ("negative", "negative_caption", "negative_kind")


def save_features(gallery: Gallery, path: str | os.PathLike) -> None:
    """Write an ``.npz`` with ``image``, ``text``, ``image_of_text`` and, where known, ``captions``, ``labels`` and negative
    captions (``negative``, ``negative_caption``, ``negative_kind``, see :class:`Negatives`).
    """
    import numpy as np

    arrays = {"image": gallery.image, "text": gallery.text, "image_of_text": gallery.image_of_text}
    if gallery.labels is not None:
        arrays["labels"] = torch.as_tensor(gallery.labels)
    if gallery.negatives is not None:
        arrays |= dict(
            zip(NEGATIVE_ARRAYS, (gallery.negatives.text, gallery.negatives.caption, gallery.negatives.kind))
        )
    arrays = {name: value.cpu().numpy() for name, value in arrays.items()}
    if gallery.captions:
        arrays["captions"] = np.array(list(gallery.captions))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_features(path: str | os.PathLike) -> Gallery:
    """Read features that :func:`save_features` or any other program wrote; needs ``image`` and ``text``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an ``.npz`` of plain arrays, an array is missing or does not fit; names the file.
    """
    arrays = read_npz(path)
    missing = [name for name in ("image", "text") if name not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {' and '.join(missing)} (it has {', '.join(arrays)}): image [N, E] and text [M, E]"
        )
    labels, given = arrays.get("labels"), [name for name in NEGATIVE_ARRAYS if name in arrays]
    if given and len(given) < len(NEGATIVE_ARRAYS):
        raise ValueError(f"{path} has {' and '.join(given)}: negative captions need {', '.join(NEGATIVE_ARRAYS)}")
    try:
        return Gallery(
            torch.from_numpy(arrays["image"]),
            torch.from_numpy(arrays["text"]),
            arrays.get("image_of_text"),
            [str(c) for c in arrays.get("captions", ())],
            None if labels is None else torch.from_numpy(labels),
            Negatives(*(torch.from_numpy(arrays[name]) for name in NEGATIVE_ARRAYS)) if given else None,
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


# -- the evaluator -------------------------------------------------------------------------------------------


def evaluate(
    gallery: Gallery,
    *,
    text_equal: bool = False,
    chunk: int | None = None,
    rerank: tuple[int, PairScore] | None = None,
    class_names: dict[int, str] | None = None,
) -> OrderedDict[str, float]:
    """Rank, print, return all results in percent; ``class_names`` asks for the per-class lines."""
    ways, targets = rankings(gallery, chunk=chunk, rerank=rerank), gallery.targets()
    ranks = {direction: way.ranks(targets[direction]) for direction, way in ways.items()}
    results = summarise(ranks)
    print(
        f"=> result\n* images: {len(gallery.image):,}  captions: {len(gallery.text):,}\n{table(results)}\n"
        f"* mean R@1: {results['mean_r1']:.2f}%"
    )
    results.update({**categories(ways, gallery, ranks, KS), **negative_accuracy(gallery)})
    if lines := categories_table(results, KS):
        print(f"=> categories against attributes\n{lines}")
    if text_equal:
        targets = gallery.targets(text_equal=True)
        equal = summarise({direction: way.ranks(targets[direction]) for direction, way in ways.items()})
        results.update({f"text_equal_{name}": value for name, value in equal.items()})
        print(f"=> captions with equal texts count\n{table(results, prefix='text_equal_')}")
    if class_names is not None:
        print("=> per-class result")
        for label, row in per_class(ranks, gallery).items():
            print(
                f"* class: {label} ({class_names.get(label, '?')})\ttotal: {row['total']:,}\t"
                f"i2t R@1: {row['i2t']:.1f}%\tt2i R@1: {row['t2i']:.1f}%"
            )
    return results


@register_evaluator
class Retrieval(EvaluatorBase):
    """Recall of images and captions; the first result, ``mean_r1``, is the mean of both directions' R@1.

    ``process(features, truth)`` may come in parts: ``features`` holds ``image [B, E]`` and ``text [B, E]``,
    ``truth`` the ``label [B]`` and ``caption`` (strings) of the same pairs. Where images have several captions,
    image features and labels come once per image, and ``truth["image"]`` holds the image of every caption,
    counted from 0 in each part. Annotated negative captions: ``features["negative"] [K, E]``, with ``truth["negative_caption"]``,
    ``truth["negative_kind"]`` as in :class:`Negatives`, captions counted from 0 in each part. ``rerank`` is an optional
    attribute, see :func:`retrieval_ranks`.
    """

    def __init__(self, cfg, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname)")
        self._lab2cname = lab2cname
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._image, self._text, self._labels, self._captions, self._owner = [], [], [], [], []
        self._negatives: list[tuple[Tensor, Tensor, Tensor]] = []
        self.rerank: tuple[int, PairScore] | None = None

    def process(self, mo: dict[str, Tensor], gt: dict) -> None:
        """Add pairs.

        Raises:
            ValueError: the numbers of images, captions and labels differ.
        """
        owner = gt.get("image", torch.arange(len(mo["image"])))
        counts = [len(mo["image"]), len(gt["label"]), len(mo["text"]), len(gt["caption"]), len(owner)]
        if counts[0] != counts[1] or len(set(counts[2:])) != 1:
            raise ValueError(f"images, captions and labels of a batch differ in number: {sorted(set(counts))}")
        if "negative" in mo:
            against = torch.as_tensor(gt["negative_caption"]).cpu() + len(self._captions)
            self._negatives.append((mo["negative"], against, torch.as_tensor(gt["negative_kind"]).cpu()))
        self._owner.append(torch.as_tensor(owner).cpu() + sum(map(len, self._image)))
        self._image.append(mo["image"])
        self._text.append(mo["text"])
        self._labels.append(torch.as_tensor(gt["label"]))
        self._captions += gt["caption"]

    def gallery(self) -> Gallery:
        """What was processed so far.

        Raises:
            ValueError: nothing was.
        """
        if not self._image:
            raise ValueError(f"{self.cfg.DATASET.NAME}: nothing to evaluate, the split has no image")
        image, text, labels = (torch.cat(parts) for parts in (self._image, self._text, self._labels))
        negatives = Negatives(*map(torch.cat, zip(*self._negatives))) if self._negatives else None
        return Gallery(image, text, torch.cat(self._owner), self._captions, labels, negatives)

    def evaluate(self) -> OrderedDict[str, float]:
        node = self.cfg.TEST.RETRIEVAL
        names = self._lab2cname if self.cfg.TEST.PER_CLASS_RESULT else None
        return evaluate(
            self.gallery(),
            text_equal=node.TEXT_EQUAL,
            chunk=node.CHUNK or None,
            rerank=self.rerank,
            class_names=names,
        )

    def save(self, split: str) -> None:
        """Write ``OUTPUT_DIR/features_<split>.npz`` where ``TEST.RETRIEVAL.SAVE_FEATURES`` asks for it."""
        if self.cfg.TEST.RETRIEVAL.SAVE_FEATURES:
            path = Path(self.cfg.OUTPUT_DIR) / f"features_{split}.npz"
            save_features(self.gallery(), path)
            print(f"Features are saved to {path}")
