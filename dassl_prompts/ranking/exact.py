"""Exact ranking by inner product, in blocks of queries: the N x N similarity matrix never exists as a whole.

The one order of every ranking of this package: higher score first, equal scores by smaller index, scores in at least fp32.
:func:`ordered_topk` keeps it for scores that are there already (``torch.topk`` orders equal scores by chance: of 1,000 equal
ones its first is number 0 for k = 1, number 3 for k = 5). Gallery rows that are bitwise equal always get equal scores (a matrix
product may round the same row differently at the edge of a tile), so ties are ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

#: bytes of one block of scores when the caller gives no chunk size
BLOCK_BYTES = 64 * 2**20


def target_ranks(
    queries: Tensor,
    gallery: Tensor,
    target: Tensor,
    *,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """1-based rank of each query's target: 1 + #(better) + #(equal with smaller gallery index).

    Args:
        queries: ``[Q, E]``; scores are inner products in fp32 (fp64 inputs stay fp64), so normalise for
            cosines.
        gallery: ``[G, E]``.
        target: gallery index ``[Q]``, or ``[Q, M]`` padded with -1 where any of several items is right: the
            best of them counts.
        exclude: gallery indices ``[Q]`` or ``[Q, X]`` that do not take part (a reference image), -1 for none.
        candidates: gallery indices ``[Q, K]``, padded with -1, to which the ranking is restricted.
        chunk: queries per block; default as many as fit into 64 MB of scores.

    Returns:
        ``[Q]`` int64 on the device of ``gallery``.

    Raises:
        ValueError: shapes do not fit, an index is out of range, a target is excluded or no candidate, or a
            feature is not finite.
    """
    target, exclude, candidates = (
        _index(t, queries, gallery, n)
        for t, n in ((target, "target"), (exclude, "exclude"), (candidates, "candidates"))
    )
    if bool((target < 0).all(1).any()):
        raise ValueError("target: every query needs at least one gallery index")
    ranks, marks = [], None
    for rows, scores in score_blocks(queries, gallery, exclude=exclude, candidates=candidates, chunk=chunk):
        best, position = _best_target(scores, target[rows])
        if bool((best == -torch.inf).any()):
            query = rows.start + int((best == -torch.inf).flatten().nonzero()[0])
            raise ValueError(f"target of query {query} is excluded or not among its candidates")
        marks = torch.empty_like(scores) if marks is None else marks[: len(scores)]
        not_worse = _count(torch.ge, scores, best, marks)
        better = _count(torch.gt, scores, best, marks)
        ranks.append(1 + better + _ties_before(scores, best, position, not_worse - better))
    return torch.cat(ranks) if ranks else target.new_zeros(0)


def category_ranks(
    queries: Tensor,
    gallery: Tensor,
    target: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Ranks that tell a wrong category from a wrong item of the right one.

    Args:
        queries, gallery, target, chunk: as in :func:`target_ranks`.
        query_labels, gallery_labels: category of each query ``[Q]`` and of each item ``[G]``; a target has its query's.

    Returns:
        ``[Q]`` rank of the first item of the query's category among all items, and ``[Q]`` rank of the best target among the
        items of the category; ties as in :func:`target_ranks`.

    Raises:
        ValueError: as :func:`target_ranks`, labels do not fit, or a target is of another category than its query.
    """
    target = _index(target, queries, gallery, "target")
    query_labels, gallery_labels = (torch.as_tensor(x, device=gallery.device) for x in (query_labels, gallery_labels))
    if len(query_labels) != len(queries) or len(gallery_labels) != len(gallery):
        raise ValueError(
            f"{len(query_labels)} labels for {len(queries)} queries, {len(gallery_labels)} for {len(gallery)} gallery items"
        )
    if bool(((gallery_labels[target.clamp(min=0)] != query_labels[:, None]) & (target >= 0)).any()):
        raise ValueError("target: a right answer is of another category than its query")
    index = torch.arange(len(gallery), device=gallery.device)
    nearest, within = [], []
    for rows, scores in score_blocks(queries, gallery, chunk=chunk):
        inside = scores.masked_fill(query_labels[rows, None] != gallery_labels, -torch.inf)
        best = inside.max(1, keepdim=True).values
        first = torch.where(inside == best, index, len(gallery)).min(1, keepdim=True).values
        own, position = _best_target(scores, target[rows])
        for ranks, among, value, place in ((nearest, scores, best, first), (within, inside, own, position)):
            ranks.append(1 + (among > value).sum(1) + ((among == value) & (index < place)).sum(1))
    return tuple(torch.cat(ranks) if ranks else target.new_zeros(0) for ranks in (nearest, within))


def topk(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    *,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The first ``k`` of each query's ranking.

    Args:
        queries, gallery, exclude, candidates, chunk: as in :func:`target_ranks`.
        k: number of items, at most G; when fewer remain after exclusion, the row is filled with index -1 and
            score -inf.

    Returns:
        scores ``[Q, k]`` and gallery indices ``[Q, k]``.

    Raises:
        ValueError: as :func:`target_ranks`, or ``k`` out of range.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"k is {k}, the gallery has {len(gallery)} items")
    exclude, candidates = (
        _index(exclude, queries, gallery, "exclude"),
        _index(candidates, queries, gallery, "candidates"),
    )
    values, indices = [], []
    for _, scores in score_blocks(queries, gallery, exclude=exclude, candidates=candidates, chunk=chunk):
        block_values, block_indices = ordered_topk(scores, k)
        values.append(block_values)
        indices.append(block_indices.masked_fill(block_values == -torch.inf, -1))
    if not values:
        return gallery.new_zeros(0, k), torch.zeros(0, k, dtype=torch.long, device=gallery.device)
    return torch.cat(values), torch.cat(indices)


def ordered_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first ``k`` of scores in this package's order: the higher score, then the smaller index.

    Args:
        scores: ``[..., N]``, higher is better; half precision is compared in fp32.
        k: 1 to N.

    Returns:
        values and indices ``[..., k]``.

    >>> ordered_topk(torch.tensor([0.5, 0.9, 0.5, 0.9]), 3)[1].tolist()
    [1, 3, 0]
    """
    flat = scores.reshape(-1, scores.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    values, indices = flat.topk(k, dim=1)
    # torch.topk orders equal scores arbitrarily, and may leave out the smaller index at the end of the list
    cut = ((flat >= values[:, -1:]).sum(1) > k).nonzero().flatten()
    for row in cut.tolist():
        order = flat[row].argsort(descending=True, stable=True)[:k]
        values[row], indices[row] = flat[row, order], order
    indices, by_index = indices.sort(1)
    values, order = values.gather(1, by_index).sort(dim=1, descending=True, stable=True)
    shape = (*scores.shape[:-1], k)
    return values.reshape(shape), indices.gather(1, order).reshape(shape)


def recall_at(ranks: Tensor, ks: Iterable[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries, in percent, whose target is among the first k, for every k.

    Raises:
        ValueError: there is no query.
    """
    if ranks.numel() == 0:
        raise ValueError("recall of no queries is undefined")
    return {k: 100.0 * int((ranks <= k).sum()) / ranks.numel() for k in ks}


def equal_groups(labels: Iterable) -> Tensor:
    """Indices of all items with the same label, as padded targets ``[N, M]``: for text-equal recall.

    Row i lists, in ascending order, every j with ``labels[j] == labels[i]``, then -1.
    """
    labels = list(labels)
    members: dict = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    width = max((len(m) for m in members.values()), default=0)
    rows = {label: m + [-1] * (width - len(m)) for label, m in members.items()}
    return torch.tensor([rows[label] for label in labels], dtype=torch.long).reshape(len(labels), width)


def equal_rows(gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of ``[G, E]`` that repeat an earlier row bit by bit, and the first of the rows that they repeat; both ``[C]``."""
    first: dict[bytes, int] = {}
    copies, originals = [], []
    # + 0.0 turns -0.0 into 0.0, which is the same number in other bits
    for index, row in enumerate((gallery + 0.0).cpu().numpy()):
        original = first.setdefault(row.tobytes(), index)
        if original != index:
            copies.append(index)
            originals.append(original)
    return tuple(torch.tensor(x, dtype=torch.long, device=gallery.device) for x in (copies, originals))


def score_blocks(
    queries: Tensor,
    gallery: Tensor,
    *,
    exclude: Tensor | None = None,
    candidates: Tensor | None = None,
    chunk: int | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield ``(rows, scores [rows, G])`` block by block; what does not take part has score -inf.

    ``exclude`` and ``candidates`` are ``[Q, X]`` here. The block is reused: do not keep it.
    """
    queries, gallery = _features(queries, gallery)
    size = chunk if chunk is not None else max(1, BLOCK_BYTES // (gallery.element_size() * max(1, len(gallery))))
    if size < 1:
        raise ValueError(f"chunk is {chunk}; give a positive number of queries")
    copies, originals = equal_rows(gallery)
    transposed = gallery.t()
    buffer = gallery.new_empty(min(size, len(queries)), len(gallery))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        scores = torch.matmul(queries[rows], transposed, out=buffer[: rows.stop - rows.start])
        if len(copies):
            scores[:, copies] = scores[:, originals]
        if exclude is not None:
            _fill(scores, exclude[rows])
        if candidates is not None:
            scores.masked_fill_(~_members(scores, candidates[rows]), -torch.inf)
        yield rows, scores


# -- pieces --------------------------------------------------------------------------------------------------


def _features(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"features must be [Q, E] and [G, E], got {tuple(queries.shape)} and {tuple(gallery.shape)}")
    if len(gallery) > 2**24:
        raise ValueError(f"the gallery has {len(gallery)} items, more than {2**24}: split it")
    dtype = torch.float64 if torch.float64 in (queries.dtype, gallery.dtype) else torch.float32
    queries = queries.detach().to(device=gallery.device, dtype=dtype)
    gallery = gallery.detach().to(dtype)
    for name, x in (("queries", queries), ("gallery", gallery)):
        if not bool(torch.isfinite(x).all()):
            row = int((~torch.isfinite(x)).any(1).nonzero()[0])
            raise ValueError(f"{name}: row {row} has a value that is not finite")
    return queries, gallery


def _index(index: Tensor | None, queries: Tensor, gallery: Tensor, name: str) -> Tensor | None:
    if index is None:
        return None
    index = torch.as_tensor(index, device=gallery.device)
    if index.dtype.is_floating_point or index.ndim not in (1, 2) or len(index) != len(queries):
        raise ValueError(
            f"{name} must hold integers [Q] or [Q, M] for {len(queries)} queries, got {tuple(index.shape)} "
            f"{index.dtype}"
        )
    index = index.long().reshape(len(queries), -1)
    if index.numel() and (int(index.min()) < -1 or int(index.max()) >= len(gallery)):
        raise ValueError(f"{name} has an index outside -1 .. {len(gallery) - 1}")
    return index


def _fill(scores: Tensor, index: Tensor) -> None:
    """-inf at ``index [rows, X]``, ignoring -1."""
    row, column = (index >= 0).nonzero(as_tuple=True)
    scores[row, index[row, column]] = -torch.inf


def _members(scores: Tensor, index: Tensor) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    row, column = (index >= 0).nonzero(as_tuple=True)
    mask[row, index[row, column]] = True
    return mask


def _best_target(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Score ``[rows, 1]`` and gallery index ``[rows, 1]`` of the first-ranked target of each row."""
    own = scores.gather(1, target.clamp(min=0)).masked_fill(target < 0, -torch.inf)
    best = own.max(1, keepdim=True).values
    position = target.masked_fill((own < best) | (target < 0), scores.shape[1]).min(1, keepdim=True).values
    return best, position


def _count(compare, scores: Tensor, value: Tensor, marks: Tensor) -> Tensor:
    """Items per row for which ``compare`` holds; floats (exact to 2^24), because summing booleans takes three
    times longer.
    """
    return compare(scores, value, out=marks).sum(1).long()


def _ties_before(scores: Tensor, best: Tensor, position: Tensor, equal: Tensor) -> Tensor:
    """Items with the target's score and a smaller index; only rows with more than one of ``equal`` items are
    looked at.
    """
    counts = torch.zeros_like(equal)
    tied = (equal > 1).nonzero().flatten()
    if len(tied):
        before = torch.arange(scores.shape[1], device=scores.device) < position[tied]
        counts[tied] = ((scores[tied] == best[tied]) & before).sum(1)
    return counts
