"""Independent vision-language prompting, shallow or deep, in both towers or in one.

IVLP is the baseline of MaPLe (Khattak et al., CVPR 2023) and the architecture of PromptSRC and of PromptKD's
teacher. With ``PROMPT_DEPTH_TEXT 0`` it is visual prompt tuning (VPT) in front of a fixed template, with
``PROMPT_DEPTH_VISION 0`` it is deep language prompting.
"""

from __future__ import annotations

import re
from operator import attrgetter

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import PromptedCLIP, Prompts, place
from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.engine.checkpoint import strip_module

TEXT_CTX = "prompt_learner.ctx"
TEXT_DEEP = "text_encoder.transformer.resblocks.{}.VPT_shallow"
VISION_CTX = "image_encoder.VPT"
VISION_DEEP = "image_encoder.transformer.resblocks.{}.VPT_shallow"
#: the official code starts the context from words only up to this many tokens
MAX_WORD_INIT = 4


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.IVLP",
        {
            "N_CTX_VISION": 2,  # tokens per layer in the image tower
            "N_CTX_TEXT": 2,  # tokens per layer in the text tower
            "CTX_INIT": "a photo of a",  # starts the first text layer; words beyond N_CTX_TEXT stay fixed
            "PREC": "amp",  # fp16, fp32, amp
            "PROMPT_DEPTH_VISION": 9,  # layers with own tokens; 1 = shallow, 0 = no visual prompts
            "PROMPT_DEPTH_TEXT": 9,  # 1 = shallow, 0 = fixed template CTX_INIT (visual prompt tuning)
        },
    )


def random_tokens(n: int, width: int) -> Tensor:
    """``[n, width]`` from N(0, 0.02^2)."""
    return torch.empty(n, width).normal_(std=0.02)


def language_prompt(text, n_ctx: int, words: str) -> tuple[Tensor, str]:
    """First-layer context ``[n, d_t]`` and the words left over, which stand fixed between context and class
    name.

    As in the official code, the context replaces only the first ``n_ctx`` of the initial words ("a photo of
    a" with two tokens reads ``[v1][v2] of a <class>.``), and with more than four tokens the words are
    ignored.

    Raises:
        ValueError: fewer words than tokens, or a word that is not exactly one token.
    """
    words = words.replace("_", " ").strip()
    if n_ctx < 1:
        raise ValueError(f"the text prompt needs at least one context token, got {n_ctx} (N_CTX, N_CTX_TEXT)")
    if words and n_ctx > MAX_WORD_INIT:
        print(
            f"CTX_INIT {words!r} is not used with {n_ctx} context tokens, more than {MAX_WORD_INIT}, as in the official code"
        )
    if not words or n_ctx > MAX_WORD_INIT:
        return random_tokens(n_ctx, text.width), ""
    embedded = text.embed_words(words)
    if len(embedded) != len(words.split()):
        raise ValueError(f"CTX_INIT {words!r}: every word must be one token of CLIP's vocabulary; use simpler words")
    if len(embedded) < n_ctx:
        raise ValueError(f"CTX_INIT {words!r} has {len(embedded)} words, fewer than the {n_ctx} context tokens (N_CTX)")
    return embedded[:n_ctx].detach(), " ".join(words.split()[n_ctx:])


def check_depth(key: str, depth: int, layers: int, least: int = 0) -> None:
    """Refuse a prompt depth that the tower does not have."""
    if not least <= depth <= layers:
        raise ValueError(f"{key} is {depth}, but this backbone's tower has {layers} layers: give {least} to {layers}")


class IVLPModel(PromptedCLIP):
    """Learned tokens in both towers that do not know of each other.

    Args:
        clip: frozen CLIP.
        classnames: classes to score.
        n_text, n_vision: tokens per layer.
        depth_text, depth_vision: number of layers with own tokens; 0 switches the branch off.
        ctx_init: initial words of the text context; with ``depth_text`` 0 the fixed words before the class
        name.
        node: configuration node to name in errors.
    """

    checkpoint_name = "VLPromptLearner"

    def __init__(
        self,
        clip,
        classnames,
        n_text=2,
        n_vision=2,
        depth_text=9,
        depth_vision=9,
        ctx_init="a photo of a",
        node="IVLP",
    ):
        super().__init__(clip, classnames)
        if not depth_text and not depth_vision:
            raise ValueError(f"TRAINER.{node}: PROMPT_DEPTH_TEXT and PROMPT_DEPTH_VISION are both 0: nothing to learn")
        check_depth(f"TRAINER.{node}.PROMPT_DEPTH_TEXT", depth_text, clip.text.layers)
        self.depth_text, self.depth_vision = depth_text, depth_vision
        if depth_text:
            ctx, words = language_prompt(clip.text, n_text, ctx_init)
            place(self, TEXT_CTX, ctx)
            for i in range(1, depth_text):
                place(self, TEXT_DEEP.format(i), random_tokens(n_text, clip.text.width))
        else:
            n_text, words = 0, ctx_init.replace("_", " ")
        self.class_prompts = clip.text.class_prompts(self.classnames, n_ctx=n_text, words=words)
        if depth_vision:
            place_visual_prompts(self, clip, n_vision, depth_vision, node)
        self._fixed_text = None

    def emit(self) -> Prompts:
        return Prompts(*text_prompts(self, self.depth_text), *visual_prompts(self, self.depth_vision))

    def text_features(self, prompts, index=None):
        if prompts.text is not None:
            return super().text_features(prompts, index)
        if self._fixed_text is None:  # nothing to learn on this side: once per run
            with torch.no_grad():
                self._fixed_text = super().text_features(prompts)
        return self._fixed_text if index is None else self._fixed_text[index.to(self._fixed_text.device)]


def place_visual_prompts(model, clip, n: int, depth: int, node: str) -> None:
    """Register ``depth`` layers of ``n`` visual tokens under their official names."""
    if not clip.is_vit:
        raise ValueError(f"TRAINER.{node}: visual prompts need a vision transformer; set MODEL.BACKBONE.NAME to a ViT")
    check_depth(f"TRAINER.{node}.PROMPT_DEPTH_VISION", depth, clip.vision.layers)
    if n < 1:
        raise ValueError(f"TRAINER.{node}.N_CTX_VISION is {n}; give at least 1, or PROMPT_DEPTH_VISION 0 for none")
    place(model, VISION_CTX, random_tokens(n, clip.vision.width))
    for i in range(1, depth):
        place(model, VISION_DEEP.format(i), random_tokens(n, clip.vision.width))


def text_prompts(model, depth: int) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """The two text fields of :class:`Prompts` from official names."""
    return _layers(model, depth, TEXT_CTX, TEXT_DEEP)


def visual_prompts(model, depth: int) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """The two visual fields of :class:`Prompts` from official names."""
    return _layers(model, depth, VISION_CTX, VISION_DEEP)


def _layers(model, depth: int, first: str, deep: str) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    if not depth:
        return None, ()
    return attrgetter(first)(model), tuple(attrgetter(deep.format(i))(model) for i in range(1, depth))


def refuse_unused_prompts(model, state, source: str, keys: str) -> None:
    """Stop when a checkpoint holds prompts for layers (or a tower) that the model has none for.

    Official files also hold frozen weights and class tokens, which are rightly left out; prompts are not. DPC's released
    files hold the deep text prompts twice, the second time below ``prompt_learner.``.
    """
    own = set(model.checkpoint_module.state_dict())
    prompts = [n for n in strip_module(state) if re.search(r"VPT(_shallow)?$|compound_prompt|\.ctx$", n)]
    unused = sorted(n for n in prompts if n not in own and n.removeprefix("prompt_learner.") not in own)
    if unused:
        raise ValueError(
            f"{source} holds prompts that this configuration has no place for ({', '.join(unused)}): "
            f"set {keys} as in the run that wrote it"
        )


@register_trainer
class IVLP(ClassificationTrainer):
    """IVLP: independent prompts in both towers, shallow or deep; VPT and deep language prompting too.

    Cross-entropy over s V T^T; the tokens of both towers are learned.
    """

    frozen_image_side = True
    config_node = "IVLP"
    #: words beyond the context stay as they are; depths and numbers of tokens are told by the tensors
    reading_keys = ("TRAINER.IVLP.CTX_INIT",)

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return IVLPModel(clip, classnames, **ivlp_arguments(cfg, cls.config_node))

    @classmethod
    def load_state(cls, model, state, source):
        refuse_unused_prompts(model, state, source, "PROMPT_DEPTH_TEXT, PROMPT_DEPTH_VISION")
        super().load_state(model, state, source)


def ivlp_arguments(cfg, name: str) -> dict:
    """Arguments of :class:`IVLPModel` from ``cfg.TRAINER.<name>``."""
    node = method_node(cfg, name)
    return {
        "n_text": node.N_CTX_TEXT,
        "n_vision": node.N_CTX_VISION,
        "ctx_init": node.CTX_INIT,
        "depth_text": node.PROMPT_DEPTH_TEXT,
        "depth_vision": node.PROMPT_DEPTH_VISION,
        "node": name,
    }
