"""Lloyd's k-means on many small point sets at once: deterministic, without random numbers, without host synchronisation.

An image has a few hundred patch tokens in a space of several hundred dimensions, so points are fewer than dimensions. All
iterations therefore run on the Gram matrix ``G = X X^T`` of the points: a centroid is a row ``w`` of weights over the points,
its products with all points are ``w G`` and its squared length is ``w G w^T``. The points are read twice, once for ``G``
and once for the final centroids, whatever the number of iterations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

METRICS = ("l2", "cosine")


class Clusters(NamedTuple):
    """Result of :func:`kmeans`, clusters in canonical order: larger first, then smaller lowest member index.

    Attributes:
        centroids: ``[N, K, D]`` fp32 (fp64 for fp64 points); unit length for the cosine metric.
        labels: ``[N, P]`` int64, cluster of every point.
        sizes: ``[N, K]`` int64, number of points; 0 for a cluster that no point is nearest to.
    """

    centroids: Tensor
    labels: Tensor
    sizes: Tensor


@torch.no_grad()
def kmeans(points: Tensor, k: int, iters: int = 10, metric: str = "l2") -> Clusters:
    """Cluster each of ``N`` point sets into ``k`` clusters.

    Start: the point nearest the mean, then repeatedly the point farthest from all chosen ones (maximin). Every tie goes to
    the lowest index. An empty cluster keeps its previous centroid. The number of iterations is fixed.

    Args:
        points: ``[N, P, D]``; half precision is converted to fp32 and autocast is off.
        k: clusters, at most ``P``.
        iters: Lloyd iterations (assignment, then update); labels are those of the last centroids.
        metric: "l2", or "cosine" (spherical k-means: points and centroids of unit length).

    Raises:
        ValueError: ``k`` or ``iters`` out of range, unknown metric.
    """
    if points.ndim != 3:
        raise ValueError(f"k-means takes points of shape [N, P, D], got {tuple(points.shape)}")
    n_points = points.shape[1]
    if not 1 <= k <= n_points:
        raise ValueError(f"{k} clusters cannot be made of {n_points} points: choose 1 to {n_points}")
    if iters < 0:
        raise ValueError(f"the number of k-means iterations is {iters}; it cannot be negative")
    if metric not in METRICS:
        raise ValueError(f"unknown k-means metric {metric!r}: choose one of {', '.join(METRICS)}")
    with torch.autocast(points.device.type, enabled=False):
        x = points if points.dtype is torch.float64 else points.float()
        cosine = metric == "cosine"
        # Distances do not change under a shift, rounding does: channels that are large and equal for all tokens, which
        # CLIP has, would otherwise swamp the differences.
        origin = 0 if cosine else x[:, :1]
        x = F.normalize(x, dim=-1) if cosine else x - origin
        gram = x @ x.transpose(1, 2)
        weights = maximin_start(gram, k)
        for _ in range(iters):
            weights = update(assign(gram, weights, cosine), weights)
        labels = assign(gram, weights, cosine)
        clusters = canonical(x, weights, labels)
        centroids = F.normalize(clusters.centroids, dim=-1) if cosine else clusters.centroids + origin
        return clusters._replace(centroids=centroids)


def maximin_start(gram: Tensor, k: int) -> Tensor:
    """One-hot centroid weights ``[N, K, P]`` from the Gram matrix ``[N, P, P]``."""
    squared = gram.diagonal(dim1=1, dim2=2)
    chosen = [(squared - 2 * gram.mean(dim=2)).argmin(dim=1)]  # nearest the mean; its own length is the same for all
    nearest = torch.full_like(squared, float("inf"))
    for _ in range(k - 1):
        last = chosen[-1][:, None]
        row = gram.gather(1, last[:, :, None].expand(-1, -1, gram.shape[2])).squeeze(1)
        nearest = torch.minimum(nearest, squared + squared.gather(1, last) - 2 * row)
        chosen.append(nearest.argmax(dim=1))
    index = torch.arange(gram.shape[1], device=gram.device)
    return (torch.stack(chosen, dim=1)[..., None] == index).to(gram.dtype)


def assign(gram: Tensor, weights: Tensor, cosine: bool) -> Tensor:
    """Nearest centroid ``[N, P]`` of every point; ``weights`` is ``[N, K, P]``."""
    products = weights @ gram
    squared = (weights * products).sum(dim=2, keepdim=True)
    if cosine:
        return (products * squared.clamp_min(1e-24).rsqrt()).max(dim=1).indices
    return (squared - 2 * products).min(dim=1).indices


def membership(labels: Tensor, k: int) -> Tensor:
    """``labels [N, P] -> [N, K, P]`` bool; torch's own one_hot looks at the data on the host."""
    return labels[:, None] == torch.arange(k, device=labels.device)[:, None]


def update(labels: Tensor, previous: Tensor) -> Tensor:
    """Weights ``[N, K, P]`` that average the members; as a matrix, hence the same on every run of a GPU."""
    members = membership(labels, previous.shape[1]).to(previous.dtype)
    count = members.sum(dim=2, keepdim=True)
    return torch.where(count > 0, members / count.clamp_min(1), previous)


def canonical(x: Tensor, weights: Tensor, labels: Tensor) -> Clusters:
    """Centroids, labels and sizes with the clusters in canonical order."""
    k, n_points = weights.shape[1:]
    members = membership(labels, k)
    sizes = members.sum(dim=2)
    first = torch.where(members, torch.arange(n_points, device=labels.device), n_points).amin(dim=2)
    order = (first - sizes * (n_points + 1)).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1, stable=True)
    centroids = weights.gather(1, order[..., None].expand(-1, -1, n_points)) @ x
    return Clusters(centroids, rank.gather(1, labels), sizes.gather(1, order))
