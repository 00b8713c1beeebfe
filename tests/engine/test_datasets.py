"""Few-shot sampling, dataset properties, loaders, transforms and samplers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.engine import (
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    build_dataset,
    build_transform,
    get_cfg_default,
    set_random_seed,
)
from dassl_prompts.engine.builtin.samplers import build_sampler
from dassl_prompts.engine.builtin.transforms import Cutout, InstanceNormalization, Random2DTranslation
from dassl_prompts.engine.config import extend_cfg
from dassl_prompts.engine.images import ImageReadError
from dassl_prompts.engine.loading import PromptDatasetWrapper, count_corrupt
from tests.engine.toy import make_images, toy_cfg, toy_trainer

GOLDEN = np.load(Path(__file__).parent.parent / "fixtures" / "dassl_fewshot.npz")
DRAWS = sorted({key.rsplit("/", 1)[0] for key in GOLDEN if key.endswith("/train") and "/shots" in key})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize("draw", DRAWS)
def test_few_shot_draws_equal_dassls(draw):
    layout, seed, shots = draw.split("/")
    items = [Datum(impath=str(i), label=int(label)) for i, label in enumerate(GOLDEN[f"{layout}/labels"])]
    sampler = DatasetBase(train_x=items, val=items, test=items)
    set_random_seed(int(seed.removeprefix("seed")))
    shots, _, repeat = shots.removeprefix("shots").partition("_")
    train = sampler.generate_fewshot_dataset(items, num_shots=int(shots), repeat=bool(repeat))
    val = sampler.generate_fewshot_dataset(items, num_shots=min(int(shots), 4), repeat=bool(repeat))
    assert [int(item.impath) for item in train] == GOLDEN[f"{draw}/train"].tolist()
    if f"{draw}/val" in GOLDEN:
        assert [int(item.impath) for item in val] == GOLDEN[f"{draw}/val"].tolist()


def test_all_images_without_shots():
    items = [Datum(impath=str(i), label=i % 2) for i in range(4)]
    dataset = DatasetBase(train_x=items, test=items)
    assert dataset.generate_fewshot_dataset(items) is items
    assert dataset.generate_fewshot_dataset(items, items[:1], num_shots=0) == (items, items[:1])


def test_dataset_properties():
    items = [Datum(impath="a", label=2, classname="c"), Datum(impath="b", label=0, domain=1, classname="a")]
    dataset = DatasetBase(train_x=items, test=items[:1])
    assert dataset.num_classes == 3 and dataset.classnames == ["a", "c"] and dataset.lab2cname == {0: "a", 2: "c"}
    assert dataset.val is None and dataset.train_u is None and dataset.test == items[:1]
    with pytest.raises(ValueError, match="DatasetBase.*no training image"):
        DatasetBase(train_x=[], test=items)


def test_unknown_dataset_lists_the_known(images, tmp_path):
    with pytest.raises(ValueError, match=r"'Toy'.*\[Toi\] \(do you mean \[Toy\]\?\)"):
        build_dataset(toy_cfg(images, tmp_path, "DATASET.NAME", "Toi"))


def test_data_manager(images, tmp_path, capsys):
    manager = DataManager(toy_cfg(images, tmp_path))
    assert len(manager.train_loader_x) == 3 and len(manager.val_loader) == 2 and len(manager.test_loader) == 2
    assert manager.num_classes == 3 and manager.train_loader_u is None and manager.num_source_domains == 0
    batch = next(iter(manager.test_loader))
    assert batch["img"].shape == (4, 3, 8, 8) and set(batch) == {"img", "label", "domain", "impath", "index"}
    assert "# train_x  12" in capsys.readouterr().out
    # training drops the incomplete batch, unless it is the only one
    for size, batches in ((5, 2), (50, 1)):
        cfg = toy_cfg(images, tmp_path, "DATALOADER.TRAIN_X.BATCH_SIZE", size)
        assert len(DataManager(cfg).train_loader_x) == batches


def test_wrapper_items(images):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.DATALOADER.RETURN_IMG0, cfg.DATALOADER.K_TRANSFORMS = (8, 8), True, 2
    item = Datum(impath=str(images / "leaf" / "0.png"), label=1, domain=5)
    plain = DatasetWrapper(cfg, [item])
    assert isinstance(plain[0]["img"], Image.Image) and plain[0]["img0"].shape == (3, 8, 8)
    transform = lambda image: image.size
    both = DatasetWrapper(cfg, [item], transform=[transform, transform], is_train=True)[0]
    assert both["img"] == [(10, 10)] * 2 and both["img2"] == [(10, 10)] * 2
    assert (both["label"], both["domain"], both["index"]) == (1, 5, 0)
    with pytest.raises(ValueError, match="transform is None"):
        DatasetWrapper(cfg, [item], is_train=True)


@pytest.mark.parametrize("orientation", ["stored", "camera"])
def test_benchmark_pictures_are_turned_only_on_request(tmp_path, orientation):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    assert cfg.INPUT.ORIENTATION == "stored"  # as CoOp reads them
    cfg.INPUT.ORIENTATION = orientation
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    found = DatasetWrapper(cfg, [Datum(impath=str(tmp_path / "x.png"))])[0]["img"]
    assert np.array_equal(np.asarray(found), pixels if orientation == "stored" else np.rot90(pixels, -1))


def test_unknown_orientation_is_named(tmp_path):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.INPUT.ORIENTATION = "exif"
    with pytest.raises(ValueError, match="INPUT.ORIENTATION is 'exif'; choose one of stored, camera"):
        DatasetWrapper(cfg, [])


def shown(cfg, capsys, is_train):
    transform = build_transform(cfg, is_train=is_train)
    return [type(step).__name__ for step in transform.transforms], capsys.readouterr().out


def test_transforms_are_in_dassls_order_and_announced(capsys):
    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = ("normalize", "cutout", "colorjitter", "random_flip", "random_resized_crop")
    names, out = shown(cfg, capsys, True)
    assert names == [
        "RandomResizedCrop",
        "RandomHorizontalFlip",
        "ColorJitter",
        "ToTensor",
        "Cutout",
        "Normalize",
    ]
    assert out.splitlines() == [
        "Building transform_train",
        "+ random resized crop (size=(224, 224), scale=(0.08, 1.0))",
        "+ random flip",
        "+ color jitter (brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)",
        "+ to torch tensor of range [0, 1]",
        "+ cutout (n_holes=1, length=16)",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
    ]
    names, out = shown(cfg, capsys, False)
    assert names == ["Resize", "CenterCrop", "ToTensor", "Normalize"]
    assert "+ resize the smaller edge to 224\n+ 224x224 center crop\n" in out
    cfg.INPUT.TRANSFORMS = (
        "random_translation",
        "gaussian_noise",
        "instance_norm",
        "randomgrayscale",
        "gaussian_blur",
    )
    names, _ = shown(cfg, capsys, True)
    assert names == [
        "Resize",
        "Random2DTranslation",
        "RandomGrayscale",
        "RandomApply",
        "ToTensor",
        "GaussianNoise",
        "InstanceNormalization",
    ]
    cfg.INPUT.TRANSFORMS = ("random_crop",)
    assert shown(cfg, capsys, True)[0] == ["RandomCrop", "ToTensor"]
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None


@pytest.mark.parametrize(("name", "text"), [("random_flop", "random_flip"), ("randaugment2", "policy augmentation")])
def test_unknown_transform(name, text):
    """The built-in engine names it; Dassl has the policies, and an assertion without words for the unknown."""
    from dassl_prompts.engine.builtin.transforms import build_transform

    cfg = get_cfg_default()
    cfg.INPUT.TRANSFORMS = (name,)
    with pytest.raises(ValueError, match=f"INPUT.TRANSFORMS.*{name}.*{text}"):
        build_transform(cfg)


def test_trainers_of_ours_name_an_unknown_transform_on_both_engines(images, tmp_path):
    with pytest.raises(ValueError, match="INPUT.TRANSFORMS.*random_flop.*random_flip"):
        toy_trainer(images, tmp_path, "INPUT.TRANSFORMS", ("random_flop",))


def test_own_transforms():
    image = torch.rand(3, 12, 12)
    normal = InstanceNormalization()(image)
    assert normal.mean((1, 2)).abs().max() < 1e-6 and (normal.std((1, 2)) - 1).abs().max() < 1e-5
    holes = Cutout(1, 4)(torch.ones(3, 12, 12))
    assert 4 <= (holes[0] == 0).sum() <= 16 and torch.equal(holes[0], holes[1])
    assert Random2DTranslation(16, 8, p=1.0)(Image.new("RGB", (30, 30))).size == (8, 16)


def test_samplers(images):
    items = [Datum(impath=str(i), label=i % 4, domain=i % 2) for i in range(24)]
    by_class = list(build_sampler("RandomClassSampler", data_source=items, batch_size=6, n_ins=3))
    for start in range(0, len(by_class), 6):
        labels = [items[i].label for i in by_class[start : start + 6]]
        assert labels == [labels[0]] * 3 + [labels[3]] * 3 and labels[0] != labels[3]
    by_domain = list(build_sampler("RandomDomainSampler", data_source=items, batch_size=4, n_domain=2))
    assert sorted(by_domain) == list(range(24))
    for start in range(0, 24, 4):
        assert sorted(items[i].domain for i in by_domain[start : start + 4]) == [0, 0, 1, 1]
    in_order = list(build_sampler("SeqDomainSampler", data_source=items, batch_size=4))
    assert [items[i].domain for i in in_order[:4]] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="RandomSamplr; known are.*RandomSampler"):
        build_sampler("RandomSamplr", data_source=items)
    with pytest.raises(ValueError, match="multiple"):
        build_sampler("RandomDomainSampler", data_source=items, batch_size=5, n_domain=2)
    with pytest.raises(ValueError, match="4 classes cannot fill"):
        build_sampler("RandomClassSampler", data_source=items, batch_size=10, n_ins=2)


def batches(images, tmp_path, workers, *opts):
    """One epoch of training images under a fixed seed."""
    cfg = toy_cfg(images, tmp_path, "DATALOADER.NUM_WORKERS", workers, *opts)
    set_random_seed(3)
    loader = DataManager(cfg, dataset_wrapper=PromptDatasetWrapper).train_loader_x
    loader.dataset.epoch_seed = 11
    return torch.cat([batch["img"] for batch in loader]), torch.rand(1)


def test_augmentation_does_not_depend_on_the_workers(images, tmp_path):
    alone, after = batches(images, tmp_path, 0)
    shared, after_shared = batches(images, tmp_path, 2)
    assert torch.equal(alone, shared) and torch.equal(after, after_shared)


def test_augmentation_changes_with_the_epoch_and_leaves_the_global_generators_alone(images):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (8, 8), ("random_resized_crop", "random_flip")
    items = [Datum(impath=str(images / "leaf" / "0.png"), label=0)] * 2
    wrapper = PromptDatasetWrapper(cfg, items, transform=build_transform(cfg), is_train=True)
    wrapper.epoch_seed = 1
    before = torch.get_rng_state()
    first, twin, again = wrapper[0]["img"], wrapper[1]["img"], wrapper[0]["img"]
    assert torch.equal(torch.get_rng_state(), before)
    wrapper.epoch_seed = 2**40
    assert torch.equal(first, again)
    assert not torch.equal(first, twin) and not torch.equal(first, wrapper[0]["img"])


def test_corrupt_training_images_are_replaced_by_their_class_and_counted(images, tmp_path, capsys):
    root = make_images(tmp_path / "data")
    broken = root / "leaf" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    items = [
        Datum(impath=str(p), label=i, classname=p.parent.name)
        for i, name in enumerate(("bean", "leaf"))
        for p in sorted((root / name).glob("*.png"))
    ]
    index = [item.impath for item in items].index(str(broken))
    cfg = get_cfg_default()
    cfg.DATALOADER.MAX_CORRUPT = 1
    wrapper = PromptDatasetWrapper(cfg, items, is_train=True)
    assert wrapper[index]["impath"] == str(root / "leaf" / "2.png") and wrapper[index]["label"] == 1
    assert wrapper[0]["corrupt"] == ""

    seen = set()
    batch = {"corrupt": [wrapper[i]["corrupt"] for i in range(len(items))]}
    count_corrupt(batch, seen, limit=1)
    assert "corrupt" not in batch and seen == {str(broken)} and str(broken) in capsys.readouterr().out
    count_corrupt({"corrupt": [str(broken)]}, seen, limit=1)
    assert capsys.readouterr().out == ""
    with pytest.raises(ImageReadError, match="2 training images.*MAX_CORRUPT allows 1.*other.png"):
        count_corrupt({"corrupt": ["", "other.png"]}, seen, limit=1)

    for strict in (
        PromptDatasetWrapper(get_cfg_default(), items, is_train=True),
        PromptDatasetWrapper(cfg, items),
    ):
        with pytest.raises(ImageReadError, match="leaf/1.png"):
            strict[index]
    for path in (root / "leaf").glob("*.png"):
        path.write_bytes(b"nothing")
    with pytest.raises(ImageReadError, match="'leaf': none of its training images"):
        wrapper[index]
