"""Metrics of composed image retrieval: CIRR's recall and subset recall, FashionIQ's recall per category, CIRCO's
mean average precision.

Features are L2-normalised, scores are inner products; ties go to the smaller gallery index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dassl_prompts.composed.triplets import RetrievalTask
from dassl_prompts.ranking.exact import recall_at, target_ranks, topk

CIRR_KS, CIRR_SUBSET_KS, FIQ_KS = (1, 5, 10, 50), (1, 2, 3), (10, 50)
CIRCO_KS = (5, 10, 25, 50)
ASPECT_K = 10  # of CIRCO's mean average precision by semantic aspect


def targets_of(task: RetrievalTask) -> Tensor:
    """Gallery index of every query's target [Q].

    Raises:
        ValueError: targets are not public.
    """
    if any(query.target is None for query in task.queries):
        raise ValueError(
            f"{task.name} has no public targets: write a submission file instead (scripts/pvlf/submit_cirr.sh, "
            "submit_circo.sh)"
        )
    return torch.tensor([task.index[query.target] for query in task.queries])


def references_of(task: RetrievalTask) -> Tensor | None:
    """Gallery index of every query's reference [Q] where it takes no part in the ranking, else None."""
    return torch.tensor([task.index[query.reference] for query in task.queries]) if task.remove_reference else None


def members_of(task: RetrievalTask) -> Tensor:
    """Gallery indices of every query's subset [Q, M], padded with -1.

    Raises:
        ValueError: the task has no subsets.
    """
    width = max((len(query.members) for query in task.queries), default=0)
    if width == 0:
        raise ValueError(f"{task.name} has no image sets, so no subset metric")
    rows = [[task.index[name] for name in query.members] for query in task.queries]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def evaluate(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, float]:
    """Metrics of one task in percent.

    Args:
        queries: [Q, d], row i belongs to ``task.queries[i]``. gallery: [G, d] in the order of
            ``task.gallery``.

    Returns:
        CIRR: R@1/5/10/50, Rs@1/2/3 (subset), ``average`` = (R@5 + Rs@1) / 2. FashionIQ: R@10, R@50. CIRCO:
        mAP@5/10/25/50 over all targets, R@5/10/25/50 of the target that the caption was written for, and
        ``mAP@10 <aspect>`` over the queries of every semantic aspect.

    Raises:
        ValueError: features do not fit the task, or there are no targets.
    """
    check_shapes(task, queries, gallery)
    return MEASURES[task.protocol](task, queries, gallery)


def measure_fashioniq(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, float]:
    ranks = target_ranks(queries, gallery, targets_of(task), exclude=references_of(task))
    return {f"R@{k}": value for k, value in recall_at(ranks, FIQ_KS).items()}


def measure_cirr(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, float]:
    target = targets_of(task)
    ranks = target_ranks(queries, gallery, target, exclude=references_of(task))
    metrics = {f"R@{k}": value for k, value in recall_at(ranks, CIRR_KS).items()}
    subset = subset_ranks(queries, gallery, target, members_of(task))
    metrics |= {f"Rs@{k}": value for k, value in recall_at(subset, CIRR_SUBSET_KS).items()}
    return metrics | {"average": (metrics["R@5"] + metrics["Rs@1"]) / 2}


def measure_circo(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, float]:
    target = targets_of(task)
    found = topk(queries, gallery, min(max(CIRCO_KS), len(gallery)), exclude=references_of(task))[1]
    answers = [torch.tensor([task.index[name] for name in query.answers]) for query in task.queries]
    hits = torch.stack([torch.isin(row, right) for row, right in zip(found.cpu(), answers)])
    counts = torch.tensor([len(right) for right in answers])
    precisions = {k: average_precision(hits, counts, k) for k in CIRCO_KS}
    metrics = {f"mAP@{k}": 100 * float(values.mean()) for k, values in precisions.items()}
    ranks = target_ranks(queries, gallery, target, exclude=references_of(task))
    metrics |= {f"R@{k}": value for k, value in recall_at(ranks, CIRCO_KS).items()}
    for aspect in sorted({aspect for query in task.queries for aspect in query.aspects}):
        chosen = torch.tensor([aspect in query.aspects for query in task.queries])
        metrics[f"mAP@{ASPECT_K} {aspect}"] = 100 * float(precisions[ASPECT_K][chosen].mean())
    return metrics


def average_precision(hits: Tensor, counts: Tensor, k: int) -> Tensor:
    """Average precision at ``k`` of every query, [Q] in fp64: the precisions at its right answers among the first
    ``k``, summed and divided by the smaller of ``k`` and the number of right answers.

    Args:
        hits: [Q, N] booleans, whether the answer at each rank is right. counts: [Q] right answers that exist.

    >>> average_precision(torch.tensor([[True, False, True]]), torch.tensor([4]), 3).tolist()  # (1/1 + 2/3) / 3
    [0.5555555555555555]
    """
    first = hits[:, :k].double()
    precision = first.cumsum(1) / torch.arange(1, first.shape[1] + 1, dtype=torch.float64, device=hits.device)
    return (precision * first).sum(1) / counts.clamp(max=k)


MEASURES: dict[str, Callable[[RetrievalTask, Tensor, Tensor], dict[str, float]]] = {
    "cirr": measure_cirr,
    "fashioniq": measure_fashioniq,
    "circo": measure_circo,
}


def subset_ranks(queries: Tensor, gallery: Tensor, target: Tensor, members: Tensor) -> Tensor:
    """1-based rank [Q] of each target among the ``members`` [Q, M] of its image set (padded with -1).

    The scores are those of :func:`best_members`, to the bit: a product of these pairs alone may round otherwise.
    """
    is_target = members == target[:, None]
    if not bool(is_target.any(1).all()):
        raise ValueError(f"target of query {int((~is_target.any(1)).nonzero()[0])} is not in its image set")
    return target_ranks(queries, gallery, target, candidates=members)


def check_shapes(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> None:
    """Raise ValueError unless there is one query feature per query and one gallery feature per image."""
    if len(queries) != len(task.queries) or len(gallery) != len(task.gallery):
        raise ValueError(
            f"{task.name} has {len(task.queries)} queries and {len(task.gallery)} images, "
            f"the features have {len(queries)} and {len(gallery)} rows"
        )


def summarise(tasks: Sequence[RetrievalTask], results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The flat results of a dataset; the first value, ``mean``, is the criterion of the best epoch.

    CIRR: ``mean`` of the seven recalls (TransAgg's criterion), then its metrics. FashionIQ: ``mean`` of the
    averages over categories (TransAgg's, too), the averages, ``average`` of both (equal to ``mean``; the papers'
    column), and every category's values. CIRCO: ``mean`` of the
    four mean average precisions, then its metrics.
    """
    if tasks[0].protocol != "fashioniq":
        (metrics,) = results
        names = [f"R@{k}" for k in CIRR_KS] + [f"Rs@{k}" for k in CIRR_SUBSET_KS]
        names = [f"mAP@{k}" for k in CIRCO_KS] if tasks[0].protocol == "circo" else names
        return {"mean": sum(metrics[name] for name in names) / len(names), **metrics}
    averages = {f"R@{k}": sum(m[f"R@{k}"] for m in results) / len(results) for k in FIQ_KS}
    per_task = {f"{task.name.split()[1]} {key}": value for task, m in zip(tasks, results) for key, value in m.items()}
    mean = sum(averages.values()) / len(averages)
    return {"mean": mean, **averages, "average": mean, **per_task}


def best(task: RetrievalTask, queries: Tensor, gallery: Tensor, k: int) -> list[list[str]]:
    """Names of the first ``k`` gallery images for every query (fewer where the gallery is smaller)."""
    check_shapes(task, queries, gallery)
    exclude = references_of(task)
    k = min(k, len(task.gallery) - (exclude is not None))
    names = list(task.gallery)
    return [[names[i] for i in row] for row in topk(queries, gallery, k, exclude=exclude)[1].tolist()]


def best_members(task: RetrievalTask, queries: Tensor, gallery: Tensor, k: int) -> list[list[str]]:
    """Names of the first ``k`` images of every query's image set."""
    check_shapes(task, queries, gallery)
    names = list(task.gallery)
    members = members_of(task)
    indices = topk(queries, gallery, k, candidates=members)[1]
    return [[names[i] for i in row if i >= 0] for row in indices.tolist()]
