"""PromptSRC: independent prompts regulated by the frozen CLIP and averaged over epochs (Khattak et al., ICCV
2023)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.prompted import normalize
from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.classification.trainer import method_node
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.ivlp import IVLP, IVLPModel, ivlp_arguments


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.PROMPTSRC",
        {
            "N_CTX_VISION": 4,  # tokens per layer in the image tower
            "N_CTX_TEXT": 4,  # tokens per layer in the text tower
            "CTX_INIT": "a photo of a",  # starts the first text layer
            "PREC": "amp",  # fp16, fp32, amp
            "PROMPT_DEPTH_VISION": 9,  # layers with own tokens
            "PROMPT_DEPTH_TEXT": 9,
            "TEXT_LOSS_WEIGHT": 25,  # L1 between learned and frozen text features
            "IMAGE_LOSS_WEIGHT": 10,  # L1 between learned and frozen image features
            "GPA_MEAN": 15,  # epoch at which the Gaussian prompt aggregation peaks
            "GPA_STD": 1,  # its width, in epochs
        },
    )


class PromptSRCModel(IVLPModel):
    """IVLP that knows what the frozen CLIP says about the same classes and images.

    Args:
        load_target_clip: gives the CLIP that encodes the frozen text target; the prompted one when None. Its
            features are to be fp32 even when the prompted towers run in half.
    """

    def __init__(self, clip, classnames, *args, load_target_clip: Callable | None = None, **kwargs):
        super().__init__(clip, classnames, *args, **kwargs)
        self._load_target_clip = load_target_clip
        self._text_target = None

    @property
    def text_target(self) -> Tensor:
        """Frozen class features ``[C, E]``: the mean of 60 un-normalised template features, then normalised.

        Computed at first use and kept: one pass per template, so that all classes share its leading words.
        """
        if self._text_target is None:
            clip = self._load_target_clip() if self._load_target_clip else self.clip
            total = 0
            with torch.no_grad(), torch.autocast(self.clip.logit_scale.device.type, enabled=False):
                for template in PROMPTSRC_TEMPLATES:
                    views = clip.text.prompts_from_texts([template.format(name) for name in self.classnames])
                    total = total + clip.text(views).float()
            self._text_target = normalize(total / len(PROMPTSRC_TEMPLATES))
        return self._text_target

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Normalised features ``[B, E]`` of the un-prompted image tower."""
        return normalize(self.clip.encode_image(images))


def consistency_losses(image: Tensor, text: Tensor, frozen_image: Tensor, frozen_text: Tensor, scale: Tensor):
    """PromptSRC's three self-consistency terms, unweighted.

    Args:
        image, frozen_image: normalised image features ``[B, E]`` with and without prompts.
        text, frozen_text: normalised class features ``[C, E]`` with prompts and of the frozen CLIP.
        scale: exp(logit_scale).

    Returns:
        Mean absolute difference of text features, of image features, and KL(frozen || prompted) of the class
        probabilities divided by B times C, as the official code does.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        log_p = F.log_softmax(scale * image @ text.t(), dim=-1)
        log_q = F.log_softmax(scale * frozen_image.float() @ frozen_text.float().t(), dim=-1)
        divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True) / log_p.numel()
        return F.l1_loss(text, frozen_text.float()), F.l1_loss(image, frozen_image.float()), divergence


class GaussianAggregation:
    """Gaussian prompt aggregation: sum over epochs e = 1 .. E of w_e P_e, w_e proportional to exp(-(e -
    mean)^2 / 2 std^2).

    Only the learned tensors are averaged, in fp32 (the official code averages the frozen half weights of
    CLIP, too, which adds rounding noise to them).
    """

    def __init__(self, epochs: int, mean: float, std: float):
        if std <= 0:
            raise ValueError(f"TRAINER.PROMPTSRC.GPA_STD is {std}; it must be positive")
        self.settings = {"epochs": epochs, "mean": float(mean), "std": float(std)}
        exponents = [-((e - mean) ** 2) / (2 * std**2) for e in range(1, epochs + 1)]
        highest = max(exponents)  # keeps far-away means from underflowing to 0 / 0
        unnormalised = [math.exp(x - highest) for x in exponents]
        self.weights = [w / sum(unnormalised) for w in unnormalised]
        self.total: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """Add the tensors after ``epoch`` (0-based)."""
        weight = self.weights[epoch]
        for name, tensor in tensors.items():
            part = weight * tensor.detach().float()
            self.total[name] = self.total[name].to(part.device) + part if name in self.total else part

    @torch.no_grad()
    def after_epoch(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        """:meth:`add`, and after the last epoch put the sum into the tensors."""
        self.add(epoch, tensors)
        if epoch + 1 == self.settings["epochs"]:
            print("Using the Gaussian-aggregated prompts for the final model")
            for name, tensor in tensors.items():
                tensor.copy_(self.total[name])

    def state_dict(self) -> dict:
        return {"settings": self.settings, "total": self.total}

    def load_state_dict(self, state: dict) -> None:
        if state["settings"] != self.settings:
            raise ValueError(
                f"the run to resume averages prompts with {state['settings']}, this configuration asks for "
                f"{self.settings}: "
                "keep OPTIM.MAX_EPOCH and TRAINER.PROMPTSRC.GPA_MEAN, GPA_STD or start afresh"
            )
        self.total = dict(state["total"])


@register_trainer
class PromptSRC(IVLP):
    """PromptSRC: independent prompts regulated by the frozen CLIP and averaged over epochs.

    L = CE + 25 |T - T0| + 10 |V - V0| + KL(z0 || z) / BC, then Gaussian prompt aggregation.
    """

    config_node = "PROMPTSRC"
    reading_keys = ("TRAINER.PROMPTSRC.CTX_INIT",)

    @classmethod
    def model_class(cls):
        return PromptSRCModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        load = None
        if clip.dtype is torch.float16:
            load = lambda: cls.load_target_clip(cfg, clip.logit_scale.device)
        return cls.model_class()(clip, classnames, load_target_clip=load, **ivlp_arguments(cfg, cls.config_node))

    @staticmethod
    def load_target_clip(cfg, device):
        """The backbone once more in fp32, for the frozen text target of a half-precision run."""
        from dassl_prompts.models import load_clip

        backbone = cfg.MODEL.BACKBONE
        return load_clip(backbone.NAME, precision="fp32", device=device, activation=backbone.get("ACTIVATION", ""))

    def build_model(self):
        super().build_model()
        node = method_node(self.cfg, self.config_node)
        self.aggregation = GaussianAggregation(self.cfg.OPTIM.MAX_EPOCH, node.GPA_MEAN, node.GPA_STD)

    def regularisers(self, images, image, text):
        node, model = method_node(self.cfg, self.config_node), self.model
        d_text, d_image, d_logits = consistency_losses(
            image, text, model.frozen_image_features(images), model.text_target, model.scale
        )
        return {
            "loss_text": node.TEXT_LOSS_WEIGHT * d_text,
            "loss_image": node.IMAGE_LOSS_WEIGHT * d_image,
            "loss_logits": d_logits,
        }

    # -- Gaussian prompt aggregation -------------------------------------------------------------------------

    def learned_tensors(self) -> dict[str, Tensor]:
        """The learned tensors by name; what is averaged."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def after_epoch(self):
        self.aggregation.after_epoch(self.epoch, self.learned_tensors())
        super().after_epoch()

    def extra_state(self):
        return {"aggregation": self.aggregation.state_dict()}

    def load_extra_state(self, state):
        self.aggregation.load_state_dict(state["aggregation"])
