"""What all classification methods share as Dassl trainers: building, one training step, precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.frozen_images import FrozenImages
from dassl_prompts.classification.union import Union
from dassl_prompts.engine import (
    PromptTrainer,
    build_lr_scheduler,
    build_optimizer,
    compute_accuracy,
    load_learned_tensors,
)
from dassl_prompts.engine.checkpoint import read_checkpoint
from dassl_prompts.engine.config import refuse_pairs
from dassl_prompts.engine.origin import Origin

PRECISIONS = ("fp16", "fp32", "amp")


def method_node(cfg, name: str):
    """``cfg.TRAINER.<name>`` or a readable error when the plugin's defaults were never added."""
    try:
        return getattr(cfg.TRAINER, name)
    except AttributeError:
        raise ValueError(
            f"the configuration has no TRAINER.{name}: call dassl_prompts.extend_cfg(cfg) before merging files"
        ) from None


class ClassificationTrainer(FrozenImages, PromptTrainer):
    """Trains the prompts of a :class:`~dassl_prompts.classification.prompted.PromptedCLIP`.

    A method sets ``config_node`` and implements ``build_net``; one that adds terms to cross-entropy gives them in
    ``regularisers``, one with another objective overrides ``loss``, one with another step ``update``.
    """

    #: the method's node under cfg.TRAINER
    config_node = ""

    # -- what a method defines ------------------------------------------------------------------------------------

    @classmethod
    def model_class(cls) -> type[nn.Module]:
        """The class of the method's model; a wrapper such as DePT puts a mixin in front of it."""
        raise NotImplementedError(f"{cls.__name__} names no class of its model")

    @classmethod
    def build_net(cls, cfg, classnames: Sequence[str], clip: nn.Module) -> nn.Module:
        """The method's model for ``classnames`` on a loaded CLIP, without data or trainer."""
        raise NotImplementedError

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of the objective of one batch; ``"loss"`` is what gets differentiated, the rest is logged."""
        image, text = self.model.features(images)
        logits = self.model.logits(image, text)
        cross_entropy = nn.functional.cross_entropy(logits, labels)
        terms = self.regularisers(images, image, text)
        return {
            "loss": cross_entropy + sum(terms.values()),
            **({"loss_ce": cross_entropy, **terms} if terms else {}),
            "acc": compute_accuracy(logits, labels)[0],
        }

    def regularisers(self, images: Tensor, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        """What the method adds to cross-entropy, weighted, by the name that is logged.

        Args:
            images: pixels of the batch, or its rows where ``frozen_image_side`` holds. image, text: its normalised features
                ``[B, E]`` and those of the classes ``[C, E]``.
        """
        return {}

    def update(self, terms: dict[str, Tensor]) -> None:
        """One optimiser step from the terms of :meth:`loss`."""
        self.step(terms["loss"])

    @classmethod
    def load_state(cls, model: nn.Module, state: dict[str, Tensor], source: str) -> None:
        """Put a checkpoint's tensors, ours or official ones, into a model made by ``build_net``.

        This is the one way in: of the trainer's own runs, of ``build_model`` and of DPC's first stage. A method whose
        files need checking or adapting overrides it.

        Args:
            source: what to call the checkpoint in errors.

        Raises:
            ValueError: they do not fit; names the tensors.
        """
        load_learned_tensors(model.checkpoint_module, state, source)

    @classmethod
    def load_net(cls, model: nn.Module, directory, epoch: int | None = None, cfg=None) -> None:
        """:meth:`load_state` from a run folder.

        Args:
            cfg: compare the run's settings with these; None leaves that to the caller.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: its tensors do not fit, or mean something else under ``cfg``.
        """
        if cfg is not None:
            Origin.of(directory, f"the checkpoint of {directory}").check(cls.reader(cfg, model.frozen_digests()))
        cls.load_state(model, cls.read_net(model, directory, epoch), str(directory))

    @classmethod
    def read_net(cls, model: nn.Module, directory, epoch: int | None = None) -> dict[str, Tensor]:
        """The learned tensors of a run folder, class-specific ones in the order of the model's classes.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: it belongs to other classes.
        """
        checkpoint = read_checkpoint(directory, model.checkpoint_name, epoch)
        origin = Origin.of(directory).with_checkpoint(checkpoint)
        return origin.arrange(checkpoint["state_dict"], model.class_tensors, model.classnames)

    # -- Dassl's hooks --------------------------------------------------------------------------------------------

    def check_cfg(self, cfg):
        self.check_precision(cfg)
        remedy = "it learns prompts, which have no layers to stage; set OPTIM.STAGED_LR False"
        refuse_pairs(cfg, "OPTIM", [(bool(cfg.get("OPTIM", {}).get("STAGED_LR")), "STAGED_LR", "TRAINER.NAME", remedy)])
        self.check_method(cfg)

    @classmethod
    def check_precision(cls, cfg) -> None:
        precision = cls.wanted_precision(cfg)
        if precision not in PRECISIONS:
            raise ValueError(f"TRAINER.{cls.config_node}.PREC is {precision!r}; choose one of {', '.join(PRECISIONS)}")

    @classmethod
    def check_method(cls, cfg) -> None:
        """Refuse settings of the method that contradict each other, before anything is read or built.

        Raises:
            ValueError: names both keys.
        """

    @classmethod
    def class_specific(cls, cfg) -> str:
        """The setting, as ``KEY value``, that gives every class tensors of its own; "" where prompts fit all classes."""
        return ""

    @classmethod
    def wanted_precision(cls, cfg) -> str:
        """``PREC`` of the method's node: fp16, fp32 or amp."""
        return method_node(cfg, cls.config_node).PREC

    @classmethod
    def load_backbone(cls, cfg, device) -> nn.Module:
        """The frozen CLIP that ``cfg`` names, in the precision that the method asks for.

        Raises:
            ValueError: ``INPUT.SIZE`` is not the backbone's, or its weights are known to expect other colours.
        """
        from dassl_prompts.models import load_clip, resolve_precision

        precision = resolve_precision(cls.wanted_precision(cfg), device)
        activation = cfg.MODEL.BACKBONE.get("ACTIVATION", "")
        said = {"activation": activation} if activation else {}
        clip = load_clip(cfg.MODEL.BACKBONE.NAME, precision=precision, device=device, **said)
        size = tuple(cfg.INPUT.SIZE)
        if size != (clip.image_size, clip.image_size):
            raise ValueError(
                f"INPUT.SIZE is {size} but the backbone {cfg.MODEL.BACKBONE.NAME} takes {clip.image_size} px: "
                f'give INPUT.SIZE "({clip.image_size}, {clip.image_size})" or a configuration file made for this backbone'
            )
        cls.check_pictures(cfg, clip)
        return clip

    @staticmethod
    def check_pictures(cfg, clip) -> None:
        """Compare ``INPUT`` with how the pictures were prepared that the weights were trained on, where that is known.

        Raises:
            ValueError: another mean or deviation of the colours.
        """
        if not clip.preprocess_known:
            return
        own = {"PIXEL_MEAN": clip.preprocess_mean, "PIXEL_STD": clip.preprocess_std}
        if any(max(abs(a - b) for a, b in zip(cfg.INPUT[key], value)) > 1e-3 for key, value in own.items()):
            give = " ".join(f'INPUT.{key} "{list(value)}"' for key, value in own.items())
            raise ValueError(
                f"the weights of {cfg.MODEL.BACKBONE.NAME} were trained on other colours than INPUT.PIXEL_MEAN "
                f"{list(cfg.INPUT.PIXEL_MEAN)} and PIXEL_STD {list(cfg.INPUT.PIXEL_STD)}: give {give}"
            )
        if clip.squashed:
            print(
                f"Note: the weights of {cfg.MODEL.BACKBONE.NAME} were trained on pictures squashed to a square; these are "
                "cropped to one, as in CoOp"
            )

    def build_model(self):
        from dassl_prompts.models import resolve_precision

        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip = self.load_backbone(cfg, self.device)
        print(f"Activation: {clip.activation} ({clip.activation_source})")
        self.backbone_digest = clip.digest
        wanted = self.wanted_precision(cfg)
        self.precision = resolve_precision(wanted, self.device)
        if self.precision != wanted:
            print(f"PREC {wanted} needs a GPU: computing in {self.precision}")
        self.autocast_dtype = None
        if self.precision == "amp":
            self.autocast_dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self.scaler = torch.amp.GradScaler("cuda") if self.autocast_dtype is torch.float16 else None

        self.model = self.build_net(cfg, self.dm.dataset.classnames, clip).to(self.device)
        self.register_net()

    def before_train(self):
        if getattr(self.dm.dataset, "evaluation_only", False):
            raise ValueError(
                f"{self.cfg.DATASET.NAME} is a test set and may not be trained on: use --eval-only with a trained run"
            )
        super().before_train()

    def register_net(self):
        """Optimise and checkpoint the learnable tensors under the official folder name."""
        module = self.model.checkpoint_module
        learnable = [p for p in module.parameters() if p.requires_grad]
        print(f"Learned tensors: {len(learnable)}, {sum(p.numel() for p in learnable):,} parameters")
        if self.cfg.MODEL.INIT_WEIGHTS:
            self.load_init_weights(module, self.cfg.MODEL.INIT_WEIGHTS)
        self.optim = self.build_optimizer(learnable, self.parameter_groups(module))
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model(self.model.checkpoint_name, module, self.optim, self.sched)

    def parameter_groups(self, module: nn.Module) -> list[dict] | None:
        """Groups of learnable parameters with rates of their own; None is one group at ``OPTIM.LR``."""
        return None

    def build_optimizer(self, learnable: list[nn.Parameter], groups: list[dict] | None = None) -> torch.optim.Optimizer:
        """``OPTIM``'s optimiser for ``learnable``, or for parameter ``groups`` with rates of their own."""
        optim = build_optimizer(learnable, self.cfg.OPTIM, param_groups=groups)
        if self.cfg.OPTIM.NAME in ("adam", "amsgrad", "adamw"):
            for group in optim.param_groups:  # Dassl's function does not know the key
                group["eps"] = self.cfg.OPTIM.ADAM_EPS
        return optim

    def frozen_digests(self):
        return self.model.frozen_digests()

    def arrange(self, name, state, origin):
        return origin.arrange(state, self.model.class_tensors, self.dm.dataset.classnames)

    def load_learned_state(self, name, module, state):
        self.load_state(self.model, state, f"the checkpoint of {name}")

    def autocast(self):
        """The autocast context of the run's precision."""
        enabled = self.autocast_dtype is not None
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=enabled)

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        with self.autocast():
            terms = self.loss(images, labels)
        self.update(terms)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        # one transfer for all of them
        return dict(zip(terms, torch.stack([value.detach().float().reshape(()) for value in terms.values()]).tolist()))

    def step(self, loss: Tensor) -> None:
        """One optimiser step on ``loss``; stops the run when it is not finite."""
        self.detect_anomaly(loss)
        self.model_zero_grad()
        self.scaled(loss).backward()
        self.apply_gradients()

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss`` as it has to be differentiated: times the scale of fp16 autocast."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def apply_gradients(self) -> None:
        """Let the optimisers use the gradients of :meth:`scaled` losses."""
        if self.scaler is None:
            self.model_update()
            return
        for name in self.get_model_names():
            self.scaler.step(self._optims[name])
        self.scaler.update()

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def test(self, split=None):
        """Dassl's, and the curve of ``TEST.EVALUATOR Union`` is noted in results.json."""
        result = super().test(split)
        if isinstance(self.evaluator, Union):
            self.write_results({"seen_unseen_curve": self.evaluator.curve})
        return result

    def model_inference(self, input):
        with self.autocast():
            return self.model(input)
