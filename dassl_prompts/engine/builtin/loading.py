"""Datasets to batches: ``DatasetWrapper``, ``build_data_loader``, ``DataManager``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dassl_prompts.engine.builtin.datasets import Datum, build_dataset
from dassl_prompts.engine.builtin.samplers import build_sampler
from dassl_prompts.engine.builtin.transforms import build_transform, interpolation_mode
from dassl_prompts.engine.images import check_orientation, read_image


class DatasetWrapper(Dataset):
    """Reads and transforms the images of a list of ``Datum``.

    An item has ``img`` (a list if ``DATALOADER.K_TRANSFORMS > 1``; further keys ``img2``, ``img3`` for a list
    of transforms), ``label``, ``domain``, ``impath``, ``index``, and ``img0`` (resized only) if
    ``DATALOADER.RETURN_IMG0``.

    Args:
        cfg: config.
        data_source: list of ``Datum``.
        transform: a transform, a list of them, or None for the PIL image itself.
        is_train: augment ``K_TRANSFORMS`` times.

    Raises:
        ValueError: several augmentations without a transform, or an unknown ``INPUT.ORIENTATION``.
    """

    def __init__(self, cfg, data_source: Sequence[Datum], transform=None, is_train: bool = False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.orientation = check_orientation(cfg.INPUT.get("ORIENTATION", "stored"))
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"Cannot augment the image {self.k_tfm} times because transform is None")
        self.to_tensor = _plain_transform(cfg.INPUT) if self.return_img0 else None

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return self.read(idx)

    def read(self, idx: int) -> dict[str, Any]:
        """The item, augmented from the global generators as they are."""
        item = self.data_source[idx]
        img0 = read_image(item.impath, self.orientation)
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        if self.transform is None:
            output["img"] = img0
        elif isinstance(self.transform, (list, tuple)):
            for i, tfm in enumerate(self.transform):
                output[f"img{i + 1}" if i else "img"] = self._transform_image(tfm, img0)
        else:
            output["img"] = self._transform_image(self.transform, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def _transform_image(self, tfm, img0):
        images = [tfm(img0) for _ in range(self.k_tfm)]
        return images[0] if len(images) == 1 else images


def _plain_transform(inp):
    """Resize and normalise, no augmentation."""
    from torchvision import transforms as T

    steps = [T.Resize(inp.SIZE, interpolation=interpolation_mode(inp.INTERPOLATION)), T.ToTensor()]
    if "normalize" in inp.TRANSFORMS:
        steps.append(T.Normalize(mean=inp.PIXEL_MEAN, std=inp.PIXEL_STD))
    return T.Compose(steps)


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
) -> DataLoader:
    """A loader over ``data_source``; training drops an incomplete last batch unless it is the only one.

    Raises:
        ValueError: ``data_source`` has no item.
    """
    if not data_source:
        raise ValueError(
            f"{cfg.DATASET.NAME}: no image to load ({'training' if is_train else 'evaluation'} set is empty)"
        )
    sampler = build_sampler(
        sampler_type, cfg=cfg, data_source=data_source, batch_size=batch_size, n_domain=n_domain, n_ins=n_ins
    )
    wrapper = dataset_wrapper or DatasetWrapper
    return DataLoader(
        wrapper(cfg, data_source, transform=tfm, is_train=is_train),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )


class DataManager:
    """Dataset, transforms and loaders of a run.

    Attributes: ``dataset``, ``train_loader_x``, ``train_loader_u`` and ``val_loader`` (None when there is no
        such data),
    ``test_loader``, ``num_classes``, ``num_source_domains``, ``lab2cname``.

    Args:
        cfg: config.
        custom_tfm_train: transform instead of the configured one for training.
        custom_tfm_test: the same for validation and test.
        dataset_wrapper: class instead of :class:`DatasetWrapper`.
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        self.dataset = build_dataset(cfg)
        tfm_train = self._transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = self._transform(cfg, custom_tfm_test, is_train=False)
        train_u = cfg.DATALOADER.TRAIN_X if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U

        def loader(data, node, tfm, is_train):
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=data,
                batch_size=node.BATCH_SIZE,
                n_domain=node.get("N_DOMAIN", 0),
                n_ins=node.get("N_INS", 2),
                tfm=tfm,
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
            )

        data = self.dataset
        self.train_loader_x = loader(data.train_x, cfg.DATALOADER.TRAIN_X, tfm_train, True)
        self.train_loader_u = loader(data.train_u, train_u, tfm_train, True) if data.train_u else None
        self.val_loader = loader(data.val, cfg.DATALOADER.TEST, tfm_test, False) if data.val else None
        self.test_loader = loader(data.test, cfg.DATALOADER.TEST, tfm_test, False)
        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    @staticmethod
    def _transform(cfg, custom, is_train: bool):
        if custom is None:
            return build_transform(cfg, is_train=is_train)
        print(f"* Using custom transform for {'training' if is_train else 'testing'}")
        return custom

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def num_source_domains(self) -> int:
        return self._num_source_domains

    @property
    def lab2cname(self) -> dict[int, str]:
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg) -> None:
        """Print the table of classes and images."""
        from tabulate import tabulate

        table = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            table.append(["Source", cfg.DATASET.SOURCE_DOMAINS])
        if cfg.DATASET.TARGET_DOMAINS:
            table.append(["Target", cfg.DATASET.TARGET_DOMAINS])
        table.append(["# classes", f"{self.num_classes:,}"])
        table.append(["# train_x", f"{len(self.dataset.train_x):,}"])
        if self.dataset.train_u:
            table.append(["# train_u", f"{len(self.dataset.train_u):,}"])
        if self.dataset.val:
            table.append(["# val", f"{len(self.dataset.val):,}"])
        table.append(["# test", f"{len(self.dataset.test):,}"])
        print(tabulate(table, disable_numparse=True))
