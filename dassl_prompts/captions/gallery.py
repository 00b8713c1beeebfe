"""A test set of image-text retrieval as features, and where right answers stand in either direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dassl_prompts.ranking.exact import category_ranks, equal_groups, target_ranks, topk

DIRECTIONS = {"i2t": "image-to-text", "t2i": "text-to-image"}
#: kinds of annotated negative captions, by their number: another category, or the same with other attributes
NEGATIVE_KINDS = ("category", "attributes")
#: score of (image index, text index) pairs, both [P] -> [P]
PairScore = Callable[[Tensor, Tensor], Tensor]


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
