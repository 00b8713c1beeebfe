"""Image-text retrieval both ways: recall at K, text-equal recall, per class; features in and out of files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dassl_prompts.engine import EvaluatorBase, add_defaults, register_evaluator
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.reading import read_npz
from dassl_prompts.ranking.exact import equal_groups, recall_at, target_ranks, topk

KS = (1, 5, 10)
DIRECTIONS = {"i2t": "image-to-text", "t2i": "text-to-image"}
#: score of (image index, text index) pairs, both [P] -> [P]
PairScore = Callable[[Tensor, Tensor], Tensor]


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


@dataclass
class Gallery:
    """Features of a test set: N images, M captions.

    Attributes:
        image: ``[N, E]``, text: ``[M, E]``; both are compared by cosine.
        image_of_text: ``[M]`` the image that each caption belongs to; default one caption per image, in
            order.
        captions: M strings, for text-equal recall; may be empty.
        labels: ``[N]`` class of each image, for the per-class breakdown; may be None.
    """

    image: Tensor
    text: Tensor
    image_of_text: Tensor | None = None
    captions: Sequence[str] = field(default_factory=list)
    labels: Tensor | None = None

    def __post_init__(self):
        for side, x in (("image", self.image), ("text", self.text)):
            if x.ndim != 2 or x.shape[1] != self.image.shape[-1]:
                raise ValueError(
                    f"{side} has shape {tuple(x.shape)}: image must be [N, E], text [M, E] with the same E"
                )
        n, m = len(self.image), len(self.text)
        if self.image_of_text is None:
            if n != m:
                raise ValueError(
                    f"{n} images and {m} captions: give image_of_text, the image that each caption belongs to"
                )
            self.image_of_text = torch.arange(n)
        self.image_of_text = torch.as_tensor(self.image_of_text).long()
        if (
            len(self.image_of_text) != m
            or not m
            or int(self.image_of_text.min()) < 0
            or int(self.image_of_text.max()) >= n
        ):
            raise ValueError(f"image_of_text must hold an image index 0 .. {n - 1} for each of the {m} captions")
        if len(set(self.image_of_text.tolist())) != n:
            raise ValueError("every image needs at least one caption")
        if self.captions and len(self.captions) != m:
            raise ValueError(f"{len(self.captions)} caption texts for {m} caption features")
        if self.labels is not None and len(self.labels) != n:
            raise ValueError(f"{len(self.labels)} labels for {n} images")
        self.image, self.text = (torch.nn.functional.normalize(x.float(), dim=1) for x in (self.image, self.text))

    def targets(self, text_equal: bool = False) -> dict[str, Tensor]:
        """Right answers per query, padded with -1: ``i2t`` ``[N, *]`` caption indices, ``t2i`` ``[M, *]``
        image indices.
        """
        owner = self.image_of_text.tolist()
        if text_equal and not self.captions:
            raise ValueError("text-equal recall needs the caption texts")
        groups = equal_groups(self.captions if text_equal else range(len(owner))).tolist()
        of_image: list[set] = [set() for _ in range(len(self.image))]
        images = []
        for text, group in enumerate(groups):
            members = [j for j in group if j >= 0]
            of_image[owner[text]].update(members)
            images.append(sorted({owner[j] for j in members}))
        return {"i2t": _pad([sorted(x) for x in of_image]), "t2i": _pad(images)}


def _pad(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


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
        chunk: queries at a time.
        rerank: ``(R, score)``: the first R candidates of every query are ordered anew by ``score(images,
            texts)``.
    """
    sides = {"i2t": (gallery.image, gallery.text), "t2i": (gallery.text, gallery.image)}
    ranks = {}
    for direction, target in gallery.targets(text_equal).items():
        queries, candidates = sides[direction]
        ranks[direction] = target_ranks(queries, candidates, target, chunk=chunk)
        if rerank:
            ranks[direction] = _reranked(direction, queries, candidates, target, ranks[direction], chunk, *rerank)
    return ranks


def _reranked(direction, queries, candidates, target, ranks, chunk, size: int, score: PairScore) -> Tensor:
    """Ranks after the first ``size`` candidates were ordered by ``score``; targets further back keep their
    rank.
    """
    size = min(size, len(candidates))
    _, found = topk(queries, candidates, size, chunk=chunk)
    query = torch.arange(len(queries), device=found.device)[:, None].expand_as(found)
    pair = (query, found) if direction == "i2t" else (found, query)
    scores = score(pair[0].flatten(), pair[1].flatten()).reshape(found.shape)
    right = (found[:, :, None] == target.to(found.device)[:, None, :]).any(2)
    best = scores.masked_fill(~right, -torch.inf).max(1, keepdim=True).values
    first = found.masked_fill(~right | (scores < best), len(candidates)).min(1, keepdim=True).values
    new = 1 + (scores > best).sum(1) + ((scores == best) & (found < first)).sum(1)
    return torch.where(right.any(1), new, ranks)


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


def save_features(gallery: Gallery, path: str | os.PathLike) -> None:
    """Write an ``.npz`` with ``image``, ``text``, ``image_of_text`` and, where known, ``captions`` and
    ``labels``.
    """
    import numpy as np

    arrays = {"image": gallery.image, "text": gallery.text, "image_of_text": gallery.image_of_text}
    if gallery.labels is not None:
        arrays["labels"] = torch.as_tensor(gallery.labels)
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
    labels = arrays.get("labels")
    try:
        return Gallery(
            torch.from_numpy(arrays["image"]),
            torch.from_numpy(arrays["text"]),
            arrays.get("image_of_text"),
            [str(c) for c in arrays.get("captions", ())],
            None if labels is None else torch.from_numpy(labels),
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
    ranks = retrieval_ranks(gallery, chunk=chunk, rerank=rerank)
    results = summarise(ranks)
    print(
        f"=> result\n* images: {len(gallery.image):,}  captions: {len(gallery.text):,}\n{table(results)}\n"
        f"* mean R@1: {results['mean_r1']:.2f}%"
    )
    if text_equal:
        equal = summarise(retrieval_ranks(gallery, text_equal=True, chunk=chunk, rerank=rerank))
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
    counted from 0 in each part. ``rerank`` is an optional attribute, see :func:`retrieval_ranks`.
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
        return Gallery(image, text, torch.cat(self._owner), self._captions, labels)

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
