"""PromptKD: a prompted student image tower distilled from a prompt-tuned larger CLIP on unlabelled images.

Source: Li et al., CVPR 2024. The teacher is a PromptSRC run of the larger CLIP (docs/promptkd.md says how to
make one); its text features serve both models, so the student has no text tower.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts, normalize, place
from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.models.weights import weights_digest
from dassl_prompts.trainers.ivlp import (
    TEXT_CTX,
    TEXT_DEEP,
    IVLPModel,
    check_depth,
    place_visual_prompts,
    refuse_unused_prompts,
    text_prompts,
    visual_prompts,
)
from dassl_prompts.trainers.promptkd.teacher import TeacherCache, load_teacher

MODALS = ("base2novel", "cross")
SELECTIONS = ("val", "official_test")


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.PROMPTKD",
        {
            "N_CTX_VISION": 4,  # student's tokens per layer in the image tower
            "N_CTX_TEXT": 4,  # kept for official configuration files; the teacher's checkpoint decides
            "CTX_INIT": "a photo of a",  # likewise
            "PREC": "amp",  # fp16, fp32, amp
            "PROMPT_DEPTH_VISION": 9,  # student's layers with own tokens
            "PROMPT_DEPTH_TEXT": 9,  # kept for official configuration files
            "TEMPERATURE": 1.0,
            "KD_WEIGHT": 1000.0,  # 200.0 for FGVCAircraft, OxfordFlowers, DescribableTextures
            "TEACHER_NAME": "ViT-L/14",  # the teacher's CLIP, as in MODEL.BACKBONE.NAME
            "TEACHER_ACTIVATION": "",  # of a weight file of which nothing tells it, as in MODEL.BACKBONE.ACTIVATION
            "TEACHER_DIR": "",  # run folder of the teacher (PromptSRC on TEACHER_NAME) or its checkpoint file
            "TEACHER_EPOCH": -1,  # -1 = the best one if it was kept, else the newest
            # File that keeps the teacher's image features between runs. Approximate: the teacher then sees the
            # test view of each image, not the augmented one that the student gets. "" = off.
            "TEACHER_CACHE": "",
            # What TEST.FINAL_MODEL best_val selects the epoch on: val, or official_test = the *test* images (of
            # the base classes in base2novel), as the official runs do. By default the last epoch counts.
            "SELECT": "val",
        },
    )
    add_defaults(
        cfg,
        "TRAINER",
        {
            "MODAL": "base2novel",  # distil on all classes, score base and new apart; cross: score all together
        },
    )


class PointwiseConv(nn.Conv2d):
    """1x1 convolution applied to vectors ``[B, D]``: a linear map that keeps the official weight shape
    ``[out, in, 1, 1]``."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias)


class Projector(nn.Module):
    """h: student features ``[B, E_S]`` to the teacher's space ``[B, E_T]``, 1x1 conv - BatchNorm - ReLU - 1x1
    conv.

    Attributes:
        frozen_statistics: keep BatchNorm in evaluation mode while training (DPC's stage 2).
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv1 = nn.Sequential(
            PointwiseConv(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU(), PointwiseConv(n_out, n_out)
        )
        self.frozen_statistics = False

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen_statistics:
            self.conv1[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.conv1(x.float())


class PromptKDModel(PromptedCLIP):
    """Student: visual prompts and projector on ``clip``; class features come from ``teacher``.

    Args:
        clip: the student's frozen CLIP.
        classnames: classes to score.
        teacher: prompt-tuned larger CLIP for the same classes; frozen.
        n_vision, depth_vision: student's visual tokens per layer and number of layers with own tokens.
    """

    checkpoint_name = "VLPromptLearner"

    def __init__(self, clip, classnames, teacher: IVLPModel, n_vision=4, depth_vision=9):
        super().__init__(clip, classnames)
        if teacher.classnames != self.classnames:
            raise ValueError(
                f"teacher and student must score the same classes in the same order: the teacher has "
                f"{len(teacher.classnames)} starting with {teacher.classnames[:3]}, the student "
                f"{len(self.classnames)} starting with {self.classnames[:3]}"
            )
        # without visual prompts the student would learn the projector alone, which is another method
        check_depth(
            "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION", depth_vision, clip.vision.layers if clip.is_vit else 1, least=1
        )
        self.teacher = teacher.requires_grad_(False)
        self.depth_vision = depth_vision
        self.class_prompts = teacher.class_prompts
        place_visual_prompts(self, clip, n_vision, depth_vision, "PROMPTKD")
        self.VPT_image_trans = Projector(clip.embed_dim, teacher.clip.embed_dim)
        self.depth_text = 0  # no text prompts of its own; see add_text_prompts
        self._teacher_text = None

    def prompt_parameters(self):
        return [p for name, p in self.named_parameters() if not name.startswith(("clip.", "teacher."))]

    def frozen_digests(self):
        own = {f"prompts.{n}": p for n, p in self.teacher.named_parameters() if not n.startswith("clip.")}
        prompts, tower = weights_digest(own), self.teacher.clip.digest
        # the teacher's text tower scores the classes, its prompts with it
        return {**super().frozen_digests(), "teacher": prompts, "teacher's backbone": tower}

    def add_text_prompts(self) -> None:
        """Give the model text prompts of its own, copied from the teacher's, for the teacher's text tower.

        PromptKD has none; DPC's second stage learns these. From then on ``emit`` holds them and class
        features follow.
        """
        tuned = self.teacher.emit()
        if tuned.text is None:
            raise ValueError("the teacher was trained without text prompts, so there are none to copy")
        self.depth_text = 1 + len(tuned.text_deep)
        place(self, TEXT_CTX, tuned.text)
        for i, tokens in enumerate(tuned.text_deep, start=1):
            place(self, TEXT_DEEP.format(i), tokens)

    def emit(self) -> Prompts:
        return Prompts(*text_prompts(self, self.depth_text), *visual_prompts(self, self.depth_vision))

    @property
    def teacher_text(self) -> Tensor:
        """The teacher's normalised class features ``[C, E_T]``: computed at first use and kept."""
        if self._teacher_text is None:
            with torch.no_grad():
                self._teacher_text = self.teacher.encode_classes(self.teacher.emit())
        return self._teacher_text

    def encode_classes(self, prompts, index=None):
        if prompts.text is not None:
            return self.teacher.encode_classes(prompts, index)
        return self.teacher_text if index is None else self.teacher_text[index.to(self.teacher_text.device)]

    def encode_images(self, images, prompts):
        """Normalised projected student features ``[B, E_T]``."""
        features = self.clip.vision(images, prompts.vision, prompts.vision_deep)
        return normalize(self.VPT_image_trans(features))

    @torch.no_grad()
    def teacher_image_features(self, images: Tensor) -> Tensor:
        """Normalised teacher features ``[B, E_T]``."""
        return self.teacher.encode_images(images, self.teacher.emit())

    def teacher_logits(self, features: Tensor) -> Tensor:
        """``s_T V_T G^T`` from :meth:`teacher_image_features`, with the teacher's own class features."""
        return self.teacher.logits(features, self.teacher_text)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """tau^2 / (B C) * sum KL(softmax(z_T / tau) || softmax(z_S / tau)) for logits ``[B, C]``, without its
    weight."""
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(log_p, log_q, reduction="sum", log_target=True) * temperature**2 / student.numel()


# -- training ------------------------------------------------------------------------------------------------


@register_trainer
class PromptKD(ClassificationTrainer):
    """PromptKD: a prompted image tower distilled from a larger prompt-tuned CLIP on unlabelled images.

    KD_WEIGHT * KL between teacher and student on images whose labels are not used.
    """

    config_node = "PROMPTKD"
    #: the words that stand fixed in front of the teacher's class names are the student's, too
    reading_keys = ("TRAINER.PROMPTKD.CTX_INIT",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        node = method_node(cfg, self.config_node)
        if cfg.TRAINER.MODAL not in MODALS:
            raise ValueError(f"TRAINER.MODAL is {cfg.TRAINER.MODAL!r}; choose one of {', '.join(MODALS)}")
        if node.SELECT not in SELECTIONS:
            raise ValueError(f"TRAINER.PROMPTKD.SELECT is {node.SELECT!r}; choose one of {', '.join(SELECTIONS)}")
        if node.SELECT == "official_test" and cfg.TEST.FINAL_MODEL != "best_val":
            raise ValueError(
                "TRAINER.PROMPTKD.SELECT official_test has no effect without TEST.FINAL_MODEL best_val: set both"
            )
        if node.TEMPERATURE <= 0:
            raise ValueError(f"TRAINER.PROMPTKD.TEMPERATURE is {node.TEMPERATURE}; it must be positive")

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = method_node(cfg, "PROMPTKD")
        teacher = load_teacher(cfg, classnames, clip)
        return PromptKDModel(clip, classnames, teacher, node.N_CTX_VISION, node.PROMPT_DEPTH_VISION)

    @classmethod
    def load_state(cls, model, state, source):
        state = strip_module(state)
        for key in ("VPT_image_trans.conv1.0.weight", "VPT_image_trans.conv1.3.weight"):
            if key in state and state[key].ndim == 2:  # written with linear layers
                state[key] = state[key][:, :, None, None]
        refuse_unused_prompts(model, state, source, "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION")
        super().load_state(model, state, source)

    def before_train(self):
        cfg, node = self.cfg, method_node(self.cfg, self.config_node)
        if cfg.DATALOADER.TRAIN_X.BATCH_SIZE < 2:
            raise ValueError(
                "DATALOADER.TRAIN_X.BATCH_SIZE must be at least 2: the projector's BatchNorm needs several images"
            )
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all" or cfg.DATASET.NUM_SHOTS > 0:
            print(
                "Warning: PromptKD distils on all unlabelled images of all classes: "
                "DATASET.SUBSAMPLE_CLASSES all, "
                f"DATASET.NUM_SHOTS 0; this run has {cfg.DATASET.SUBSAMPLE_CLASSES} and "
                f"{cfg.DATASET.NUM_SHOTS}"
            )
        if node.SELECT == "official_test":
            print(
                "Warning: TRAINER.PROMPTKD.SELECT official_test chooses the epoch on TEST images, as the "
                "official runs do; "
                "the result is biased upwards and comparable only with results chosen likewise"
            )
        self.check_teacher_classes()
        self.teacher_cache = TeacherCache(self, node.TEACHER_CACHE) if node.TEACHER_CACHE else None
        super().before_train()

    def check_teacher_classes(self):
        """Base-to-new: the teacher must have been trained on (half of) the classes that the student is
        distilled on."""
        taught = self.read_run(method_node(self.cfg, self.config_node).TEACHER_DIR).get("classnames")
        if taught is None or self.cfg.TRAINER.MODAL == "cross":  # official runs do not say
            return
        unknown = sorted(set(taught) - set(self.dm.dataset.classnames))
        if unknown:
            raise ValueError(
                f"TRAINER.PROMPTKD.TEACHER_DIR holds a teacher for other classes ({len(unknown)} of its "
                f"{len(taught)} are not "
                f"in this dataset, e.g. {unknown[0]}): give this dataset's teacher, or TRAINER.MODAL cross"
            )

    # -- one step --------------------------------------------------------------------------------------------

    def parse_batch_train(self, batch):
        self.batch_index = batch["index"]
        return super().parse_batch_train(batch)

    def loss(self, images, labels):
        """The labels stay unused; ``agree`` is how often student and teacher name the same class, in
        percent."""
        node = method_node(self.cfg, self.config_node)
        features = self.teacher_features(images)
        taught, student = self.model.teacher_logits(features), self.model(images)
        return {
            "loss": node.KD_WEIGHT * distillation_loss(student, taught, node.TEMPERATURE),
            "agree": 100.0 * (student.argmax(1) == taught.argmax(1)).float().mean(),
        }

    def teacher_features(self, images: Tensor) -> Tensor:
        """``[B, E_T]`` of the batch, from the cache if there is one."""
        if self.teacher_cache is None:
            return self.model.teacher_image_features(images)
        return self.teacher_cache.features[self.batch_index].to(images.device)

    # -- selection -------------------------------------------------------------------------------------------

    def test(self, split=None):
        selects_on_test = method_node(self.cfg, self.config_node).SELECT == "official_test"
        if split != "val" or not selects_on_test:
            return super().test(split)
        return self.test_accuracy(base_only=self.cfg.TRAINER.MODAL == "base2novel")

    @torch.no_grad()
    def test_accuracy(self, base_only: bool) -> float:
        """Accuracy on the test images in percent; ``base_only`` scores base images among the base classes
        alone."""
        self.set_model_mode("eval")
        count = math.ceil(len(self.model.classnames) / 2) if base_only else len(self.model.classnames)
        correct = total = 0
        for batch in self.test_loader:
            images, labels = self.parse_batch_test(batch)
            mine = labels < count
            if mine.any():
                guesses = self.model_inference(images[mine])[:, :count].argmax(1)
                correct += int((guesses == labels[mine]).sum())
                total += int(mine.sum())
        accuracy = 100.0 * correct / total
        print(f"Selection on the *test* set{' (base classes)' if base_only else ''}: {accuracy:.2f}%")
        return accuracy
