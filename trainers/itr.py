"""Baselines of few-shot image-text retrieval in DCAR's protocol (arXiv 2508.04028): zero-shot CLIP, CoOp,
CLIP-Adapter, MaPLe.

How the paper adapted them to captions is not published. Here: the class-prompt methods keep what they learn,
a caption takes the place of "a photo of a <class>.", and cross-entropy runs over the captions of the batch
(``LOSS.DIRECTION i2t``).
"""

from __future__ import annotations

from dassl_prompts.captions import evaluation
from dassl_prompts.captions.model import ResidualAdapter, RetrievalModel
from dassl_prompts.captions.trainer import RetrievalTrainer
from dassl_prompts.classification.prompted import Prompts
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.config import refuse_pairs
from dassl_prompts.trainers.coop import PromptLearner, initial_context, tell_word_count
from dassl_prompts.trainers.ivlp import check_depth, random_tokens
from dassl_prompts.trainers.maple import MultiModalPromptLearner


def extend_cfg(cfg):
    evaluation.extend_cfg(cfg)
    loss = {
        "DIRECTION": "i2t",  # both, i2t (captions per image, as classification has it) or t2i
        "DEDUP": True,  # equal captions of a batch are equally right
    }
    add_defaults(cfg, "TRAINER.ZEROSHOTITR", {"PREC": "amp"})
    add_defaults(
        cfg,
        "TRAINER.COOPITR",
        {
            "N_CTX": 16,  # number of context tokens in front of the caption
            "CTX_INIT": "",  # words that start the context; then N_CTX is their number
            "PREC": "amp",  # fp16, fp32, amp
            "LOSS": loss,
        },
    )
    add_defaults(
        cfg,
        "TRAINER.CLIPADAPTERITR",
        {
            "REDUCTION": 4,  # width of the bottleneck: joint width / REDUCTION
            "RATIO": 0.2,  # share of the adapter's output
            "PREC": "amp",
            "LOSS": loss,
        },
    )
    add_defaults(
        cfg,
        "TRAINER.MAPLEITR",
        {
            "N_CTX": 2,  # tokens per layer in either tower
            "CTX_INIT": "a photo of a",  # its first N_CTX words start the first text layer
            "PROMPT_DEPTH": 9,  # layers with own tokens; 1 = shallow
            "PREC": "amp",
            "LOSS": loss,
        },
    )


def caption_context(text, n_ctx: int, words: str):
    """Layer-0 context ``[n, d_t]``: the embeddings of the first ``n_ctx`` words, N(0, 0.02^2) where there are
    not that many.
    """
    embedded = text.embed_words(words.replace("_", " ")) if words else None
    if embedded is None or len(embedded) < n_ctx:
        if words:
            print(
                f"CTX_INIT {words!r} has {len(embedded)} tokens, fewer than N_CTX {n_ctx}: the context starts at random"
            )
        return random_tokens(n_ctx, text.width)
    return embedded[:n_ctx]


@register_trainer
class ZeroshotITR(RetrievalTrainer):
    """Zero-shot CLIP for image-text retrieval.

    CLIP on raw captions; evaluation only.
    """

    config_node = "ZEROSHOTITR"

    @classmethod
    def check_method(cls, cfg):
        remedy = "it learns nothing that weights could start; leave INIT_WEIGHTS empty"
        refuse_pairs(cfg, "MODEL", [(bool(cfg.MODEL.INIT_WEIGHTS), "INIT_WEIGHTS", "TRAINER.NAME", remedy)])

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return RetrievalModel(clip)

    def register_net(self):
        # Dassl asks for at least the name of a model to switch modes; there is nothing to optimise
        self.register_model("zero_shot", self.model)

    def before_train(self):
        raise ValueError("ZeroshotITR has nothing to train: run it with --eval-only")


class CoOpCaptions(RetrievalModel):
    """``[SOT] ctx caption [EOT]``; the image tower stays as it is."""

    def __init__(self, clip, n_ctx=16, ctx_init=""):
        super().__init__(clip)
        ctx = initial_context(clip.text, n_ctx, ctx_init.replace("_", " "))
        self.n_ctx = len(ctx)
        self.prompt_learner = PromptLearner(ctx)

    @property
    def checkpoint_module(self):
        return self.prompt_learner

    def emit(self) -> Prompts:
        return Prompts(text=self.prompt_learner.ctx)


@register_trainer
class CoOpITR(RetrievalTrainer):
    """CoOp for image-text retrieval.

    CoOp with captions for class names.
    """

    config_node = "COOPITR"

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.COOPITR
        tell_word_count(clip.text, node, "TRAINER.COOPITR")
        return CoOpCaptions(clip, node.N_CTX, node.CTX_INIT)


class CLIPAdapter(RetrievalModel):
    """Both towers frozen; a residual adapter on the image features (Gao et al., IJCV 2024)."""

    checkpoint_name = "clip_adapter"

    def __init__(self, clip, reduction=4, ratio=0.2):
        super().__init__(clip)
        if reduction < 1:
            raise ValueError(f"TRAINER.CLIPADAPTERITR.REDUCTION is {reduction}; give at least 1")
        self.adapter = ResidualAdapter(clip.embed_dim, max(1, clip.embed_dim // reduction), ratio)

    @property
    def checkpoint_module(self):
        return self.adapter

    def refine_images(self, features):
        return self.adapter(features)


@register_trainer
class CLIPAdapterITR(RetrievalTrainer):
    """CLIP-Adapter for image-text retrieval.

    CLIP-Adapter with captions for class names; trains on features computed once.
    """

    config_node = "CLIPADAPTERITR"
    reading_keys = ("TRAINER.CLIPADAPTERITR.RATIO", "TRAINER.CLIPADAPTERITR.REDUCTION")

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return CLIPAdapter(clip, cfg.TRAINER.CLIPADAPTERITR.REDUCTION, cfg.TRAINER.CLIPADAPTERITR.RATIO)


class MaPLeCaptions(RetrievalModel):
    """Text tokens in front of the caption, visual tokens coupled to them by linear maps."""

    checkpoint_name = "MultiModalPromptLearner"

    def __init__(self, clip, n_ctx=2, ctx_init="a photo of a", depth=9, node="MAPLEITR"):
        super().__init__(clip)
        if not clip.is_vit:
            raise ValueError(f"TRAINER.{node} puts prompts into a vision transformer; set MODEL.BACKBONE.NAME to a ViT")
        if n_ctx < 1:
            raise ValueError(f"TRAINER.{node}.N_CTX is {n_ctx}; give at least 1")
        check_depth(f"TRAINER.{node}.PROMPT_DEPTH", depth, min(clip.text.layers, clip.vision.layers), least=1)
        self.n_ctx = n_ctx
        self.prompt_learner = MultiModalPromptLearner(
            caption_context(clip.text, n_ctx, ctx_init), depth, clip.vision.width
        )

    @property
    def image_side_is_frozen(self):
        return False

    def emit(self) -> Prompts:
        return self.prompt_learner()


@register_trainer
class MaPLeITR(RetrievalTrainer):
    """MaPLe for image-text retrieval.

    MaPLe with captions for class names.
    """

    config_node = "MAPLEITR"

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.MAPLEITR
        return MaPLeCaptions(clip, node.N_CTX, node.CTX_INIT, node.PROMPT_DEPTH)
