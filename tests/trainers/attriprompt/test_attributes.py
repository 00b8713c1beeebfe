"""Attribute queries against loops over images, layers and clusters."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.prompted import Prompts
from dassl_prompts.trainers.attriprompt.attributes import AttributeQueries, matching_layers
from dassl_prompts.trainers.attriprompt.kmeans import kmeans
from tests.tiny import tiny_clip


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(seed=3)


@pytest.fixture
def images(clip):
    return torch.randn(3, 3, clip.image_size, clip.image_size)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 2, "iters": 3, "metric": "cosine"},
        {"tokens": "patch+cls"},
        {"space": "joint"},
        {"query": "raw"},
        {"method": "mean"},
        {"method": "cls"},
        {"method": "mean", "space": "joint"},
        {"method": "mean", "tokens": "patch+cls"},
    ],
)
def test_queries_equal_loops(clip, images, options):
    view = AttributeQueries(clip, depth=2, **options)(images)
    _, blocks = clip.vision(images, return_layers=True)
    joint = options.get("space") == "joint"
    for b in range(len(images)):
        for layer in range(2):
            tokens = blocks[layer][b]
            if options.get("method") == "cls":
                tokens = tokens[:1]
            elif options.get("tokens") != "patch+cls":
                tokens = tokens[1:]
            if joint:
                tokens = torch.stack([F.normalize(clip.vision.head(t), dim=0) for t in tokens])
            if "method" in options:
                centroids = tokens.mean(dim=0, keepdim=True)
            else:
                k, iters = options.get("k", 4), options.get("iters", 10)
                centroids = kmeans(tokens[None], k, iters, options.get("metric", "l2")).centroids[0]
            for k, centroid in enumerate(centroids):
                through_head = not joint and options.get("query") != "raw"
                expected = F.normalize(clip.vision.head(centroid) if through_head else centroid, dim=0)
                torch.testing.assert_close(view.queries[b, layer, k], expected, rtol=0, atol=2e-5)
        assert view.queries.shape[2] == len(centroids)
    torch.testing.assert_close(view.feature, F.normalize(clip.encode_image(images), dim=-1), rtol=0, atol=1e-5)


def test_layers_are_matched_in_proportion():
    assert matching_layers(12, 12, 12) == list(range(12))
    assert matching_layers(24, 12, 12) == list(range(1, 24, 2))
    assert matching_layers(6, 4, 4) == [1, 2, 4, 5]  # 1.5, 3, 4.5, 6 rounded up at the half
    assert matching_layers(4, 12, 12) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert matching_layers(12, 12, 3) == [0, 1, 2]


def test_one_vision_block_may_feed_several_text_layers(clip, images):
    queries = AttributeQueries(clip, depth=3)
    queries.order = [0, 0, 2]
    out = queries(images).queries
    assert torch.equal(out[:, 0], out[:, 1]) and not torch.equal(out[:, 0], out[:, 2])


def test_images_do_not_depend_on_their_batch(clip, images):
    queries = AttributeQueries(clip, depth=3)
    whole = queries(images).queries
    alone = torch.cat([queries(image[None]).queries for image in images])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_gradients_reach_visual_prompts_through_the_feature_only(clip, images):
    tokens = torch.randn(2, clip.vision.width, requires_grad=True)
    view = AttributeQueries(clip, depth=2)(images, Prompts(vision=tokens))
    assert view.queries.shape[2] == 4 and not view.queries.requires_grad
    view.feature[:, 0].sum().backward()
    assert tokens.grad.abs().sum() > 0
    assert not AttributeQueries(clip, depth=2)(images).feature.requires_grad


def test_labels_assign_every_patch(clip, images):
    queries = AttributeQueries(clip, depth=2, k=3)
    _, outputs = queries.outputs(images)
    labels = queries.labels(outputs[1])
    assert labels.shape == (3, clip.vision.n_patches)
    assert labels.unique().tolist() == [0, 1, 2]


def test_more_clusters_than_patches(clip):
    patches = clip.vision.n_patches
    with pytest.raises(ValueError, match=f"CLUSTER.K is {patches + 1}, but 32 px images have {patches} tokens"):
        AttributeQueries(clip, depth=1, k=patches + 1)
    AttributeQueries(clip, depth=1, k=patches + 1, tokens="patch+cls")
