"""DPC's second stage on top of any prompt learner (Li et al., CVPR 2025, arXiv 2503.13443).

Stage 1 trains a backbone method as usual and gives P. Stage 2, here, freezes P, clones it into P' and trains P' alone with the
Dynamic Hard Negative Optimizer: classes that P confuses, one training image for each, and a symmetric contrastive loss.
One file: the stage is one class whose losses, data and checkpoint belong together.
At inference base classes use omega_b P' + (1 - omega_b) P, new classes omega_n P' + (1 - omega_n) P.

Nothing here knows a particular backbone; trainers/dpc/combinations.py has the combinations.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.configs.own_data import called
from dassl_prompts.engine import compute_accuracy
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.engine.config import refuse_pairs
from dassl_prompts.trainers.dpc.dual import DualPrompts, reset_deep_prompts
from dassl_prompts.trainers.dpc.loss import symmetric_contrastive
from dassl_prompts.trainers.dpc.mining import MinesNegatives, unique_class_loader
from dassl_prompts.trainers.dpc.settings import Settings
from dassl_prompts.trainers.dpc.stage1 import check_run, command, other_way, warn_of_other_draw

#: before the names of P's tensors in a checkpoint
TUNED = "tuned."


class DPC(MinesNegatives, ClassificationTrainer):
    """Stage 2 on the method named by ``backbone``: subclass, set it, register.

    Any ClassificationTrainer will do whose model scores ``encode_images`` against ``encode_classes`` of what it emits.
    """

    config_node = "DPC"
    backbone: type[ClassificationTrainer]
    #: by preset, what it has otherwise on this backbone
    preset_overrides: dict[str, dict] = {}
    #: weight of the backbone's consistency terms but under preset released
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
        method_node(cfg, "DPC")
        return Settings.from_cfg(cfg, cls.preset_overrides)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        settings, weights = self.settings(cfg), self.loss_weights(cfg)
        wanted = {
            "LOSS.SCL_W": weights["SCL_W"] > 0,
            "LOSS.KD_W": weights["KD_W"] > 0,
            "GPA": settings.gpa,
            "MINER": settings.miner != "tuned",
            "PROJECTOR_BN": cfg.TRAINER.DPC.PROJECTOR_BN == "train",
            "MAPLE_MIX": settings.maple_mix != "tokens",
        }
        for key in (key for key, asked in wanted.items() if asked and key not in self.own_keys):
            raise ValueError(
                f"TRAINER.DPC.{key} asks for something that the backbone {self.backbone.__name__} does not have"
            )
        if not any(weight > 0 for weight in weights.values()):
            raise ValueError("all weights under TRAINER.DPC.LOSS are 0: there is nothing to train on")
        if cfg.TEST.FINAL_MODEL == "best_val" and settings.select == "last":
            raise ValueError(
                "TEST.FINAL_MODEL best_val contradicts TRAINER.DPC.SELECT last: give TRAINER.DPC.SELECT val"
            )

    @classmethod
    def wanted_precision(cls, cfg):
        return cls.backbone.wanted_precision(cfg)

    @classmethod
    def check_precision(cls, cfg):
        cls.backbone.check_precision(cfg)

    @classmethod
    def check_method(cls, cfg):
        cls.backbone.check_method(cfg)
        both = bool(cfg.MODEL.INIT_WEIGHTS and cfg.TRAINER.DPC.CKPT_DIR)
        remedy = "both prompts start from stage 1; leave INIT_WEIGHTS empty"
        refuse_pairs(cfg, "TRAINER.DPC", [(both, "CKPT_DIR", "MODEL.INIT_WEIGHTS", remedy)])

    @classmethod
    def class_specific(cls, cfg):
        return cls.backbone.class_specific(cfg)

    @classmethod
    def reader(cls, cfg, frozen):
        """P and P' are read as the backbone's tensors; how they are mixed may be chosen anew at every test."""
        return replace(super().reader(cfg, frozen), keys=tuple(cls.backbone.reading_keys))

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
            s.mix_scope,
            mix_leaves=s.maple_mix == "leaves",
            new_text=s.new_text,
            union=s.union,
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
        ):  # stands for the derivative of the mixture, so what that leaves out keeps factor 1
            learnable = self.model.learnable()
            for name in self.model.mixed_names(self.dpc.mix_scope):
                learnable[name].register_hook(lambda grad: grad * self.dpc.grad_scale)

    # -- stage 1 and checkpoints ----------------------------------------------------------------------------------

    def before_train(self):
        if self.dpc.task in ("new", "union"):
            raise ValueError(
                f"TRAINER.DPC.TASK {self.dpc.task} is about testing (--eval-only), but stage 2 trains on base classes: leave it at auto"
            )
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
            frozen, keys = self.frozen_digests(), self.backbone.reading_keys
            check_run(run, directory, self.backbone.__name__, self.cfg, self.backbone_digest, frozen, keys)
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
        return (
            f"Stage 1 for this run: `{line}`, then TRAINER.DPC.CKPT_DIR STAGE1_DIR{other_way(self.cfg, self.backbone)}"
        )

    def stage1_state(self) -> dict[str, Tensor]:
        """The backbone's learned tensors.

        Raises:
            FileNotFoundError: no such checkpoint.
        """
        epoch = None if self.dpc.ckpt_epoch < 0 else self.dpc.ckpt_epoch
        try:
            return self.backbone.read_net(self.model.parallel, self.dpc.ckpt_dir, epoch)
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
        if directory:
            run = self.trained_run(directory)
            self.model.set_base_classes(run.get("classnames", ()))
            if (
                self.dpc.task == "auto"
                and self.cfg.DATASET.SUBSAMPLE_CLASSES == "all"
                and self.dpc.xd_rule == "omega_n"
            ):
                root = run.get("config", {}).get("DATASET.ROOT", "").strip("'\"")
                source = run.get("dataset")
                self.model.task = self.task_of_all_classes(source and called(source, root), directory)

    def trained_run(self, directory) -> dict:
        """What is noted about the run of a checkpoint; of the released code's, which note nothing, that of its stage 1."""
        run = self.read_run(directory)
        return run if run or not self.dpc.ckpt_dir else self.read_run(self.dpc.ckpt_dir)

    def task_of_all_classes(self, source: str | None, directory) -> str:
        """``base`` on the dataset that was trained on, ``new`` on every other.

        Raises:
            ValueError: nobody says which one that was.
        """
        own = called(self.cfg.DATASET.NAME, self.cfg.DATASET.ROOT)
        if source is None:
            raise ValueError(
                f"{directory} does not say which dataset it was trained on (it has no results.json), so whether the classes "
                f"of {own} are weighted as base classes or as new ones is open: give TRAINER.DPC.TASK base or new"
            )
        return "base" if source == own else "new"

    @classmethod
    def load_net(cls, model, directory, epoch=None, cfg=None):
        super().load_net(model, directory, epoch, cfg)
        model.set_base_classes(cls.read_run(directory).get("classnames", ()))

    # -- one step -------------------------------------------------------------------------------------------------

    def parse_batch_train(self, batch):
        """The step's images ``[U]``, anchors first, and the classes of its pairs ``[N]``; pair i shows image ``rows[i]``."""
        self.rows = batch["rows"].to(self.device)
        self.anchor_pairs = batch["anchors"].to(self.device)
        self.anchor_features = batch.get("anchor_features")
        return super().parse_batch_train(batch)

    def encode_step(self, images: Tensor, prompts) -> Tensor:
        """Image features ``[U, E]`` of the step, reusing what the miner has computed of the anchors."""
        known = self.anchor_features
        if known is None:
            return self.model.encode_images(images, prompts)
        if len(known) == len(images):
            return known
        return torch.cat([known, self.model.encode_images(images[len(known) :], prompts)])

    def loss(self, images, labels):
        """L = CL_W L_CL + CE_W L_CE + the backbone's own terms on the anchors; and the anchors' accuracy.

        Text is encoded for the classes of the step only, unless a term averages over all of them. The accuracy is over the
        encoded classes, of which the anchors' hardest negatives are part.

        Args:
            images: ``[U, 3, S, S]``, the B anchors first. labels: ``[N]`` classes of the pairs.
        """
        weights, model = self.loss_weights(self.cfg), self.model
        prompts = model.train_prompts()
        features = self.encode_step(images, prompts)
        pair_features = features[self.rows]
        needs_all = weights["CE_W"] > 0 or weights["SCL_W"] > 0 or weights["KD_W"] > 0
        classes = torch.arange(len(model.classnames), device=labels.device) if needs_all else labels.unique()
        text = model.encode_classes(prompts, None if needs_all else classes)
        own = torch.searchsorted(classes, labels)

        terms = {}
        if weights["CL_W"] > 0:
            contrast = symmetric_contrastive(pair_features, text[own], labels, model.scale, self.dpc.duplicates)
            terms["loss_cl"] = weights["CL_W"] * contrast
        if weights["CE_W"] > 0:
            terms["loss_ce"] = weights["CE_W"] * F.cross_entropy(model.logits(pair_features, text), own)
        anchors = len(self.anchor_pairs)
        if weights["SCL_W"] > 0 or weights["KD_W"] > 0:
            terms.update(self.backbone_terms(images[:anchors], features[:anchors], text, weights))
        with torch.no_grad():
            logits = model.logits(features[:anchors].detach(), text.detach())
            accuracy = compute_accuracy(logits, own[self.anchor_pairs])[0]
        return {"loss": sum(terms.values()), **terms, "acc": accuracy}

    @classmethod
    def loss_weights(cls, cfg) -> dict[str, float]:
        """``TRAINER.DPC.LOSS`` with the backbone's own choice filled in."""
        node = method_node(cfg, "DPC")
        weights = dict(node.LOSS)
        if weights["SCL_W"] < 0:
            weights["SCL_W"] = 0.0 if cls.settings(cfg).preset == "released" else cls.default_scl_weight
        return weights

    def backbone_terms(self, images, image_features, text, weights) -> dict[str, Tensor]:
        """The backbone's own regularisers on the anchors, for what ``own_keys`` promises."""
        raise NotImplementedError

    def test(self, split=None):
        if split == "val" and self.dpc.select == "official_test":
            print("Warning: TRAINER.DPC.SELECT official_test chooses the epoch on the *test* set")
            split = "test"
        return super().test(split)
