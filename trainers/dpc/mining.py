"""Where DPC's hard negatives come from: classes that P confuses with an anchor's, and training images of them."""

from __future__ import annotations

import torch
from torch import Tensor

from dassl_prompts.engine import DatasetWrapper, build_dataset, build_transform
from dassl_prompts.trainers.dpc.negatives import ImagePool, MinedLoader, RowPool, hard_negatives, read_official_json


class MinesNegatives:
    """The part of the second stage that makes its batches; a mixin of the trainer."""

    #: how many of the last classes the released code never draws at random
    official_fill_leaves_out = 0

    def mined_loader(self) -> MinedLoader:
        """The training loader with hard negatives added to every batch."""
        n_classes = len(self.dm.dataset.classnames)
        if n_classes < 2:
            raise ValueError(f"DPC contrasts classes with each other, but {self.cfg.DATASET.NAME} has {n_classes} here")
        self.topk = min(self.dpc.topk, n_classes)
        if self.topk < self.dpc.topk:
            print(f"Warning: TRAINER.DPC.TOPK {self.dpc.topk} exceeds the number of classes, using {self.topk}")
        items = self.negative_items()
        by_class = [[] for _ in self.dm.dataset.classnames]
        for index, item in enumerate(items):
            by_class[item.label].append(index)
        empty = [name for name, found in zip(self.dm.dataset.classnames, by_class) if not found]
        if empty:
            raise ValueError(f"no training image to serve as negative for {len(empty)} classes, e.g. {empty[0]}")
        is_train = self.dpc.neg_transform == "train"
        transform = build_transform(self.cfg, is_train=is_train)
        wrapped = DatasetWrapper(self.cfg, items, transform=transform, is_train=is_train)
        anchors = self.frozen(self.train_loader_x)
        kept = anchors is not self.train_loader_x and is_train
        self.pool = (
            RowPool(wrapped, self.frozen_views(wrapped))
            if kept
            else ImagePool(wrapped, self.cfg.DATALOADER.NUM_WORKERS)
        )
        share = self.dpc.neg_images == "class"
        return MinedLoader(anchors, self.mine, by_class, self.pool, self.cfg.SEED, share_images=share)

    def negative_items(self) -> list:
        """Training items of the run's classes that negatives may be drawn from."""
        dataset = self.dm.dataset
        if self.dpc.neg_json:
            return read_official_json(self.dpc.neg_json, dataset)
        if self.dpc.neg_pool == "full_train":
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.DATASET.NUM_SHOTS = -1
            return build_dataset(cfg).train_x
        return dataset.train_x

    @torch.no_grad()
    def mine(self, images: Tensor, labels: list[int], rng) -> tuple[list[list[int]], dict]:
        """Negative classes of each anchor, ranked by the frozen miner; without visual prompts also the anchors' features,
        which are the same under P and P'."""
        s = self.dpc
        if self.topk == 1 and s.neg_min_fill == 0:
            return [[] for _ in labels], {}
        with self.autocast():
            features, scores = self.miner_scores(images.to(self.device))
        last = scores.shape[1] - 1
        negatives = hard_negatives(
            scores,
            labels,
            self.topk,
            cap=s.neg_cap,
            dedup=s.neg_dedup == "step" or s.duplicates == "unique",
            min_fill=s.neg_min_fill,
            fill_range=(0, last) if s.neg_fill_range == "all" else (1, last - self.official_fill_leaves_out),
            rng=rng,
        )
        return negatives, {} if features is None else {"anchor_features": features}

    def miner_scores(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """Image features, where P' has the same, and ``[B, C]`` similarities under P, whose class matrix is computed once."""
        tuned = self.model.tuned
        prompts = tuned.emit()
        features = tuned.encode_images(images, prompts)
        return None if prompts.has_vision else features, tuned.logits(features, tuned.class_features())

    def before_epoch(self):
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def after_train(self):
        self.pool.close()
        super().after_train()


def unique_class_loader(cfg, dm):
    """The training loader with at most one image of each class in a batch (``DUPLICATES unique``)."""
    from dassl_prompts.engine.builtin.loading import build_data_loader
    from dassl_prompts.engine.loading import PromptDatasetWrapper

    return build_data_loader(
        cfg,
        "RandomClassSampler",
        dm.dataset.train_x,
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        n_ins=1,
        tfm=build_transform(cfg, is_train=True),
        dataset_wrapper=PromptDatasetWrapper,
    )
