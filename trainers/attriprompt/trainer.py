"""AttriPrompt: text prompts composed per image from clustered visual attributes (Zhan et al., ACM MM 2025, arXiv 2509.05949).

There is no public code, and only the abstract could be read: the architecture follows it, everything else is a
reconstruction with a switch (docs/attriprompt.md lists which is which). Not to be confused with the class-attribute-aware
method of the same name (IEEE TIP 2026).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from dassl_prompts.classification.templates import template_for
from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import add_defaults, compute_accuracy, register_trainer
from dassl_prompts.engine.loading import count_corrupt
from dassl_prompts.engine.randomness import view_seed
from dassl_prompts.features.view_cache import CachedLoader, ViewCache, data_digest, fingerprint, model_digest
from dassl_prompts.trainers.attriprompt import pool
from dassl_prompts.trainers.attriprompt.attributes import View
from dassl_prompts.trainers.attriprompt.model import AttriPromptModel
from dassl_prompts.trainers.attriprompt.options import NODE, READING, REG_WEIGHTS, check_options


def extend_cfg(cfg):
    add_defaults(
        cfg,
        NODE,
        {
            "PREC": "amp",  # fp16, fp32, amp; clustering, similarities and losses are fp32 in all of them
            "TEMPLATE": "",  # "" = the dataset's own; its words stand around the class name, e.g. "a photo of a {}."
            "CTX_INIT": "",  # words between slots and class name instead of the template's
            "CTX": {"LEARNABLE": False},  # learn these words, too (they start as CTX_INIT, or "a photo of a")
            "PROMPT_DEPTH": 0,  # text layers that get prompts; 0 = all
            "COMPOSE": "replace",  # each layer's prompts replace the previous layer's, or (accumulate) stand in front of them
            "N_CTX_VISION": 0,  # tokens per layer in the image tower
            "PROMPT_DEPTH_VISION": 0,  # layers of the image tower with tokens; 0 = frozen tower
            "CLUSTER": {
                "METHOD": "kmeans",  # kmeans; mean or cls: one query per layer, the mean token or the class token
                "K": 4,  # clusters per image and layer
                "ITERS": 10,  # Lloyd iterations
                "METRIC": "l2",  # l2, cosine
                "TOKENS": "patch",  # patch, patch+cls
                "SPACE": "layer",  # cluster the block's output, or (joint) what the frozen head makes of it
            },
            "POOL": {
                "SIZE": 32,  # prompts
                "LENGTH": 2,  # tokens per prompt
                "PER_LAYER": False,  # a pool for every layer instead of one
                "KEY": "prompt",  # prompt: mean token of the prompt itself; learned: own vectors
                "KEY_LOSS_WEIGHT": 0.5,  # pulls learned keys towards their queries
                "INIT_STD": 0.02,
            },
            "RETRIEVAL": {
                "MODE": "per_cluster",  # per_cluster; union: distinct prompts; static: no retrieval (deep language prompting)
                "TOP_K": 1,  # prompts per cluster
                "QUERY": "head",  # centroids through the frozen head, or raw ones (learned keys only)
                "CENTER": True,  # subtract the running mean of the training queries
                "WEIGHTING": "none",  # none; sim: scale prompts by similarity; softmax: mixture of the whole pool
                "TEMPERATURE": 0.1,  # of softmax weighting
            },
            "DUAL": {
                "MODE": "cls+inst",  # cls+inst, cls_symmetric, prompted+plain, cls_only
                "WEIGHT": 1.0,  # of the second stream
            },
            "REG": {
                "TYPE": "l1",  # l1, cos, mse, none
                "WEIGHT": -1.0,  # -1 = 25 for l1, 8 for cos, 1 for mse
                "SCOPE": "all",  # all classes, or (target) the image's own
                "TEMPLATES": "single",  # the frozen text: the template, or the mean of 60 (ensemble)
            },
            "TEXT": {  # how the text tower runs; none of these changes results
                "SHARE_PREFIX": True,  # slots and words run once per image instead of once per class
                "TRIM": True,  # leave out positions behind the end token
                "MEMO": True,  # images with equal retrievals share their class features
                "MEMO_MB": 512,  # kept between batches of an evaluation
                "CHUNK_TOKENS": 0,  # tokens encoded at a time; 0 = the tower's default
                "CHECKPOINT": False,  # recompute chunks of classes in the backward pass (1000 classes)
            },
            "CACHE": {
                "DIR": "",  # keep image features and queries here; "" = compute them every time
                "VIEWS": 0,  # train on this many pre-drawn augmentations per image from the cache; 0 = draw afresh
                "DTYPE": "float32",  # of queries on disk; float16 is half the size and not exact
            },
        },
    )


def contrast(similarity: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row's own column; other columns of the row's class are left out.

    Args:
        similarity: logits ``[B, B]`` between images and texts of one batch.
        labels: ``[B]``.
    """
    same = labels[:, None] == labels
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return F.cross_entropy(
        similarity.masked_fill(others, float("-inf")), torch.arange(len(labels), device=labels.device)
    )


def regulariser(kind: str, text: Tensor, target: Tensor) -> Tensor:
    """Distance of prompted from non-prompted normalised text features, mean over all leading dimensions."""
    if kind == "cos":
        return 1 - (text * target).sum(dim=-1).mean()
    difference = text - target
    return difference.square().mean() if kind == "mse" else difference.abs().mean()


def own_class(text: Tensor, labels: Tensor) -> Tensor:
    """Text feature ``[B, E]`` of every image's class from ``[B, C, E]`` or, shared by all images, ``[C, E]``."""
    return text[labels] if text.ndim == 2 else text[torch.arange(len(labels), device=labels.device), labels]


@register_trainer
class AttriPrompt(ClassificationTrainer):
    """AttriPrompt: text prompts composed per image from clustered visual attributes.

    L = CE(s <f, T>) + w_d L_second + w_r |T - T0|, see :func:`contrast` and :func:`regulariser`.
    """

    frozen_image_side = True
    config_node = "ATTRIPROMPT"
    reading_keys = tuple(f"{NODE}.{key}" for key in READING)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        node = method_node(cfg, self.config_node)
        check_options(node)
        if node.DUAL.MODE in ("cls+inst", "cls_symmetric") and cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            raise ValueError(
                f"{NODE}.DUAL.MODE {node.DUAL.MODE} contrasts the images of a batch, but "
                "DATALOADER.TRAIN_X.BATCH_SIZE is 1: enlarge it, or set DUAL.MODE cls_only"
            )

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = method_node(cfg, cls.config_node)
        return AttriPromptModel(
            clip, classnames, node, template_for(cfg, node.TEMPLATE, "TRAINER.ATTRIPROMPT.TEMPLATE")
        )

    def loss(self, images, labels):
        node, model = method_node(self.cfg, self.config_node), self.model
        view = model.look(images)
        retrieval = model.retrieve(view)
        text = model.encode(retrieval)
        logits = model.logits(view.feature, text)
        terms = {"loss_cls": F.cross_entropy(logits, labels)}
        with torch.autocast(self.device.type, enabled=False):
            second = self.second_stream(node.DUAL.MODE, view.feature, text, logits, labels)
            if second is not None:
                terms["loss_dual"] = node.DUAL.WEIGHT * second
            if node.REG.TYPE != "none":
                weight = REG_WEIGHTS[node.REG.TYPE] if node.REG.WEIGHT == -1 else node.REG.WEIGHT
                target = model.text_target
                if node.REG.SCOPE == "target":
                    text, target = own_class(text, labels), target[labels]
                terms["loss_reg"] = weight * regulariser(node.REG.TYPE, text, target)
            if model.pool.keys is not None:
                terms["loss_key"] = node.POOL.KEY_LOSS_WEIGHT * pool.key_loss(retrieval)
        return {"loss": sum(terms.values()), **terms, "acc": compute_accuracy(logits, labels)[0]}

    def second_stream(self, mode: str, feature: Tensor, text: Tensor, logits: Tensor, labels: Tensor) -> Tensor | None:
        """The stream beside class-level cross-entropy, unweighted; None for "cls_only".

        cls+inst: images against the texts of their own class that carry their own hierarchy, both ways.
        cls_symmetric: the class-level logits the other way, an image's class text against the images of the batch.
        prompted+plain: cross-entropy with the unretrieved stream.
        """
        if mode == "cls+inst":
            similarity = self.model.scale * feature.float() @ own_class(text, labels).t()
            return (contrast(similarity, labels) + contrast(similarity.t(), labels)) / 2
        if mode == "cls_symmetric":
            return contrast(logits[:, labels].t(), labels)
        if mode == "prompted+plain":
            return F.cross_entropy(self.model.logits(feature, self.model.plain_text()), labels)
        return None

    # -- kept views --------------------------------------------------------------------------------------------------

    def frozen_rows(self, images):
        attributes = self.model.attributes
        return super().frozen_rows(images) if attributes is None else attributes.rows(images)

    def rows_are(self):
        if self.model.attributes is None:
            return super().rows_are()
        node, blocks = method_node(self.cfg, self.config_node), self.model.attributes.blocks
        return f"features and attribute queries of blocks {blocks}, {node.CLUSTER.items()}, {node.RETRIEVAL.QUERY}"

    # -- cached views -------------------------------------------------------------------------------------------------

    def parse_batch_train(self, batch):
        return self.parse_batch_test(batch)

    def parse_batch_test(self, batch):
        if "queries" not in batch:
            return super().parse_batch_test(batch)
        view = View(batch["feature"].to(self.device), batch["queries"].to(self.device))
        return view, batch["label"].to(self.device)

    def before_train(self):
        node = method_node(self.cfg, self.config_node)
        if node.CACHE.VIEWS:
            cache = self.cached_views(self.dm.train_loader_x, node.CACHE.VIEWS)
            size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
            self.train_loader_x = CachedLoader(cache, size, shuffle=True, drop_last=len(cache) >= size)
        super().before_train()

    def choose_split(self, split):
        split, loader = super().choose_split(split)
        if method_node(self.cfg, self.config_node).CACHE.DIR:
            loader = CachedLoader(self.cached_views(loader), self.cfg.DATALOADER.TEST.BATCH_SIZE)
        return split, loader

    def cached_views(self, loader, views: int = 1) -> ViewCache:
        """The cache of a loader's images, filled at first use; ``views`` augmentations of each for a training loader."""
        node = method_node(self.cfg, self.config_node)
        wrapper = loader.dataset
        seeds = [view_seed(self.cfg.SEED, view) for view in range(views)]
        name = fingerprint(
            {
                "model": model_digest(self.model.clip.vision),
                "precision": self.precision,
                "transform": str(wrapper.transform),
                "data": data_digest(wrapper.data_source),
                **({} if wrapper.orientation == "stored" else {"orientation": wrapper.orientation}),
                "views": seeds if wrapper.is_train else 1,
                "clusters": str(node.CLUSTER),
                "query": node.RETRIEVAL.QUERY,
                "layers": (self.model.attributes.blocks, self.model.attributes.order),
                "dtype": node.CACHE.DTYPE,
            }
        )
        folder = Path(node.CACHE.DIR).expanduser() / name
        print(f"{'Reading' if folder.is_dir() else 'Writing'} image features and queries: {folder}")
        passes = [partial(self.view_batches, wrapper, seed) for seed in seeds]
        return ViewCache.create(folder, passes, len(wrapper), node.CACHE.DTYPE)

    @torch.no_grad()
    def view_batches(self, wrapper, seed: int):
        """Views and labels of all images of a dataset wrapper, in order; training images are augmented from ``seed``."""
        loaders = self.cfg.DATALOADER
        if wrapper.is_train:
            wrapper.epoch_seed = seed
        own = torch.Generator()  # filling the cache must not move the run's random numbers
        for batch in DataLoader(wrapper, loaders.TEST.BATCH_SIZE, num_workers=loaders.NUM_WORKERS, generator=own):
            count_corrupt(batch, self.corrupt_images, loaders.MAX_CORRUPT)
            with self.autocast():
                yield self.model.attributes(batch["img"].to(self.device)), batch["label"]

    # -- how the pool is used -----------------------------------------------------------------------------------------

    def before_epoch(self):
        super().before_epoch()
        self.model.usage.reset()

    def after_epoch(self):
        self.report_usage("training")
        super().after_epoch()

    def test(self, split=None):
        self.model.usage.reset()
        self.model.memo.images = self.model.memo.encoded = 0
        return super().test(split)

    def record(self, split, results):
        usage = self.report_usage(split)
        if usage:
            self.write_results({"pool": {split: usage}})
        return super().record(split, results)

    def report_usage(self, split: str) -> dict:
        """Print how evenly the pool is used, warn of a collapse; returns the numbers for results.json."""
        usage, memo = self.model.usage, self.model.memo
        if not usage.images:
            return {}
        summary = usage.summary()
        entropy, unused = summary["entropy"], summary["unused"]
        print(
            f"prompt pool, {split}: entropy {min(entropy):.2f} to {max(entropy):.2f} of log {usage.size} per layer, "
            f"{summary['distinct_per_image']:.1f} distinct prompts per image, at most {max(unused)} unused in a layer"
        )
        if memo.images and split != "training":
            summary["texts_encoded"] = memo.encoded
            print(f"text passes: {memo.encoded} retrieved tuples for {memo.images} images")
        if usage.collapsed():
            layers = ", ".join(map(str, usage.collapsed()))
            print(
                f"WARNING: retrieval has collapsed in text layers {layers}: nearly all images get the same prompts. Try "
                f"{NODE}.RETRIEVAL.CENTER True, RETRIEVAL.MODE union, or POOL.KEY learned with RETRIEVAL.QUERY raw"
            )
        return summary
