"""DPC: dual-prompt collaboration on top of any prompt learner (Li et al., CVPR 2025, arXiv 2503.13443).

Stage 1 trains a backbone method as usual and gives P. Stage 2, here, freezes P, clones it into P' and trains P' alone with the
Dynamic Hard Negative Optimizer: classes that P confuses, one training image for each, and a symmetric contrastive loss.
At inference base classes use omega_b P' + (1 - omega_b) P, new classes omega_n P' + (1 - omega_n) P.

``PRESET paper`` is what the paper describes; ``PRESET official`` is what the released code executes. See docs/dpc.md for the
register of their differences; a key left at its "preset" value takes the preset's choice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.data.negatives import ImagePool, MinedLoader, hard_negatives
from dassl_prompts.engine import DatasetWrapper, add_defaults, build_transform, register_trainer
from dassl_prompts.models.dual import DualPrompts
from dassl_prompts.trainer import ClassificationTrainer
from dassl_prompts.trainers.coop import CoOp
from dassl_prompts.trainers.ivlp import IVLP
from dassl_prompts.trainers.maple import MaPLe
from dassl_prompts.trainers.promptkd import PromptKD
from dassl_prompts.trainers.promptsrc import PromptSRC

PRESET = "preset"

PRESETS = {
    "paper": {
        "PARAM": "parallel", "GRAD_SCALE": 1.0, "TRAIN_FORWARD": "parallel", "EVAL_BASE": "mixed", "MIX_SCOPE": "all",
        "DEEP_INIT": "clone", "MINER": "tuned", "NEG_CAP": "k-1", "NEG_MIN_FILL": 0, "NEG_FILL_RANGE": "all",
        "NEG_TRANSFORM": "train", "PROJECTOR_BN": "frozen", "XD_RULE": "omega_n",
    },
    "official": {
        "PARAM": "parallel", "GRAD_SCALE": 0.0, "TRAIN_FORWARD": "parallel", "EVAL_BASE": "parallel", "MIX_SCOPE": "all",
        "DEEP_INIT": "clone", "MINER": "tuned", "NEG_CAP": "k", "NEG_MIN_FILL": 2, "NEG_FILL_RANGE": "official",
        "NEG_TRANSFORM": "train", "PROJECTOR_BN": "train", "XD_RULE": "omega_n",
    },
}  # fmt: skip

CHOICES = {
    "PRESET": ("paper", "official"),
    "PARAM": ("parallel", "mixed"),
    "TRAIN_FORWARD": ("parallel", "mixed"),
    "EVAL_BASE": ("mixed", "parallel"),
    "MIX_SCOPE": ("all", "text"),
    "MAPLE_MIX": ("tokens", "leaves"),
    "DEEP_INIT": ("clone", "noise"),
    "MINER": ("tuned", "teacher"),
    "NEG_CAP": ("k-1", "k"),
    "NEG_FILL_RANGE": ("all", "official"),
    "NEG_TRANSFORM": ("train", "test"),
    "NEG_POOL": ("shots", "full_train"),
    "DUPLICATES": ("official", "mask", "multipos", "unique"),
    "PROJECTOR_BN": ("frozen", "train"),
    "XD_RULE": ("omega_n", "parallel"),
    "TASK": ("auto", "base", "new"),
    "SELECT": ("last", "val", "official_test"),
}


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.DPC", {
        "PRESET": "paper",
        "CKPT_DIR": "",  # run directory of stage 1 (the backbone trained on the same classes, seed and shots)
        "CKPT_EPOCH": -1,  # -1 = the last one found
        "OMEGA_B": 0.2,  # weight of P' on base classes, in [0, 1]
        "OMEGA_N": 0.0,  # weight of P' on new classes; 0.0 returns the backbone bit for bit
        "TOPK": 8,  # candidates of the negative sampler; 1 = no negatives
        "PARAM": PRESET,  # which tensor is trained: P' itself (parallel) or theta = F(P') (mixed)
        "GRAD_SCALE": -1.0,  # factor on the gradient of P'; 0.0 = 1 / OMEGA_B, -1.0 = as the preset
        "TRAIN_FORWARD": PRESET,
        "EVAL_BASE": PRESET,
        "MIX_SCOPE": PRESET,
        "MAPLE_MIX": "tokens",  # leaves: mix the coupling weights instead of the tokens they emit
        "DEEP_INIT": PRESET,  # noise: deep prompts restart from N(0, 0.02^2), as the released PromptKD code does
        "MINER": PRESET,
        "NEG_POOL": "shots",  # full_train: negatives' images from the whole training split (leaves the few-shot protocol)
        "NEG_JSON": "",  # official SPLE_<Dataset>.json instead of our own index
        "NEG_TRANSFORM": PRESET,
        "NEG_CAP": PRESET,
        "NEG_DEDUP": True,
        "NEG_MIN_FILL": -1,
        "NEG_FILL_RANGE": PRESET,
        "DUPLICATES": "official",
        # weights of the objective's terms; -1.0 = as the backbone asks (SCL 1.0 for PromptSRC under preset paper)
        "LOSS": {"CL_W": 1.0, "CE_W": 0.0, "SCL_W": -1.0, "KD_W": 0.0},
        "GPA": False,  # PromptSRC: average P' over epochs too
        "PROJECTOR_BN": PRESET,
        "XD_RULE": PRESET,
        "TASK": "auto",
        "SELECT": "last",
    })


@dataclass(frozen=True)
class Settings:
    """``TRAINER.DPC`` with every "preset" value resolved."""

    preset: str
    ckpt_dir: str
    ckpt_epoch: int
    omega_b: float
    omega_n: float
    topk: int
    param: str
    grad_scale: float
    train_forward: str
    eval_base: str
    mix_scope: str
    maple_mix: str
    deep_init: str
    miner: str
    neg_pool: str
    neg_json: str
    neg_transform: str
    neg_cap: str
    neg_dedup: bool
    neg_min_fill: int
    neg_fill_range: str
    duplicates: str
    gpa: bool
    projector_bn: str
    xd_rule: str
    task: str
    select: str

    @classmethod
    def from_cfg(cls, cfg, overrides: dict | None = None) -> Settings:
        """Resolve presets; ``overrides`` are what a backbone's official preset does differently.

        Raises:
            ValueError: naming the key whose value is impossible.
        """
        node = cfg.TRAINER.DPC
        if node.PRESET not in PRESETS:
            raise ValueError(f"TRAINER.DPC.PRESET is {node.PRESET!r}; choose paper or official")
        preset = {**PRESETS[node.PRESET], **(overrides or {})}
        values = {}
        for field in fields(cls):
            key = field.name.upper()
            value = node[key]
            unset = value == PRESET or (key in ("GRAD_SCALE", "NEG_MIN_FILL") and value < 0)
            values[field.name] = preset[key] if unset and key in preset else value
            if key in CHOICES and values[field.name] not in CHOICES[key]:
                raise ValueError(f"TRAINER.DPC.{key} is {value!r}; choose one of {', '.join(CHOICES[key])}")
        for name in ("omega_b", "omega_n"):
            if not 0.0 <= values[name] <= 1.0:
                raise ValueError(f"TRAINER.DPC.{name.upper()} must lie in [0, 1], got {values[name]}")
        if values["topk"] < 1:
            raise ValueError(f"TRAINER.DPC.TOPK must be at least 1, got {values['topk']}")
        if values["grad_scale"] == 0.0:
            if values["omega_b"] == 0.0:
                raise ValueError("TRAINER.DPC.GRAD_SCALE 0.0 means 1 / OMEGA_B, which OMEGA_B 0.0 does not have")
            values["grad_scale"] = 1.0 / values["omega_b"]
        return cls(**values)


def symmetric_contrastive(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor, duplicates="official") -> Tensor:
    """Symmetric InfoNCE over N aligned pairs.

    Args:
        images, texts: normalised features ``[N, E]``; row i of both belongs to pair i.
        labels: ``[N]`` classes; pairs may share one.
        scale: exp(logit_scale).
        duplicates: what the other pairs of the same class are. ``official``: negatives like all others (for text features
            that depend on the class alone this equals uniform soft targets). ``mask``: left out of the denominator.
            ``multipos``: positives, -log of their summed probability. ``unique``: as ``official``, on batches without repeats.
    """
    logits = scale * images.float() @ texts.float().t()
    target = torch.arange(len(labels), device=logits.device)
    same = labels[:, None] == labels[None, :]
    if duplicates == "mask":
        others = same & ~torch.eye(len(labels), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(others, float("-inf"))
    if duplicates == "multipos":
        nll = lambda s: -(s.log_softmax(1).masked_fill(~same, float("-inf")).logsumexp(1)).mean()  # noqa: E731
        return 0.5 * (nll(logits) + nll(logits.t()))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))


class DPC(ClassificationTrainer):
    """Stage 2 on the method named by ``backbone``: subclass, set it, register. Any ClassificationTrainer will do."""

    config_node = "DPC"
    backbone: type[ClassificationTrainer]
    #: what the released code does differently for this backbone
    official_overrides: dict = {}

    # -- building -------------------------------------------------------------------------------------------------

    @classmethod
    def settings(cls, cfg) -> Settings:
        return Settings.from_cfg(cfg, cls.official_overrides if cfg.TRAINER.DPC.PRESET == "official" else None)

    def check_cfg(self, cfg):
        self.backbone.check_cfg(self, cfg)
        self.settings(cfg)

    @classmethod
    def precision_node(cls, cfg):
        return cls.backbone.precision_node(cfg)

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        s = cls.settings(cfg)
        task = s.task if s.task != "auto" else {"new": "new"}.get(cfg.DATASET.SUBSAMPLE_CLASSES, "base")
        tuned = cls.backbone.build_net(cfg, classnames, clip)
        return DualPrompts(
            cls.make_dual(tuned), s.omega_b, s.omega_n, task, s.param, s.train_forward, s.eval_base, s.mix_scope,
            mix_leaves=s.maple_mix == "leaves",
        )  # fmt: skip

    @classmethod
    def make_dual(cls, net):
        """Hook: turn on the prompts that only stage 2 learns (PromptKD's text prompts)."""
        return net

    def build_data_loader(self):
        super().build_data_loader()
        s = self.settings(self.cfg)
        if len(self.dm.dataset.classnames) < 2:
            raise ValueError("DPC contrasts classes with each other, but there is only one base class")
        self.topk = min(s.topk, len(self.dm.dataset.classnames))
        if self.topk < s.topk:
            print(f"Warning: TRAINER.DPC.TOPK {s.topk} exceeds the number of classes, using {self.topk}")

    def build_model(self):
        self.dpc = self.settings(self.cfg)
        super().build_model()
        self.train_loader_x = self.mined_loader()

    def register_net(self):
        super().register_net()
        if self.dpc.grad_scale != 1.0:
            for parameter in self.model.learnable().values():
                parameter.register_hook(lambda grad: grad * self.dpc.grad_scale)

    # -- stage 1 --------------------------------------------------------------------------------------------------

    def before_train(self):
        self.load_stage1()
        super().before_train()

    def load_stage1(self):
        """Read P into both prompts."""
        s = self.dpc
        name = self.backbone.__name__
        if not s.ckpt_dir:
            raise ValueError(
                f"TRAINER.DPC.CKPT_DIR is empty: give the run directory of {name}, made by "
                f"`python train.py --trainer {name} ...` on the same classes, seed and shots"
            )
        self.check_stage1_classes()
        self.load_backbone_checkpoint(s.ckpt_dir, s.ckpt_epoch)
        if s.deep_init == "noise":
            reset_deep_prompts(self.model.parallel)

    def load_backbone_checkpoint(self, directory, epoch):
        """Put a backbone run's learned tensors into P and P'."""
        state = self.read_learned(directory, self.model.checkpoint_name, None if epoch < 0 else epoch)
        for net in (self.model.tuned, self.model.parallel):
            self.load_learned_state(net.checkpoint_name, net.checkpoint_module, state)

    def check_stage1_classes(self):
        """Stage 1 must have been trained on the classes of this run."""
        known = self.read_run(self.dpc.ckpt_dir).get("classnames")
        ours = list(self.dm.dataset.classnames)
        if known is not None and list(known) != ours:
            raise ValueError(
                f"TRAINER.DPC.CKPT_DIR {self.dpc.ckpt_dir} was trained on {len(known)} classes starting with {known[:3]}, "
                f"this run has {len(ours)} starting with {ours[:3]}: train stage 1 on the same dataset and classes"
            )

    # -- negatives ------------------------------------------------------------------------------------------------

    def mined_loader(self) -> MinedLoader:
        """The training loader with hard negatives added to every batch."""
        s, cfg = self.dpc, self.cfg
        items = self.negative_items()
        by_class = [[] for _ in self.dm.dataset.classnames]
        for index, item in enumerate(items):
            by_class[item.label].append(index)
        empty = [self.dm.dataset.classnames[c] for c, found in enumerate(by_class) if not found]
        if empty:
            raise ValueError(f"no training image to serve as negative for {len(empty)} classes, e.g. {empty[0]}")
        is_train = s.neg_transform == "train"
        wrapped = DatasetWrapper(cfg, items, transform=build_transform(cfg, is_train=is_train), is_train=is_train)
        self.pool = ImagePool(wrapped, cfg.DATALOADER.NUM_WORKERS)
        return MinedLoader(self.train_loader_x, self.mine, by_class, self.pool, cfg.SEED)

    def negative_items(self) -> list:
        """Training items of the base classes that negatives may be drawn from."""
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
    def mine(self, images: Tensor, labels: list[int], rng) -> list[list[int]]:
        """Negative classes of each anchor, ranked by the frozen miner."""
        s = self.dpc
        if self.topk == 1 and s.neg_min_fill == 0:
            return [[] for _ in labels]
        with self.autocast():
            scores = self.miner_scores(images.to(self.device))
        last = scores.shape[1] - 1
        fill_range = (0, last) if s.neg_fill_range == "all" else self.official_fill_range(last)
        return hard_negatives(
            scores, labels, self.topk, cap=s.neg_cap, dedup=s.neg_dedup, min_fill=s.neg_min_fill,
            fill_range=fill_range, rng=rng,
        )  # fmt: skip

    def miner_scores(self, images: Tensor) -> Tensor:
        """``[B, C]`` similarities under P; its class matrix is computed once per run."""
        if self.dpc.miner == "teacher":
            raise ValueError(f"TRAINER.DPC.MINER teacher: {self.backbone.__name__} has no teacher; use tuned")
        tuned = self.model.tuned
        return tuned.logits(tuned.encode_images(images, tuned.emit()), tuned.class_features())

    def official_fill_range(self, last: int) -> tuple[int, int]:
        """Classes that the released code can draw at random: never the first, for CoOp not the last either."""
        return 1, last - 1

    # -- one step -------------------------------------------------------------------------------------------------

    def before_epoch(self):
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def after_train(self):
        self.pool.close()
        super().after_train()

    def parse_batch_train(self, batch):
        self.anchors = batch["anchors"].to(self.device)
        return super().parse_batch_train(batch)

    def loss(self, images, labels):
        """L = CL_W L_CL + CE_W L_CE + the backbone's own terms on the anchors.

        Text is encoded for the classes of the step only, unless a term averages over all of them.
        """
        weights, model = self.loss_weights(), self.model
        prompts = model.train_prompts()
        image_features = model.encode_images(images, prompts)
        needs_all = weights["CE_W"] > 0 or weights["SCL_W"] > 0 or weights["KD_W"] > 0
        classes = torch.arange(len(model.classnames), device=labels.device) if needs_all else labels.unique()
        text = model.encode_classes(prompts, None if needs_all else classes)
        pair_text = text[torch.searchsorted(classes, labels)]

        terms = {}
        if weights["CL_W"] > 0:
            terms["loss_cl"] = weights["CL_W"] * symmetric_contrastive(
                image_features, pair_text, labels, model.scale, self.dpc.duplicates
            )
        if weights["CE_W"] > 0:
            terms["loss_ce"] = weights["CE_W"] * F.cross_entropy(model.logits(image_features, text), labels)
        if weights["SCL_W"] > 0 or weights["KD_W"] > 0:
            terms.update(self.backbone_terms(images[self.anchors], image_features[self.anchors], text, weights))
        if not terms:
            raise ValueError("all weights under TRAINER.DPC.LOSS are 0: there is nothing to train on")
        return {"loss": sum(terms.values()), **terms}

    def loss_weights(self) -> dict[str, float]:
        weights = dict(self.cfg.TRAINER.DPC.LOSS)
        if weights["SCL_W"] < 0:
            weights["SCL_W"] = 0.0
        return weights

    def backbone_terms(self, images, image_features, text, weights) -> dict[str, Tensor]:
        """The backbone's own regularisers on the anchors; CoOp and MaPLe have none."""
        raise ValueError(
            f"TRAINER.DPC.LOSS.SCL_W and KD_W belong to PromptSRC and PromptKD; {self.backbone.__name__} has no such term"
        )
