"""The cache of image features and queries on disk."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dassl_prompts.features.view_cache import CachedLoader, ViewCache, data_digest, fingerprint, model_digest
from dassl_prompts.trainers.attriprompt.attributes import View

N, VIEWS = 7, 3


def view_data(v):
    generator = torch.Generator().manual_seed(v)
    return View(torch.randn(N, 5, generator=generator), torch.randn(N, 2, 4, 5, generator=generator))


def passes():
    def one(v):
        data = view_data(v)
        for rows in torch.arange(N).split(3):
            yield View(data.feature[rows], data.queries[rows]), rows % 4

    return [lambda v=v: one(v) for v in range(VIEWS)]


@pytest.fixture
def cache(tmp_path):
    return ViewCache.create(tmp_path / "views", passes(), N)


def test_holds_every_view_of_every_image(cache):
    for v in range(VIEWS):
        data = view_data(v)
        batch = cache.batch(torch.arange(N), torch.full((N,), v))
        assert torch.equal(batch["feature"], data.feature) and torch.equal(batch["queries"], data.queries)
        assert batch["label"].tolist() == [i % 4 for i in range(N)]


def test_is_read_not_computed_the_second_time(cache):
    def never():
        raise AssertionError("computed again")

    again = ViewCache.create(cache.folder, [never], N)
    assert np.array_equal(again.queries, cache.queries)


def test_half_precision_queries_are_close_and_half_as_large(cache, tmp_path):
    half = ViewCache.create(tmp_path / "half", passes(), N, "float16")
    assert half.queries.nbytes * 2 == cache.queries.nbytes
    np.testing.assert_allclose(half.queries, cache.queries, atol=2e-3)
    assert half.batch(torch.tensor([1]), torch.tensor([0]))["queries"].dtype is torch.float32


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def stops():
        yield from list(passes()[0]())[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ViewCache.create(tmp_path / "views", [stops], N)
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="gave 3 images instead of 7"):
        ViewCache.create(tmp_path / "views", [lambda: iter(list(passes()[0]())[:1])], N)
    assert os.listdir(tmp_path) == []


def test_damaged_cache_names_the_file(cache):
    path = cache.folder / "queries.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="queries.npy is not a whole .npy file"):
        ViewCache(cache.folder)


@pytest.mark.parametrize("name", [*ViewCache.FILES, ViewCache.MANIFEST])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_cache_is_made_again(cache, name, damage, capsys):
    path = cache.folder / name
    whole, expected = path.read_bytes(), np.array(cache.queries)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-2] + b"\x07}" if damage == "changed" else whole[:-5])
    again = ViewCache.create(cache.folder, passes(), N)
    assert "making it again" in capsys.readouterr().out
    assert path.read_bytes() == whole and np.array_equal(again.queries, expected)


def test_plain_loader_gives_the_first_view_in_order(cache):
    batches = list(CachedLoader(cache, batch_size=3))
    assert [len(b["label"]) for b in batches] == [3, 3, 1] and len(CachedLoader(cache, 3)) == 3
    assert torch.equal(torch.cat([b["feature"] for b in batches]), view_data(0).feature)


def test_shuffling_loader_gives_every_image_once_in_some_view(cache):
    loader = CachedLoader(cache, batch_size=2, shuffle=True, drop_last=True)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    index = torch.cat([b["index"] for b in batches]).tolist()
    assert len(set(index)) == 6
    seen = set()
    for _ in range(5):
        for batch in loader:
            for i, feature in zip(batch["index"].tolist(), batch["feature"]):
                seen.add(next(v for v in range(VIEWS) if torch.equal(feature, view_data(v).feature[i])))
    assert seen == set(range(VIEWS))


def test_digests_change_with_weights_files_and_settings(tmp_path):
    model = torch.nn.Linear(3, 2)
    first = model_digest(model)
    assert model_digest(model) == first
    with torch.no_grad():
        model.weight[1, 2] += 1e-3
    assert model_digest(model) != first

    paths = [tmp_path / "a.png", tmp_path / "b.zip"]
    for path in paths:
        path.write_bytes(b"1234")
    items = [SimpleNamespace(impath=str(paths[0]), label=0), SimpleNamespace(impath=f"{paths[1]}::x.png", label=1)]
    digest = data_digest(items)
    assert data_digest(items) == digest != data_digest(items[::-1])
    relabelled = [items[0], SimpleNamespace(impath=items[1].impath, label=2)]
    assert data_digest(relabelled) != digest  # the cache holds the labels, too
    os.utime(paths[1], ns=(1, 1))
    assert data_digest(items) != digest

    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
