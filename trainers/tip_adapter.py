"""Tip-Adapter: the training images as a key-value cache beside zero-shot CLIP (Zhang et al., ECCV 2022, arXiv 2207.09519).

``TipAdapter`` only fills the cache; ``TipAdapterF`` fills it and then fine-tunes the keys.
"""

from __future__ import annotations

from itertools import product

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.class_bound import ClassBoundTrainer, rows_among
from dassl_prompts.classification.prompted import Prompts, normalize
from dassl_prompts.classification.templates import template_for
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.engine.loading import whole_pass_loader
from dassl_prompts.engine.randomness import view_seed
from dassl_prompts.trainers.zsclip import FrozenTextModel


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.TIP_ADAPTER",
        {
            "ALPHA": 1.0,  # weight of the cache; where the search starts
            "BETA": 5.5,  # sharpness of the affinity
            "SEARCH_HP": True,  # choose ALPHA and BETA on the validation images after training
            "SEARCH_SCALE": (7.0, 3.0),  # the search's largest BETA and ALPHA
            "SEARCH_STEP": (200, 20),  # how many of each it tries
            "AUGMENT_EPOCH": 10,  # TipAdapterF: passes over the augmented images that fill the cache (TipAdapter: OPTIM.MAX_EPOCH)
            "TEMPLATE": "",  # "" = the dataset's own; e.g. "a photo of a {}."
            "PREC": "amp",  # fp16, fp32, amp; the cache is fp32 in all of them
        },
    )


class Cache(nn.Module):
    """Keys ``[N, E]`` and labels ``[N]`` of N training images, with the weights of their say.

    ``keys`` collects the features of all passes; its rows count by their direction only.
    """

    def __init__(self, size: int, width: int, alpha: float, beta: float, learnable: bool):
        super().__init__()
        keys = torch.zeros(size, width)
        if learnable:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.full((size,), -1))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def affinity(self, features: Tensor) -> Tensor:
        """``V F^T`` ``[B, N]``; F's rows are normalised until they are learned."""
        keys = self.keys if isinstance(self.keys, nn.Parameter) else normalize(self.keys)
        return features.float() @ keys.t()


class TipAdapterModel(FrozenTextModel):
    """``z = s V W^T + alpha exp(-beta (1 - V F^T)) L`` with one-hot labels L."""

    checkpoint_name = "tip_adapter"

    def __init__(self, clip, classnames, template: str, alpha=1.0, beta=5.5, learnable=False):
        super().__init__(clip, classnames, [template])
        self.cache = Cache(0, clip.embed_dim, alpha, beta, learnable)
        self.learnable, self.trained = learnable, []

    @property
    def checkpoint_module(self):
        return self.cache

    def resize(self, size: int) -> None:
        """Make room for ``size`` images."""
        old, device = self.cache, self.scale.device
        self.cache = Cache(size, self.clip.embed_dim, old.alpha, old.beta, self.learnable).to(device)

    @torch.no_grad()
    def fill(self, images: Tensor, labels: Tensor, index: Tensor) -> None:
        """Add one view of the training images ``index`` to their keys (un-normalised, as in the official code)."""
        self.cache.keys[index] += self.image_features(images, Prompts())
        self.cache.labels[index] = labels

    def from_cache(self, affinity: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """The cache's share of the logits ``[B, C]``; images of classes that are not scored have no say."""
        known = self.cache.labels >= 0
        values = F.one_hot(self.cache.labels.clamp_min(0), len(self.classnames)).float() * known[:, None]
        return alpha * (-beta * (1 - affinity)).exp() @ values

    def logits(self, images: Tensor, text: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            cached = self.from_cache(self.cache.affinity(images), self.cache.alpha, self.cache.beta)
            return super().logits(images, text) + cached


class TipAdapterBase(ClassBoundTrainer):
    """What both have in common: the cache, its search on validation images, its checkpoint."""

    config_node = "TIP_ADAPTER"
    learnable = False

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.TIP_ADAPTER
        template = template_for(cfg, node.TEMPLATE, "TRAINER.TIP_ADAPTER.TEMPLATE")
        return TipAdapterModel(clip, classnames, template, node.ALPHA, node.BETA, cls.learnable)

    def register_net(self):
        self.model.resize(len(self.dm.dataset.train_x))
        super().register_net()

    @classmethod
    def load_state(cls, model, state, source):
        """The cache, whatever its size; labels are translated into the model's classes."""
        state = strip_module(state)
        if "keys" not in state or "labels" not in state:
            raise ValueError(f"{source} does not hold keys and labels: it was written by another method")
        labels = state["labels"].long()
        if model.trained:
            own = torch.full((len(model.trained),), -1)
            rows = rows_among(model.classnames, model.trained)
            own[rows[rows >= 0]] = torch.arange(len(rows))[rows >= 0]
            labels = torch.where(labels >= 0, own[labels.clamp_min(0)], labels)
        if len(labels) and int(labels.max()) >= len(model.classnames):
            raise ValueError(
                f"{source} caches images of {int(labels.max()) + 1} classes without saying which, the model has "
                f"{len(model.classnames)}: load it from its run folder, whose results.json names them"
            )
        if len(model.cache.labels) != len(labels):
            model.resize(len(labels))
        super().load_state(model, {**state, "labels": labels}, source)

    def fill_cache(self, batch) -> None:
        images, labels = self.parse_batch_train(batch)
        with self.autocast():
            self.model.fill(images, labels, batch["index"].to(self.device))

    def after_train(self):
        if self.cfg.TRAINER.TIP_ADAPTER.SEARCH_HP:
            self.search()
        super().after_train()

    @torch.no_grad()
    def search(self) -> None:
        """Put the ALPHA and BETA that are best on the validation images into the cache; the first of equal ones."""
        node, model = self.cfg.TRAINER.TIP_ADAPTER, self.model
        if self.val_loader is None:
            print("TRAINER.TIP_ADAPTER.SEARCH_HP: there are no validation images, ALPHA and BETA stay as they are")
            return
        self.set_model_mode("eval")
        affinity, zero_shot, labels = [], [], []
        for batch in self.frozen(self.val_loader):
            images, label = self.parse_batch_test(batch)
            with self.autocast():
                features = model.encode_images(images, Prompts())
            affinity.append(model.cache.affinity(features))
            zero_shot.append(model.scale * features @ model.text.t())
            labels.append(label)
        affinity, zero_shot, labels = torch.cat(affinity), torch.cat(zero_shot), torch.cat(labels)
        steps = lambda top, count: [0.1 + i * (top - 0.1) / count for i in range(count)]
        best, chosen = -1.0, None
        (top_beta, top_alpha), (n_beta, n_alpha) = node.SEARCH_SCALE, node.SEARCH_STEP
        for beta, alpha in product(steps(top_beta, n_beta), steps(top_alpha, n_alpha)):
            logits = zero_shot + model.from_cache(affinity, alpha, beta)
            accuracy = (logits.argmax(1) == labels).float().mean().item()
            if accuracy > best:
                best, chosen = accuracy, (beta, alpha)
        model.cache.beta.fill_(chosen[0])
        model.cache.alpha.fill_(chosen[1])
        print(f"Chosen on {len(labels)} validation images: BETA {chosen[0]:.2f}, ALPHA {chosen[1]:.2f} ({best:.1%})")
        self.save_model(self.epoch, self.output_dir)


@register_trainer
class TipAdapter(TipAdapterBase):
    """Tip-Adapter: the training images as a cache beside zero-shot CLIP, nothing learned.

    Training-free: every epoch adds one augmented view of all training images to the cache.
    """

    frozen_image_side = True

    def use_data_manager(self, dm):
        dm.train_loader_x = whole_pass_loader(self.cfg, dm)
        super().use_data_manager(dm)

    def register_net(self):
        self.model.resize(len(self.dm.dataset.train_x))
        self.register_model(self.model.checkpoint_name, self.model.checkpoint_module)

    def get_current_lr(self, names=None):
        return 0.0  # nothing is optimised

    def forward_backward(self, batch):
        self.fill_cache(batch)
        return {"cached": float((self.model.cache.labels >= 0).sum())}


@register_trainer
class TipAdapterF(TipAdapterBase):
    """Tip-Adapter-F: the training images as a cache beside zero-shot CLIP, its keys learned.

    Cross-entropy over z; the keys are learned from the cache that :class:`TipAdapter` builds.
    """

    frozen_image_side = True
    learnable = True

    def before_train(self):
        super().before_train()
        if self.start_epoch == 0:
            passes = self.cfg.TRAINER.TIP_ADAPTER.AUGMENT_EPOCH
            loader = whole_pass_loader(self.cfg, self.dm)
            for number in range(passes):
                loader.dataset.epoch_seed = view_seed(self.cfg.SEED, number)
                for batch in self.frozen(loader):
                    self.fill_cache(batch)
            with torch.no_grad():
                self.model.cache.keys.copy_(normalize(self.model.cache.keys))
            print(f"Cached {len(self.model.cache.labels)} training images, {passes} views each")
