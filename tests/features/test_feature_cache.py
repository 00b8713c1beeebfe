"""Cached image features: equal to encoding, found again, invalidated, resumed."""

import errno
import os

import numpy as np
import pytest
import torch

from dassl_prompts.composed.target_pad import TargetPadTransform
from dassl_prompts.engine.files import DiskFullError
from dassl_prompts.features import feature_cache
from dassl_prompts.features.feature_cache import cached_features, images_digest
from dassl_prompts.images import ImageReadError
from tests.datasets.cir_trees import picture

TRANSFORM = TargetPadTransform(8, (0.5,) * 3, (0.2,) * 3)


class Encoder:
    """Counts the images that it sees."""

    def __init__(self, stop_after=None):
        self.seen, self.stop_after = 0, stop_after

    def __call__(self, images):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], dim=1)


@pytest.fixture
def paths(tmp_path):
    for i in range(10):
        picture(tmp_path / "images" / f"{i}.png", i)
    return [str(tmp_path / "images" / f"{i}.png") for i in range(10)]


def features(tmp_path, paths, encode, transform=TRANSFORM, **options):
    options = {"weights": "w", "shape": (2,), "dtype": "fp32", "batch_size": 3, **options}
    return cached_features(tmp_path / "cache", "toy", paths, encode, transform, **options)


def test_values_and_reuse(tmp_path, paths):
    encode = Encoder()
    array = features(tmp_path, paths, encode).array
    from dassl_prompts.images import read_image

    expected = Encoder()(torch.stack([TRANSFORM(read_image(p)) for p in paths]))
    np.testing.assert_allclose(array, expected.numpy(), atol=1e-6)
    assert isinstance(array, np.memmap) and encode.seen == 10
    again = features(tmp_path, paths, encode)
    assert encode.seen == 10
    np.testing.assert_array_equal(again.array, array)


def test_a_run_draws_the_same_random_numbers_whether_a_cache_is_filled_or_found(tmp_path, paths):
    before = torch.get_rng_state()
    features(tmp_path, paths, Encoder())
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_rounds(tmp_path, paths):
    exact = features(tmp_path, paths, Encoder()).array
    half = features(tmp_path, paths, Encoder(), dtype="fp16").array
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, exact.astype(np.float16))


@pytest.mark.parametrize("change", ["weights", "precision", "transform", "order", "content"])
def test_anything_that_matters_invalidates(tmp_path, paths, change):
    encode = Encoder()
    features(tmp_path, paths, encode)
    options = {}
    if change == "weights":
        options["weights"] = "other"
    elif change == "precision":
        options["precision"] = "torch.bfloat16"
    elif change == "transform":
        options["transform"] = TargetPadTransform(8, (0.5,) * 3, (0.2,) * 3, ratio=0)
    elif change == "order":
        paths = paths[::-1]
    else:
        before = images_digest(paths)
        picture(tmp_path / "images" / "3.png", 99)
        assert images_digest(paths) != before
    features(tmp_path, paths, encode, **options)
    assert encode.seen == 20


def test_interrupted_encoding_goes_on(tmp_path, paths, monkeypatch):
    expected = features(tmp_path / "whole", paths, Encoder()).array
    write_often(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        features(tmp_path, paths, Encoder(stop_after=6))
    assert not [p for p in (tmp_path / "cache").glob("*.npy") if "partial" not in p.name]
    rest = Encoder()
    array = features(tmp_path, paths, rest).array
    assert rest.seen == 4
    np.testing.assert_array_equal(array, expected)
    assert not list((tmp_path / "cache").glob("*partial*"))


def write_often(monkeypatch):
    monkeypatch.setattr(feature_cache, "BATCHES_PER_NOTE", 1)


def test_unreadable_images(tmp_path, paths):
    (tmp_path / "images" / "4.png").write_bytes(b"nothing")
    with pytest.raises(ImageReadError, match="4.png"):
        features(tmp_path, paths, Encoder())
    cache = features(tmp_path, paths, Encoder(), skip_unreadable=True)
    assert cache.unreadable == [4] and not cache.array[4].any() and cache.array[5].any()
    again = features(tmp_path, paths, Encoder(stop_after=0), skip_unreadable=True)
    assert again.unreadable == [4]
    with pytest.raises(ImageReadError, match="left out, such as .*4.png"):  # its rows of zeros are no features
        features(tmp_path, paths, Encoder())


def test_damaged_features(tmp_path, paths):
    with pytest.raises(ValueError, match="not finite"):
        features(tmp_path, paths, lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(ValueError, match="CIR.CACHE_DTYPE fp32"):
        features(tmp_path, paths, lambda images: torch.full((len(images), 2), 1e5), dtype="fp16")


@pytest.mark.parametrize("suffix", [".npy", ".json", ".partial.npy", ".partial.json"])
@pytest.mark.parametrize("damage", ["value", "number", "header", "cut", "longer", "empty"])
def test_a_damaged_cache_heals(tmp_path, paths, monkeypatch, suffix, damage):
    write_often(monkeypatch)
    expected = np.array(features(tmp_path / "whole", paths, Encoder()).array)
    folder = tmp_path / "cache"
    if "partial" in suffix:
        with pytest.raises(KeyboardInterrupt):
            features(tmp_path, paths, Encoder(stop_after=6))
    else:
        features(tmp_path, paths, Encoder())
    (path,) = (p for p in folder.iterdir() if p.name[len("toy-") + 16 :] == suffix)
    whole = path.read_bytes()
    place = {"value": 140, "number": len(whole) // 2, "header": 30}.get(damage)
    if place is not None:
        damaged = whole[:place] + bytes([whole[place] ^ 0x51]) + whole[place + 1 :]
    else:
        damaged = {"cut": whole[:-1], "longer": whole + b"\0\0\0\0", "empty": b""}[damage]
    path.write_bytes(damaged)
    np.testing.assert_array_equal(features(tmp_path, paths, Encoder()).array, expected)
    assert not list(folder.glob("*partial*"))


def test_room_for_features_is_taken_before_they_are_mapped(tmp_path, paths, monkeypatch):
    """A map of a file with holes ends the process by SIGBUS on a full disk."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(DiskFullError, match="toy-.*partial.npy: No space left.*run the same command again"):
            features(tmp_path, paths, Encoder(stop_after=0))
        assert not list((tmp_path / "cache").glob("toy*"))
    assert len(features(tmp_path, paths, Encoder()).array) == 10


def test_unwritable_folder(tmp_path, paths):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(FileExistsError, match="CIR.CACHE_DIR"):
        features(tmp_path, paths, Encoder())
