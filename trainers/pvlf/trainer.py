"""PVLF: prompted vision-language fusion for zero-shot composed image retrieval (Wang et al., ACML 2024).

The reference image's and the caption's token features go through a small transformer with learnable prompts
between them; the fused pair decides how text, image and fusion feature add up to the query. docs/pvlf.md says
what is from the paper, what from TransAgg's code, and what is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.composed.trainer import ComposedTrainer, StepCosine
from dassl_prompts.engine import add_defaults, build_optimizer, register_trainer
from dassl_prompts.engine.config import one_of, refuse_pairs
from dassl_prompts.models import resolve_precision
from dassl_prompts.models.backbones import load_token_encoder
from dassl_prompts.models.tokens import TUNING_MODES, TokenEncoder
from dassl_prompts.trainers.pvlf.fusion import (
    AdaptiveAggregation,
    ComposedQueryEncoder,
    FusionTransformer,
    focal_info_nce,
)

DEFAULTS = {
    "PREC": "amp",  # fp32 or amp; on CPU always fp32
    "FUSION": {
        "NUM_LAYERS": 2,  # fusion layers; the paper's J is both this and PROMPT.DEPTH
        "HEADS": 8,
        "FF_DIM": 2048,
        "DROPOUT": 0.5,
        "ACT": "gelu",  # gelu or relu
        "BLOCK": "pre_ln",  # pre_ln (TransAgg's code), paper_literal (eqs. 10-11 as printed), post_ln
        "FINAL_NORM": False,  # LayerNorm after the last layer
        "MASK_MODE": "bool",  # bool hides padding; official_bias: +1 on its logits (TransAgg's code); none
        "SEPARATOR": False,  # TransAgg's separator token
        "TYPE_EMBED": False,  # learned vectors for text, prompts, image
        "POS_EMBED": False,  # learned positions of text and image tokens
    },
    "PROMPT": {
        "LENGTH": 25,  # prompts per layer
        "MODE": "deep",  # deep, shallow or none
        "DEPTH": 2,  # mode deep: layers with prompts of their own, at most FUSION.NUM_LAYERS
        "INIT_STD": 0.02,
    },
    "AGG": {
        "HIDDEN_MULT": 8,  # hidden width of the MLP in multiples of the feature width
        "DROPOUT": 0.5,
        "MLP_INPUT": "fused",  # fused or encoder: which globals the MLP reads
        "RESIDUAL": "encoder",  # encoder or fused: which globals enter the weighted sum
        "WEIGHT_ACT": "none",  # none, softmax or sigmoid on the three weights
        "WEIGHT_BIAS_INIT": [],  # e.g. [1., 0., 1.] for (text, fused, image); empty = PyTorch's random bias
        "NORMALIZE_INPUTS": False,  # normalise the globals before the sum
    },
    "LOSS": {
        "NAME": "focal",  # focal or ce
        "ALPHA": 1.0,
        "GAMMA": 2.0,
        "TAU": 0.01,
        "SYMMETRIC": False,  # also rank queries per target
        "MASK_DUP_TARGETS": False,  # rows of a batch with the same target do not count as negatives
        "STOPGRAD_TARGET": False,  # no gradient through the target images in mode both
    },
    "BACKBONE": {
        "TUNE": "both",  # none, text or both: which towers are fine-tuned
        "LR": 1e-6,  # constant rate of the towers
        "TEXT_DROPOUT": 0.1,  # BLIP's text tower while it is tuned
        "FROZEN_DROPOUT": False,  # the same dropout in training while that tower is frozen (TransAgg's code)
    },
    "OPTIM": {
        "ETA_MIN_RATIO": 0.01,  # the cosine ends at this fraction of OPTIM.LR
        "GRAD_CLIP": 5.0,  # global norm; 0 = no clipping
        "DECAY_ALL": True,  # weight decay also on biases, norms and prompts, as TransAgg's code does
    },
}


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.PVLF", DEFAULTS)


def build_query_encoder(node, encoder: TokenEncoder) -> ComposedQueryEncoder:
    """The learnable part for the backbone's widths, from the method's config node."""
    f, p, a = node.FUSION, node.PROMPT, node.AGG
    fusion = FusionTransformer(
        encoder.width,
        num_layers=f.NUM_LAYERS,
        heads=f.HEADS,
        ff_dim=f.FF_DIM,
        dropout=f.DROPOUT,
        act=f.ACT,
        block=f.BLOCK,
        mask_mode=f.MASK_MODE,
        final_norm=f.FINAL_NORM,
        separator=f.SEPARATOR,
        type_embed=f.TYPE_EMBED,
        pos_embed=f.POS_EMBED,
        max_text=encoder.max_text,
        max_image=encoder.n_image,
        prompt_length=p.LENGTH,
        prompt_mode=p.MODE,
        prompt_depth=p.DEPTH,
        prompt_std=p.INIT_STD,
    )
    if len(a.WEIGHT_BIAS_INIT) not in (0, 3):
        raise ValueError(
            f"AGG.WEIGHT_BIAS_INIT is {a.WEIGHT_BIAS_INIT}; give three numbers (text, fused, image) or none"
        )
    aggregation = AdaptiveAggregation(
        encoder.width,
        hidden_mult=a.HIDDEN_MULT,
        dropout=a.DROPOUT,
        mlp_input=a.MLP_INPUT,
        residual=a.RESIDUAL,
        weight_act=a.WEIGHT_ACT,
        weight_bias=tuple(a.WEIGHT_BIAS_INIT) or None,
        normalize_inputs=a.NORMALIZE_INPUTS,
    )
    return ComposedQueryEncoder(fusion, aggregation)


class ComposedModel(nn.Module):
    """Backbone and fusion head; what is checkpointed are the head and the tuned towers."""

    def __init__(self, encoder: TokenEncoder, head: ComposedQueryEncoder):
        super().__init__()
        self.encoder, self.head = encoder, head
        # padding that is hidden need not be computed
        self.trim_text = head.fusion.mask_mode == "bool"

    def query(self, captions: Sequence[str], images: Tensor) -> Tensor:
        """Captions and token maps [B, n_image, d] of their references -> normalised fp32 queries [B, d]."""
        text = self.encoder.text_tokens(captions, trim=self.trim_text)
        return self.head(text.tokens, text.row, text.pad, images)

    forward = query


def build_composed_model(backbone: str, node, device="cpu", activation: str = "") -> ComposedModel:
    """Backbone and head of a method's config node, with the towers frozen or not as ``BACKBONE.TUNE``
    says."""
    encoder = load_token_encoder(backbone, device, node.BACKBONE.TEXT_DROPOUT, activation)
    encoder.tune(node.BACKBONE.TUNE)
    encoder.frozen_dropout = node.BACKBONE.FROZEN_DROPOUT
    return ComposedModel(encoder, build_query_encoder(node, encoder)).to(device)


@register_trainer
class PVLF(ComposedTrainer):
    """PVLF: prompted vision-language fusion for composed image retrieval.

    Fusion head and, by ``BACKBONE.TUNE``, the towers, trained on triplets with in-batch negatives.
    """

    config_node = "PVLF"
    #: what shapes the head; rates, losses and dropout shape its training
    reading_leaves = (
        *(f"FUSION.{key}" for key in ("NUM_LAYERS", "HEADS", "FF_DIM", "ACT", "BLOCK", "FINAL_NORM", "MASK_MODE")),
        *(f"FUSION.{key}" for key in ("SEPARATOR", "TYPE_EMBED", "POS_EMBED")),
        *(f"PROMPT.{key}" for key in ("LENGTH", "MODE", "DEPTH")),
        *(f"AGG.{key}" for key in ("HIDDEN_MULT", "MLP_INPUT", "RESIDUAL", "WEIGHT_ACT", "NORMALIZE_INPUTS")),
        "BACKBONE.TUNE",
    )
    reading_keys = tuple(f"TRAINER.PVLF.{key}" for key in reading_leaves)

    @classmethod
    def build_net(cls, cfg, device="cpu") -> ComposedModel:
        backbone = cfg.MODEL.BACKBONE
        return build_composed_model(backbone.NAME, cfg.TRAINER[cls.config_node], device, backbone.get("ACTIVATION", ""))

    @property
    def node(self):
        return self.cfg.TRAINER[self.config_node]

    def check_cfg(self, cfg):
        node, name = cfg.TRAINER[self.config_node], f"TRAINER.{self.config_node}"
        one_of(node.PREC, ("fp32", "amp"), f"{name}.PREC")
        one_of(node.LOSS.NAME, ("focal", "ce"), f"{name}.LOSS.NAME")
        one_of(node.BACKBONE.TUNE, TUNING_MODES, f"{name}.BACKBONE.TUNE")
        one_of(cfg.CIR.CACHE_DTYPE, ("fp16", "fp32"), "CIR.CACHE_DTYPE")
        prompts = node.PROMPT
        empty = "there would be no prompts; set PROMPT.MODE none, or at least 1"
        refuse_pairs(
            cfg,
            name,
            [
                (
                    node.LOSS.STOPGRAD_TARGET and node.BACKBONE.TUNE != "both",
                    "LOSS.STOPGRAD_TARGET",
                    "BACKBONE.TUNE",
                    "the image tower has no gradient to stop; set BACKBONE.TUNE both, or STOPGRAD_TARGET False",
                ),
                (prompts.MODE != "none" and prompts.LENGTH == 0, "PROMPT.MODE", "PROMPT.LENGTH", empty),
                (
                    cfg.OPTIM.STAGED_LR,
                    "OPTIM.STAGED_LR",
                    "TRAINER.NAME",
                    f"its towers have the rate {name}.BACKBONE.LR; set OPTIM.STAGED_LR False",
                ),
            ],
        )
        if not node.LOSS.TAU > 0:
            raise ValueError(f"{name}.LOSS.TAU is {node.LOSS.TAU}; the temperature must be positive")

    def build_model(self):
        node = self.node
        print(f"Loading the backbone {self.cfg.MODEL.BACKBONE.NAME}")
        self.use_net()

        amp = resolve_precision(node.PREC, self.device) == "amp"
        self.autocast_dtype = (torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16) if amp else None
        self.scaler = torch.amp.GradScaler("cuda") if self.autocast_dtype is torch.float16 else None

        self.optim = build_optimizer(self.model, self.cfg.OPTIM, param_groups=self.param_groups())
        self.sched = StepCosine(self.optim, self.max_epoch, end_ratio=node.OPTIM.ETA_MIN_RATIO)
        count = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        print(f"{count:,} trained parameters, towers: {node.BACKBONE.TUNE}")
        self.register_model("composed", self.model, self.optim, self.sched)

    def param_groups(self) -> list[dict]:
        """New modules with OPTIM.LR, towers with a constant rate; biases, norms and prompts apart if they are
        not to decay."""
        node = self.node
        towers = [("", p) for p in self.encoder.parameters() if p.requires_grad]
        groups = []
        for parameters, rate in (
            (list(self.model.head.named_parameters()), {"lr": self.cfg.OPTIM.LR}),
            (towers, {"lr": node.BACKBONE.LR, "constant": True}),
        ):
            exempt = (
                []
                if node.OPTIM.DECAY_ALL
                else [p for name, p in parameters if p.ndim < 2 or "prompts" in name or "sep" in name]
            )
            ids = {id(p) for p in exempt}
            groups.append({"params": [p for _, p in parameters if id(p) not in ids], **rate})
            groups.append({"params": exempt, "weight_decay": 0.0, **rate})
        return [group for group in groups if group["params"]]

    # -- one step --------------------------------------------------------------------------------------------

    def forward_backward(self, batch):
        with self.autocast():
            references, targets = self.image_side(batch["reference"].to(self.device), batch["target"].to(self.device))
            queries = self.model(batch["caption"], references)
        targets = F.normalize(targets.float(), dim=-1)
        loss = self.loss(queries, targets, batch["target_id"].to(self.device))
        self.step(loss)
        hits = (queries.detach() @ targets.detach().T).argmax(1).cpu() == torch.arange(len(queries))
        return {"loss": loss.item(), "acc": 100 * hits.float().mean().item()}

    def image_side(self, reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Token maps of the references and global features of the targets, from the cache's rows or from
        images."""
        if self.caches_images:
            return reference.float(), target
        node = self.node
        with torch.set_grad_enabled(node.BACKBONE.TUNE == "both"):
            references = self.encoder.image_tokens(reference)
        with torch.set_grad_enabled(node.BACKBONE.TUNE == "both" and not node.LOSS.STOPGRAD_TARGET):
            return references, self.encoder.image_features(target)

    def loss(self, queries: Tensor, targets: Tensor, target_ids: Tensor) -> Tensor:
        """Focal loss (PVLF) or cross-entropy (TransAgg) of the in-batch softmax, eqs. 14-15."""
        loss = self.node.LOSS
        return focal_info_nce(
            queries,
            targets,
            tau=loss.TAU,
            alpha=loss.ALPHA,
            gamma=loss.GAMMA if loss.NAME == "focal" else 0.0,
            symmetric=loss.SYMMETRIC,
            target_ids=target_ids if loss.MASK_DUP_TARGETS else None,
        )

    def step(self, loss: Tensor) -> None:
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            self.scaler.unscale_(self.optim)
        if self.node.OPTIM.GRAD_CLIP > 0:
            nn.utils.clip_grad_norm_(
                (p for group in self.optim.param_groups for p in group["params"]), self.node.OPTIM.GRAD_CLIP
            )
        if self.scaler is None:
            self.optim.step()
        else:
            self.scaler.step(self.optim)
            self.scaler.update()
        self.sched.step()
