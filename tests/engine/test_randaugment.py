"""Dassl's randaugment, and that every augmentation has a stream of its own per epoch and image."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose

from dassl_prompts.engine import build_transform
from dassl_prompts.engine.builtin.randaugment import RandAugment
from dassl_prompts.engine.builtin.transforms import AVAILABLE
from dassl_prompts.engine.loading import PromptDatasetWrapper, with_own_randaugment
from tests.engine.toy import Toy, make_images, toy_cfg

RECORDED = np.load(Path(__file__).parent.parent / "fixtures" / "dassl_randaugment.npz")
#: these change nothing at random
FIXED = ("normalize", "center_crop", "instance_norm")


@pytest.mark.parametrize("n, m", [(2, 10), (1, 27), (3, 4)])
def test_draws_and_pictures_are_dassls(n, m):
    """Recorded from Dassl 0.6.3 (with the numpy name that it lacks); one grey level of room for other releases of Pillow."""
    image, expected = Image.fromarray(RECORDED["image"]), RECORDED[f"n{n}_m{m}"]
    for seed, picture in enumerate(expected):
        random.seed(seed), np.random.seed(seed)
        ours = np.asarray(RandAugment(n, m)(image))
        assert np.abs(ours.astype(int) - picture.astype(int)).max() <= 1, seed
    assert [random.random(), np.random.rand()] == RECORDED[f"after_n{n}_m{m}"].tolist()  # no draw more, none less


def test_the_recorded_pictures_show_every_operation():
    """With one operation per picture: as many different pictures as there are operations and signs, or nearly."""
    assert len({picture.tobytes() for picture in RECORDED["n1_m27"]}) >= 15


@pytest.mark.parametrize("n, m", [(-1, 10), (2, 31), (2, -1)])
def test_settings_out_of_range_name_their_keys(n, m):
    with pytest.raises(ValueError, match="INPUT.RANDAUGMENT_N is .*, INPUT.RANDAUGMENT_M"):
        RandAugment(n, m)


def wrapped(folder, name):
    cfg = toy_cfg(folder, folder, "INPUT.TRANSFORMS", (name,), "INPUT.SIZE", "(9, 9)", "INPUT.GB_K", 3)
    return PromptDatasetWrapper(cfg, Toy(cfg).train_x, transform=build_transform(cfg, is_train=True), is_train=True)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in FIXED])
def test_an_augmentation_depends_on_epoch_and_image_alone(tmp_path, name):
    """Not on what Python's, numpy's and torch's generators hold: torchvision and Dassl draw from all three."""
    data = wrapped(make_images(tmp_path), name)

    def epoch(epoch_seed, around):
        data.epoch_seed = epoch_seed
        random.seed(around), np.random.seed(around), torch.manual_seed(around)
        images = [data[i % len(data)]["img"] for i in range(2 * len(data))]
        assert random.random() == random.Random(around).random()  # and it leaves them where they were
        assert torch.rand(()) == torch.rand((), generator=torch.Generator().manual_seed(around))
        return torch.stack(images)

    first = epoch(5, around=1)
    assert torch.equal(first, epoch(5, around=2)) and torch.equal(first[: len(data)], first[len(data) :])
    assert not torch.equal(first, epoch(6, around=1))


def test_dassls_own_class_is_replaced_by_ours():
    theirs = type("RandAugment", (), {"__module__": "dassl.data.transforms.randaugment", "n": 3, "m": 7})
    flip = object()
    new = with_own_randaugment([Compose([flip, theirs()]), None])
    assert [type(step) for step in new[0].transforms] == [object, RandAugment] and new[0].transforms[0] is flip
    assert (new[0].transforms[1].n, new[0].transforms[1].m) == (3, 7) and new[1] is None
    plain = Compose([flip])
    assert with_own_randaugment(plain) is plain
