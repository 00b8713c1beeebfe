"""Batched k-means against Lloyd's algorithm written out in plain Python."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dassl_prompts.trainers.attriprompt.kmeans import kmeans, update


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b))


def mean(points):
    return [sum(column) / len(points) for column in zip(*points)]


def lloyd(points, k, iters):
    """Maximin start, ties to the lowest index, empty clusters keep their centroid, canonical order of clusters."""
    centre = mean(points)
    chosen = [min(range(len(points)), key=lambda i: (distance(points[i], centre), i))]
    while len(chosen) < k:
        gap = [min(distance(p, points[c]) for c in chosen) for p in points]
        chosen.append(max(range(len(points)), key=lambda i: (gap[i], -i)))
    centroids = [points[c] for c in chosen]

    def nearest(p):
        return min(range(k), key=lambda j: (distance(p, centroids[j]), j))

    for _ in range(iters):
        labels = [nearest(p) for p in points]
        for j in range(k):
            members = [p for p, label in zip(points, labels) if label == j]
            if members:
                centroids[j] = mean(members)
    labels = [nearest(p) for p in points]
    order = sorted(range(k), key=lambda j: (-labels.count(j), labels.index(j) if j in labels else len(points), j))
    return [centroids[j] for j in order], [order.index(label) for label in labels]


def inertia(points, clusters):
    chosen = clusters.centroids.gather(1, clusters.labels[..., None].expand(-1, -1, points.shape[2]))
    return (points - chosen).square().sum(dim=(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "n, dim, k, iters", [(12, 3, 3, 0), (12, 3, 3, 1), (30, 6, 4, 10), (17, 24, 5, 4), (9, 2, 9, 3)]
)
def test_equals_plain_lloyd_on_integer_points(dtype, n, dim, k, iters):
    points = torch.randint(-50, 50, (6, n, dim)).to(dtype)
    clusters = kmeans(points, k, iters)
    for i in range(len(points)):
        centroids, labels = lloyd(points[i].tolist(), k, iters)
        assert clusters.labels[i].tolist() == labels
        torch.testing.assert_close(clusters.centroids[i], torch.tensor(centroids, dtype=dtype), rtol=0, atol=1e-4)
        assert clusters.sizes[i].tolist() == [labels.count(j) for j in range(k)]


def test_ties_go_to_the_lowest_index():
    # 4 lies between 0 and 8; the mean is 4, so the start is 4 itself, then 0 (lowest of the two farthest)
    points = torch.tensor([[[0.0], [8.0], [4.0]]])
    clusters = kmeans(points, 2, 0)
    assert clusters.labels.tolist() == [[1, 0, 0]]  # 8 is nearer to 4; the cluster of two comes first
    assert clusters.centroids.flatten().tolist() == [4.0, 0.0]
    # equal sizes: the cluster that holds the lowest index comes first
    assert kmeans(torch.tensor([[[9.0], [0.0], [9.0], [0.0]]]), 2, 3).labels.tolist() == [[0, 1, 0, 1]]


def test_more_iterations_never_raise_the_inertia():
    points = torch.randn(5, 40, 8, dtype=torch.float64)
    previous = torch.full((5,), math.inf, dtype=torch.float64)
    for iters in range(8):
        now = inertia(points, kmeans(points, 4, iters))
        assert (now <= previous + 1e-9).all()
        previous = now


def test_one_cluster_is_the_mean_and_as_many_as_points_are_the_points():
    points = torch.randn(3, 10, 5)
    torch.testing.assert_close(kmeans(points, 1).centroids, points.mean(dim=1, keepdim=True))
    # all of size one: the canonical order is that of the points
    torch.testing.assert_close(kmeans(points, 10).centroids, points)


def test_order_of_the_points_does_not_matter():
    points = torch.randn(4, 30, 6, dtype=torch.float64)
    shuffled = points[:, torch.randperm(30)]
    a, b = kmeans(points, 4), kmeans(shuffled, 4)
    assert torch.equal(a.sizes, b.sizes)
    for p, q in zip(a.centroids, b.centroids):
        torch.testing.assert_close(
            torch.cdist(p, q).amin(dim=1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-9
        )


def test_flat_images_give_coinciding_clusters_and_nothing_breaks():
    clusters = kmeans(torch.ones(2, 6, 3), 3)
    assert torch.equal(clusters.centroids, torch.ones(2, 3, 3))
    assert clusters.sizes.tolist() == [[6, 0, 0]] * 2


def test_an_empty_cluster_keeps_its_centroid():
    """The cosine of flat images: all points are one, the second and third cluster stay empty from the first iteration on."""
    clusters = kmeans(torch.ones(2, 6, 3), 3, metric="cosine")
    assert clusters.sizes.tolist() == [[6, 0, 0]] * 2
    torch.testing.assert_close(clusters.centroids, torch.full((2, 3, 3), 3**-0.5))
    previous = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]])
    weights = update(torch.tensor([[0, 2, 2]]), previous)
    assert weights.tolist() == [[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]]


def test_repeatable_and_independent_of_the_other_sets():
    points = torch.randn(5, 25, 12)
    whole = kmeans(points, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, kmeans(points, 4)))
    alone = kmeans(points[2:3], 4)
    assert torch.equal(alone.labels[0], whole.labels[2])
    torch.testing.assert_close(alone.centroids[0], whole.centroids[2])


def test_large_common_offset_does_not_swamp_the_differences():
    points = torch.randint(-5, 6, (4, 20, 6)).float()
    assert torch.equal(kmeans(points, 3).labels, kmeans(points + 4096.0, 3).labels)


def test_cosine_ignores_length_and_gives_unit_centroids():
    points = torch.randn(3, 20, 7)
    lengths = torch.rand(3, 20, 1) + 0.5
    a, b = kmeans(points, 4, metric="cosine"), kmeans(points * lengths, 4, metric="cosine")
    assert torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.centroids.norm(dim=-1), torch.ones(3, 4))
    similarity = torch.nn.functional.normalize(points, dim=-1) @ a.centroids.transpose(1, 2)
    assert torch.equal(similarity.argmax(dim=2), a.labels)


def test_half_precision_is_clustered_in_fp32_also_under_autocast():
    points = torch.randn(2, 20, 8).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        clusters = kmeans(points, 3)
    assert clusters.centroids.dtype is torch.float32
    assert torch.equal(clusters.centroids, kmeans(points.float(), 3).centroids)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5,), "5 clusters cannot be made of 4 points"),
        ((0,), "choose 1 to 4"),
        ((2, -1), "negative"),
        ((2, 3, "l1"), "unknown k-means metric 'l1'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kmeans(torch.zeros(1, 4, 2), *arguments)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_nothing_is_read_back_by_the_host(metric):
    """On tensors without data, every question about a value fails."""
    with FakeTensorMode():
        points = torch.empty(6, 20, 8)
        with pytest.raises(DataDependentOutputException):
            points[0, 0, 0].item()
        clusters = kmeans(points, 4, 10, metric)
    assert clusters.centroids.shape == (6, 4, 8) and clusters.labels.shape == (6, 20)
