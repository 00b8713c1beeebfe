"""DPC's second stage on top of any prompt learner (Li et al., CVPR 2025, arXiv 2503.13443).

Stage 1 trains a backbone method as usual and gives P. Stage 2, here, freezes P, clones it into P' and trains P' alone with the
Dynamic Hard Negative Optimizer: classes that P confuses, one training image for each, and a symmetric contrastive loss.
One file: the stage is one class whose losses, data and checkpoint belong together.
At inference base classes use omega_b P' + (1 - omega_b) P, new classes omega_n P' + (1 - omega_n) P.

Nothing here knows a particular backbone; trainers/dpc/combinations.py has the combinations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import DatasetWrapper, build_dataset, build_transform, read_learned
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.trainers.dpc.dual import DualPrompts, reset_deep_prompts
from dassl_prompts.trainers.dpc.negatives import ImagePool, MinedLoader, hard_negatives, read_official_json
from dassl_prompts.trainers.dpc.settings import Settings
from dassl_prompts.trainers.dpc.stage1 import check_run, command, warn_of_other_draw

#: before the names of P's tensors in a checkpoint
TUNED = "tuned."


def symmetric_contrastive(
    images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor, duplicates="official"
) -> Tensor:
    """Symmetric InfoNCE over N aligned pairs.

    Args:
        images, texts: normalised features ``[N, E]``; row i of both belongs to pair i.
        labels: ``[N]`` classes; pairs may share one.
        scale: exp(logit_scale).
        duplicates: what the other pairs of the same class are. ``official``: negatives like all others (for text features
            that depend on the class alone this equals uniform soft targets). ``mask``: left out of the denominator.
            ``multipos``: positives, -log of their summed probability. ``unique``: as ``official``, on batches without repeats.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = scale * images.float() @ texts.float().t()
    target = torch.arange(len(labels), device=logits.device)
    same = labels[:, None] == labels[None, :]
    if duplicates == "mask":
        others = same & ~torch.eye(len(labels), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(others, float("-inf"))
    if duplicates == "multipos":
        nll = lambda s: -(s.log_softmax(1).masked_fill(~same, float("-inf")).logsumexp(1)).mean()
        return 0.5 * (nll(logits) + nll(logits.t()))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))


class DPC(ClassificationTrainer):
    """Stage 2 on the method named by ``backbone``: subclass, set it, register.

    Any ClassificationTrainer will do whose model scores ``encode_images`` against ``encode_classes`` of what it emits.
    """

    config_node = "DPC"
    backbone: type[ClassificationTrainer]
    #: what the released code does differently for this backbone
    official_overrides: dict = {}
    #: how many of the last classes the released code never draws at random
    official_fill_leaves_out = 0
    #: weight of the backbone's consistency terms under preset paper
    default_scl_weight = 0.0
    #: keys that need something of the backbone which not every one has
    own_keys: frozenset[str] = frozenset()
    #: keys that stage 1 has otherwise than stage 2
    stage1_data: dict = {}

    # -- building -------------------------------------------------------------------------------------------------

    def __init__(self, cfg):
        if self.settings(cfg).select != "last" and cfg.TEST.FINAL_MODEL != "best_val":
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.FINAL_MODEL = "best_val"
            cfg.freeze()
        super().__init__(cfg)

    @classmethod
    def settings(cls, cfg) -> Settings:
        official = method_node(cfg, "DPC").PRESET == "official"
        return Settings.from_cfg(cfg, cls.official_overrides if official else None)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        settings, weights = self.settings(cfg), self.loss_weights(cfg)
        wanted = {
            "LOSS.SCL_W": weights["SCL_W"] > 0,
            "LOSS.KD_W": weights["KD_W"] > 0,
            "GPA": settings.gpa,
            "MINER": settings.miner != "tuned",
        }
        for key in (key for key, asked in wanted.items() if asked and key not in self.own_keys):
            raise ValueError(
                f"TRAINER.DPC.{key} asks for something that the backbone {self.backbone.__name__} does not have"
            )
        if not any(weight > 0 for weight in weights.values()):
            raise ValueError("all weights under TRAINER.DPC.LOSS are 0: there is nothing to train on")

    @classmethod
    def wanted_precision(cls, cfg):
        return cls.backbone.wanted_precision(cfg)

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        s = cls.settings(cfg)
        task = s.task if s.task != "auto" else {"new": "new"}.get(cfg.DATASET.SUBSAMPLE_CLASSES, "base")
        return DualPrompts(
            cls.prepare_backbone(cls.backbone.build_net(cfg, classnames, clip)),
            s.omega_b,
            s.omega_n,
            task,
            s.param,
            s.train_forward,
            s.eval_base,
            s.mix_scope,
            mix_leaves=s.maple_mix == "leaves",
            new_text=s.new_text,
        )

    @classmethod
    def prepare_backbone(cls, net):
        """Hook: add prompts that only stage 2 learns."""
        return net

    def build_data_loader(self):
        self.dpc = self.settings(self.cfg)
        super().build_data_loader()

    def use_data_manager(self, dm):
        if self.dpc.duplicates == "unique":
            dm.train_loader_x = unique_class_loader(self.cfg, dm)
        super().use_data_manager(dm)

    def register_net(self):
        super().register_net()
        if (
            self.dpc.grad_scale != 1.0
        ):  # 1 / omega_b is the derivative of the mixture, so what it leaves out keeps factor 1
            learnable = self.model.learnable()
            for name in self.model.mixed_names(self.dpc.mix_scope):
                learnable[name].register_hook(lambda grad: grad * self.dpc.grad_scale)

    # -- stage 1 and checkpoints ----------------------------------------------------------------------------------

    def before_train(self):
        self.load_stage1(to_train=True)
        self.train_loader_x = self.mined_loader()
        super().before_train()

    def load_stage1(self, to_train=False):
        """Read P into both prompts.

        Raises:
            FileNotFoundError, ValueError: there is no stage 1, or it does not fit; says which command makes the right one.
                Its classes matter only ``to_train``: P may be evaluated on others.
        """
        directory = self.dpc.ckpt_dir
        try:
            if not directory:
                raise ValueError("TRAINER.DPC.CKPT_DIR is empty: give the run folder of stage 1")
            run = self.read_run(directory)
            check_run(run, directory, self.backbone.__name__, self.cfg, self.backbone_digest)
            if to_train:
                self.check_stage1_classes(list(run.get("classnames", ())))
                shots = self.stage1_data.get("DATASET.NUM_SHOTS", self.cfg.DATASET.NUM_SHOTS)
                warn_of_other_draw(run, directory, self.cfg.SEED, shots)
            self.backbone.load_state(self.model.parallel, self.stage1_state(), f"stage 1 in {directory}")
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{error}. {self.stage1_advice()}") from error
        self.model.adopt()
        if self.dpc.deep_init == "noise":
            reset_deep_prompts(self.model.parallel)

    def stage1_advice(self) -> str:
        """How to make the stage 1 that this run needs."""
        line = command(self.cfg, self.backbone.__name__, self.backbone.config_node, self.stage1_data)
        return f"Stage 1 for this run: `{line}`, then TRAINER.DPC.CKPT_DIR STAGE1_DIR; or let scripts/dpc/base2new.sh run both stages"

    def stage1_state(self) -> dict[str, Tensor]:
        """The backbone's learned tensors.

        Raises:
            FileNotFoundError: no such checkpoint.
        """
        epoch = None if self.dpc.ckpt_epoch < 0 else self.dpc.ckpt_epoch
        try:
            return read_learned(self.dpc.ckpt_dir, self.model.checkpoint_name, epoch)
        except FileNotFoundError as error:
            name = self.backbone.__name__
            raise FileNotFoundError(f"{error}. TRAINER.DPC.CKPT_DIR must be a finished run of {name}") from error

    def check_stage1_classes(self, known: list[str]):
        """Stage 1 must have been trained on the classes of this run (official runs do not say which they had)."""
        ours = list(self.dm.dataset.classnames)
        if known and known != ours:
            raise ValueError(
                f"TRAINER.DPC.CKPT_DIR {self.dpc.ckpt_dir} was trained on {len(known)} classes starting with {known[:3]}, "
                f"this run has {len(ours)} starting with {ours[:3]}: train stage 1 on the same dataset and classes"
            )

    def learned_state(self, name, module):
        """P' under the official names, and P beside it as ``tuned.<name>``, so that a checkpoint needs no other file.

        With PARAM mixed theta stands in the place of P'; ``theta_omega`` and ``theta_text_only`` beside it tell how to get
        P' back.
        """
        state, tuned = super().learned_state(name, module), self.model.tuned.checkpoint_module.state_dict()
        theta = {}
        if self.model.param == "mixed":
            theta["theta_omega"] = torch.tensor(self.model.theta_omega)
            theta["theta_text_only"] = torch.tensor(self.model.theta_scope == "text")
        return {**state, **{TUNED + n: tuned[n] for n in self.model.learned_names()}, **theta}

    def load_learned_state(self, name, module, state):
        if not any(
            key.startswith(TUNED) for key in strip_module(state)
        ):  # of the released code: P is in the stage-1 run
            self.load_stage1()
            self.backbone.load_state(self.model.parallel, state, f"the checkpoint of {name}")
            return
        super().load_learned_state(name, module, state)

    @classmethod
    def load_state(cls, model, state, source):
        """P and P'.

        Raises:
            ValueError: the checkpoint holds P' alone, as the released code writes it, or does not fit.
        """
        state = strip_module(state)
        tuned = {key.removeprefix(TUNED): value for key, value in state.items() if key.startswith(TUNED)}
        if not tuned:
            raise ValueError(
                f"{source} holds P' without P, as the released code does: evaluate it with TRAINER.DPC.CKPT_DIR"
            )
        cls.backbone.load_state(model.parallel, {k: v for k, v in state.items() if not k.startswith(TUNED)}, source)
        model.adopt(tuned)
        model.param = "mixed" if "theta_omega" in state else "parallel"
        model.theta_omega = float(state.get("theta_omega", model.omega_b))
        model.theta_scope = "text" if state.get("theta_text_only", False) else "all"

    def load_model(self, directory, epoch=None):
        super().load_model(directory, epoch)
        source = self.read_run(directory).get("dataset") if directory else None
        everything = self.dpc.task == "auto" and self.cfg.DATASET.SUBSAMPLE_CLASSES == "all"
        if everything and source not in (None, self.cfg.DATASET.NAME) and self.dpc.xd_rule == "omega_n":
            self.model.task = "new"  # another dataset than the one trained on

    # -- negatives ------------------------------------------------------------------------------------------------

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
        self.pool = ImagePool(wrapped, self.cfg.DATALOADER.NUM_WORKERS)
        return MinedLoader(self.train_loader_x, self.mine, by_class, self.pool, self.cfg.SEED)

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
            dedup=s.neg_dedup,
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

    # -- one step -------------------------------------------------------------------------------------------------

    def before_epoch(self):
        super().before_epoch()
        self.train_loader_x.epoch = self.epoch

    def after_train(self):
        self.pool.close()
        super().after_train()

    def parse_batch_train(self, batch):
        self.anchors = batch["anchors"].to(self.device)
        self.anchor_features = batch.get("anchor_features")
        return super().parse_batch_train(batch)

    def encode_pairs(self, images: Tensor, prompts) -> Tensor:
        """Image features ``[N, E]`` of the step, reusing what the miner has computed."""
        if self.anchor_features is None:
            return self.model.encode_images(images, prompts)
        negative = torch.ones(len(images), dtype=torch.bool, device=images.device)
        negative[self.anchors] = False
        features = torch.empty(len(images), self.anchor_features.shape[1], device=images.device)
        features[self.anchors] = self.anchor_features
        if negative.any():
            features[negative] = self.model.encode_images(images[negative], prompts)
        return features

    def loss(self, images, labels):
        """L = CL_W L_CL + CE_W L_CE + the backbone's own terms on the anchors.

        Text is encoded for the classes of the step only, unless a term averages over all of them.
        """
        weights, model = self.loss_weights(self.cfg), self.model
        prompts = model.train_prompts()
        image_features = self.encode_pairs(images, prompts)
        needs_all = weights["CE_W"] > 0 or weights["SCL_W"] > 0 or weights["KD_W"] > 0
        classes = torch.arange(len(model.classnames), device=labels.device) if needs_all else labels.unique()
        text = model.encode_classes(prompts, None if needs_all else classes)

        terms = {}
        if weights["CL_W"] > 0:
            pair_text = text[torch.searchsorted(classes, labels)]
            contrast = symmetric_contrastive(image_features, pair_text, labels, model.scale, self.dpc.duplicates)
            terms["loss_cl"] = weights["CL_W"] * contrast
        if weights["CE_W"] > 0:
            terms["loss_ce"] = weights["CE_W"] * F.cross_entropy(model.logits(image_features, text), labels)
        if weights["SCL_W"] > 0 or weights["KD_W"] > 0:
            terms.update(self.backbone_terms(images[self.anchors], image_features[self.anchors], text, weights))
        return {"loss": sum(terms.values()), **terms}

    @classmethod
    def loss_weights(cls, cfg) -> dict[str, float]:
        """``TRAINER.DPC.LOSS`` with the backbone's own choice filled in."""
        node = method_node(cfg, "DPC")
        weights = dict(node.LOSS)
        if weights["SCL_W"] < 0:
            weights["SCL_W"] = cls.default_scl_weight if node.PRESET == "paper" else 0.0
        return weights

    def backbone_terms(self, images, image_features, text, weights) -> dict[str, Tensor]:
        """The backbone's own regularisers on the anchors, for what ``own_keys`` promises."""
        raise NotImplementedError

    def test(self, split=None):
        if split == "val" and self.dpc.select == "official_test":
            print("Warning: TRAINER.DPC.SELECT official_test chooses the epoch on the *test* set")
            split = "test"
        return super().test(split)


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
