"""Image-text retrieval both ways: recall at K, text-equal recall, categories against attributes, per class; files of features."""

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
from dassl_prompts.ranking.exact import category_ranks, equal_groups, recall_at, target_ranks, topk

KS = (1, 5, 10)
DIRECTIONS = {"i2t": "image-to-text", "t2i": "text-to-image"}
#: kinds of annotated negative captions, by their number: another category, or the same with other attributes
NEGATIVE_KINDS = ("category", "attributes")
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
class Negatives:
    """Captions that do not describe an image, annotated for its caption.

    Attributes:
        text: ``[K, E]`` features. caption: ``[K]`` the caption that each stands against. kind: ``[K]`` index into
            :data:`NEGATIVE_KINDS`.
    """

    text: Tensor
    caption: Tensor
    kind: Tensor

    def __post_init__(self):
        self.caption, self.kind = (torch.as_tensor(x).long() for x in (self.caption, self.kind))
        if self.text.ndim != 2 or not len(self.text) == len(self.caption) == len(self.kind):
            raise ValueError(
                f"{len(self.text)} negative captions [K, E] need as many captions that they stand against "
                f"({len(self.caption)}) and kinds ({len(self.kind)})"
            )
        if len(self.kind) and not 0 <= int(self.kind.min()) <= int(self.kind.max()) < len(NEGATIVE_KINDS):
            raise ValueError("the kind of a negative caption is 0 (another category) or 1 (other attributes)")
        self.text = torch.nn.functional.normalize(self.text.float(), dim=1)


@dataclass
class Gallery:
    """Features of a test set: N images, M captions.

    Attributes:
        image: ``[N, E]``, text: ``[M, E]``; both are compared by cosine.
        image_of_text: ``[M]`` the image that each caption belongs to; default one caption per image, in
            order.
        captions: M strings, for text-equal recall; may be empty.
        labels: ``[N]`` class of each image, for categories against attributes and per class; may be None.
        negatives: annotated negative captions; may be None.
    """

    image: Tensor
    text: Tensor
    image_of_text: Tensor | None = None
    captions: Sequence[str] = field(default_factory=list)
    labels: Tensor | None = None
    negatives: Negatives | None = None

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
        if self.negatives is not None and len(self.negatives.text):
            against, width = self.negatives.caption, self.negatives.text.shape[1]
            if int(against.min()) < 0 or int(against.max()) >= m or width != self.image.shape[1]:
                raise ValueError(
                    f"negative captions need a caption index 0 .. {m - 1} each and width {self.image.shape[1]}, they have "
                    f"{int(against.min())} .. {int(against.max())} and width {width}"
                )
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


class Ranking:
    """One direction of a gallery: where right answers stand among all candidates.

    Args:
        gallery: features. direction: of :data:`DIRECTIONS`. chunk: queries at a time.
        rerank: ``(R, score)``: the first R candidates of every query are ordered anew by ``score(images, texts)``; those
            further back keep their rank.
    """

    def __init__(
        self, gallery: Gallery, direction: str, chunk: int | None = None, rerank: tuple[int, PairScore] | None = None
    ):
        sides = (gallery.image, gallery.text)
        self.queries, self.candidates = sides if direction == "i2t" else sides[::-1]
        self.chunk, self.found = chunk, None
        if rerank:
            size, score = rerank
            _, self.found = topk(self.queries, self.candidates, min(size, len(self.candidates)), chunk=chunk)
            query = torch.arange(len(self.queries), device=self.found.device)[:, None].expand_as(self.found)
            pair = (query, self.found) if direction == "i2t" else (self.found, query)
            self.scores = score(pair[0].flatten(), pair[1].flatten()).reshape(self.found.shape)

    def ranks(self, target: Tensor) -> Tensor:
        """Rank ``[Q]`` of the best right answer of every query; ``target [Q, *]`` is padded with -1."""
        return self._reranked(
            target_ranks(self.queries, self.candidates, target, chunk=self.chunk), self._among(target)
        )

    def category_ranks(self, target: Tensor, query_labels: Tensor, candidate_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks ``[Q]`` of the first candidate of the query's category, and of the best right answer among these."""
        labels = [labels.to(self.candidates.device) for labels in (query_labels, candidate_labels)]
        nearest, within = category_ranks(self.queries, self.candidates, target, *labels, chunk=self.chunk)
        if self.found is None:
            return nearest, within
        same = labels[1][self.found] == labels[0][:, None]
        return self._reranked(nearest, same), self._reranked(within, self._among(target), same)

    def _among(self, target: Tensor) -> Tensor | None:
        """Which of the first candidates ``[Q, R]`` are right."""
        if self.found is None:
            return None
        return (self.found[:, :, None] == target.to(self.found.device)[:, None, :]).any(2)

    def _reranked(self, ranks: Tensor, right: Tensor | None, among: Tensor | None = None) -> Tensor:
        """Ranks in the new order, counted among the candidates that ``among [Q, R]`` marks (default all)."""
        if right is None:
            return ranks
        found, scores = self.found, self.scores
        best = scores.masked_fill(~right, -torch.inf).max(1, keepdim=True).values
        first = found.masked_fill(~right | (scores < best), len(self.candidates)).min(1, keepdim=True).values
        before = (scores > best) | ((scores == best) & (found < first))
        return torch.where(right.any(1), 1 + (before if among is None else before & among).sum(1), ranks)


def rankings(
    gallery: Gallery, *, chunk: int | None = None, rerank: tuple[int, PairScore] | None = None
) -> dict[str, Ranking]:
    """Both directions of a gallery, ready to be asked for ranks; see :class:`Ranking`."""
    return {direction: Ranking(gallery, direction, chunk, rerank) for direction in DIRECTIONS}


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


def categories(
    ways: dict[str, Ranking], gallery: Gallery, ranks: dict[str, Tensor], ks: Sequence[int] = KS
) -> OrderedDict[str, float]:
    """Categories against attributes, in percent of the queries; empty where the gallery has not two categories.

    ``<direction>_wrong_category`` and ``_wrong_attributes``: the first answer is of another category, or of the right one
    and yet wrong; with R@1 they are 100. ``_category_r<k>``: one of the first k is of the query's category.
    ``_within_r<k>``: recall of the right answer among the candidates of its category.

    Args:
        ways: of :func:`rankings`. gallery: with labels. ranks: of the right answers, by direction.
    """
    results: OrderedDict[str, float] = OrderedDict()
    if gallery.labels is None or len(set(torch.as_tensor(gallery.labels).tolist())) < 2:
        return results
    image = torch.as_tensor(gallery.labels).cpu()
    labels, targets = (image, image[gallery.image_of_text.cpu()]), gallery.targets()
    for direction, way in ways.items():
        sides = labels if direction == "i2t" else labels[::-1]
        nearest, within = way.category_ranks(targets[direction], *sides)
        wrong = {"category": nearest > 1, "attributes": (nearest == 1) & (ranks[direction] > 1)}
        results.update({f"{direction}_wrong_{kind}": 100.0 * int(x.sum()) / len(x) for kind, x in wrong.items()})
        for name, found in (("category", nearest), ("within", within)):
            results.update({f"{direction}_{name}_r{k}": v for k, v in recall_at(found, ks).items()})
    return results


def negative_accuracy(gallery: Gallery) -> OrderedDict[str, float]:
    """``negatives_category`` and ``negatives_attributes``: of the captions with annotated negatives of the kind, the percentage
    that scores higher with their image than each of them does; a tie is wrong.
    """
    results: OrderedDict[str, float] = OrderedDict()
    negatives = gallery.negatives
    if negatives is None:
        return results
    image = gallery.image[gallery.image_of_text.to(gallery.image.device)]
    own, caption = (image * gallery.text).sum(1), negatives.caption.to(image.device)
    beaten = own[caption] > (image[caption] * negatives.text).sum(1)
    for number, kind in enumerate(NEGATIVE_KINDS):
        chosen = negatives.kind.to(image.device) == number
        asked, wrong = caption[chosen].unique(), caption[chosen & ~beaten].unique()
        if len(asked):
            results[f"negatives_{kind}"] = 100.0 * (len(asked) - len(wrong)) / len(asked)
    return results


def categories_table(results: dict[str, float], ks: Sequence[int] = KS) -> str:
    """Lines of :func:`categories` and :func:`negative_accuracy`, of what ``results`` holds."""
    lines = []
    for direction, name in DIRECTIONS.items():
        if f"{direction}_wrong_category" in results:
            lines.append(
                f"* {name:<14}  first answer of another category {results[f'{direction}_wrong_category']:6.2f}%"
                f"  of the category and wrong {results[f'{direction}_wrong_attributes']:6.2f}%"
            )
            for key, what in (("category", "any of the category"), ("within", "among the category")):
                recalls = "".join(f"  R@{k} {results[f'{direction}_{key}_r{k}']:6.2f}%" for k in ks)
                lines.append(f"* {'':<14}  {what}{recalls}")
    for kind in NEGATIVE_KINDS:
        if f"negatives_{kind}" in results:
            lines.append(f"* above all annotated negatives ({kind}): {results[f'negatives_{kind}']:.2f}%")
    return "\n".join(lines)


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
    results.update({**categories(ways, gallery, ranks), **negative_accuracy(gallery)})
    if lines := categories_table(results):
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
    ``truth["negative_kind"]`` as in :class:`Negatives`, captions counted from 0 in each part. ``rerank`` is an optional attribute, see :func:`retrieval_ranks`.
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
