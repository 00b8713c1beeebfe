"""DCAR: dual prompts with token re-weighting and category-aware augmentation for image-text retrieval (arXiv
2508.04028).

No code was released and the paper's body could not be read: beyond the token weight and the category weight,
which stand in the architecture figure, this is a reconstruction. docs/dcar.md has one table of what is whose,
with the key that switches each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.captions import evaluation
from dassl_prompts.captions.losses import category_loss
from dassl_prompts.captions.model import caa_module
from dassl_prompts.captions.trainer import RetrievalTrainer
from dassl_prompts.classification.prompted import Prompts, normalize
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.ranking.exact import recall_at, target_ranks
from dassl_prompts.trainers.dcar.candidates import Candidates, negative_captions, with_batch
from dassl_prompts.trainers.dcar.options import check_node
from dassl_prompts.trainers.dcar.reweighting import (
    TokenReweighter,
    VocabularyWeights,
    place_weights,
)
from dassl_prompts.trainers.itr import MaPLeCaptions
from dassl_prompts.trainers.ivlp import random_tokens
from dassl_prompts.trainers.maple import MultiModalPromptLearner


def extend_cfg(cfg):
    evaluation.extend_cfg(cfg)
    add_defaults(
        cfg,
        "TRAINER.DCAR",
        {
            "N_CTX": 4,  # k, prompt vectors per layer in either tower
            "CTX_INIT": "a photo of a",  # words that start the text prompt
            "PROMPT_DEPTH": 1,  # layers with own prompts
            "PROMPTS": "dual",  # towers that have prompts: dual, text (semantic only) or image (visual only)
            "COUPLING": "linear",  # image prompt from the text prompt: linear, mlp; or independent
            "PREC": "amp",  # fp16, fp32, amp
            "DTR": {  # dynamic token re-weighting
                "ENABLED": True,
                "TOKEN_FEAT": "context",  # context (of the whole caption) or isolated (each token alone)
                "IMAGE_FEAT": "global",  # global, patch_max or patch_mean
                "BLANK": "white",  # blank image: white, black or mean (zeros after normalisation)
                "NORM": "mean1",  # mean1, softmax, minmax, residual or none
                "BETA": 1.0,  # factor of residual
                "CLAMP": (0.2, 3.0),  # bounds of the weights
                "SOURCE": "frozen",  # frozen towers, or prompted: the current prompts, anew at every step
                "SCOPE": "pair",  # pair, or vocab: per token id, averaged over the training pairs
                "PROB": 1.0,  # share of training samples that are weighted
                "GROUP_WORDS": False,  # pieces of one word share a weight
                "CACHE": True,  # frozen weights once, from un-augmented images; False: from each step's
            },
            "CAA": {  # category-aware augmentation
                "ENABLED": True,
                "MODULE": "adapter",  # adapter (residual bottleneck), linear, mlp or none
                "HIDDEN": 128,  # width of the bottleneck
                "RATIO": 0.2,  # share of the adapter's output
                "N_NEG": 4,  # K, negatives per caption
                "N_ATTR": 1,  # of them: same class, other attributes
                "ATTR": "caption",  # attribute negatives: another caption of the class; or words swapped
                "SWAP": "similar",  # classes to swap to: meta (META_FILE), similar (10 nearest names) or uniform
                "META_FILE": "",  # JSON {class: meta-category}
                "NEG_SOURCE": "generate",  # generate, or json: the negatives of the annotation file
                "ALPHA": 0.5,  # weight of same-category captions is 1 + ALPHA
                "WEIGHT_MODE": "prob",  # where it enters: prob, logit or loss
                "WEIGHT_POS": True,  # also for the positive caption (prob and logit)
                "IN_BATCH": False,  # the batch's other captions are candidates too
            },
            "LOSS": {
                "DIRECTION": "both",  # both, i2t or t2i
                "CATE_WEIGHT": 1.0,  # lambda
                "DEDUP": True,  # equal captions of a batch are equally right
            },
            "TEST": {
                "BRANCH": "prompt",  # text features: prompt, caa or sum
                "DTR": "off",  # off, vocab (image-independent) or rerank (pair weights of the first candidates)
                "RERANK": 50,  # candidates that rerank looks at
            },
        },
    )


# -- model ---------------------------------------------------------------------------------------------------


class IndependentPrompts(nn.Module):
    """Prompts of the towers that do not know of each other: ``[k, d_t]`` and ``[k, d_v]`` per layer; ``towers`` as ``PROMPTS``."""

    def __init__(self, ctx: Tensor, depth: int, vision_width: int, towers: str = "dual"):
        super().__init__()
        n_ctx, width = ctx.shape
        of_text, of_vision = (0 if towers == other else depth for other in ("image", "text"))
        self.ctx = nn.Parameter(ctx.clone().float()) if of_text else None
        self.text = nn.ParameterList(nn.Parameter(random_tokens(n_ctx, width)) for _ in range(of_text - 1))
        self.vision = nn.ParameterList(nn.Parameter(random_tokens(n_ctx, vision_width)) for _ in range(of_vision))

    def forward(self) -> Prompts:
        first, deep = (self.vision[0], tuple(self.vision[1:])) if len(self.vision) else (None, ())
        return Prompts(self.ctx, tuple(self.text), first, deep)


def coupled_prompts(ctx: Tensor, depth: int, vision_width: int, coupling: str, towers: str = "dual") -> nn.Module:
    """Text prompts and what makes image prompts of them; "linear" is MaPLe's learner.

    With ``towers`` "image" coupled image prompts are still made of text vectors, which then stand in front of no caption.
    """
    if coupling == "independent" or towers == "text":
        return IndependentPrompts(ctx, depth, vision_width, towers)
    learner = MultiModalPromptLearner(ctx, depth, vision_width)
    if coupling == "mlp":
        width = ctx.shape[1]
        first, *others = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, vision_width)) for _ in range(depth)
        )
        learner.proj, learner.compound_prompt_projections = first, nn.ModuleList(others)
    return learner


class DCARModel(MaPLeCaptions):
    """Dual prompts (or those of one tower), and the CAA module for un-prompted captions."""

    checkpoint_name = "dcar"

    def __init__(self, clip, node):
        super().__init__(clip, node.N_CTX, node.CTX_INIT, node.PROMPT_DEPTH, node="DCAR")
        ctx = self.prompt_learner.ctx.detach()
        self.towers = node.PROMPTS
        self.prompt_learner = coupled_prompts(ctx, node.PROMPT_DEPTH, clip.vision.width, node.COUPLING, self.towers)
        self.n_ctx = 0 if self.towers == "image" else self.n_ctx
        self.caa = (
            caa_module(clip.embed_dim, node.CAA.MODULE, node.CAA.HIDDEN, node.CAA.RATIO) if node.CAA.ENABLED else None
        )

    @property
    def image_side_is_frozen(self):
        return self.towers == "text"

    def emit(self) -> Prompts:
        prompts = super().emit()
        return replace(prompts, text=None, text_deep=()) if self.towers == "image" else prompts


# -- trainer -------------------------------------------------------------------------------------------------


@register_trainer
class DCAR(RetrievalTrainer):
    """DCAR: dual prompts, token re-weighting and category-aware augmentation for image-text retrieval.

    L = L_con(prompted image, prompted and weighted caption) + lambda L_cate(prompted image, CAA of
    captions).
    """

    config_node = "DCAR"
    reading_keys = (
        *(f"TRAINER.DCAR.{key}" for key in ("N_CTX", "PROMPT_DEPTH", "PROMPTS", "COUPLING")),
        *(f"TRAINER.DCAR.CAA.{key}" for key in ("ENABLED", "MODULE", "HIDDEN", "RATIO")),
    )

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        check_node(cfg.TRAINER.DCAR)

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        return DCARModel(clip, cfg.TRAINER.DCAR)

    def build_model(self):
        super().build_model()
        self.node = self.cfg.TRAINER.DCAR
        dtr = self.node.DTR
        if dtr.ENABLED and (dtr.SOURCE == "prompted" or not (dtr.CACHE or dtr.SCOPE == "vocab")):
            # weights of every step look at its images, also where their features stay as they are
            self.trains_on_features, self.train_loader_x.dataset.load_images = False, True
        self.reweighter = TokenReweighter(
            self.model.clip, self.node.DTR, self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD
        )

    def prepare_training(self):
        super().prepare_training()
        node = self.node
        if node.DTR.ENABLED and node.DTR.SOURCE == "frozen" and (node.DTR.CACHE or node.DTR.SCOPE == "vocab"):
            self.train_weights()
        if node.CAA.ENABLED:
            items, clip = self.dm.dataset.train_x, self.model.clip
            negatives = negative_captions(node.CAA, items, self.dm.dataset.classnames, clip, max(self.cfg.SEED, 0))
            self.candidates = Candidates(
                clip, self.frozen_captions(), self.captions["train"].labels, negatives, node.CAA
            )
            short = sum(len(row) < node.CAA.N_NEG for row in negatives)
            if short:
                print(f"{short} of {len(items)} captions have fewer than {node.CAA.N_NEG} negatives")

    # -- token weights ---------------------------------------------------------------------------------------

    def compared(self, split: str):
        """What the pair weights of a split are made of, as ``DTR.SOURCE`` says: captions, un-augmented image
        features, prompts of both.
        """
        captions, encode = self.captions[split], self.reweighter.image_features
        if self.node.DTR.SOURCE == "prompted":
            prompts = self.model.emit().map(Tensor.detach)
            return captions.prompts, self.over_images(split, lambda x: encode(x, prompts)), prompts
        if self.node.DTR.IMAGE_FEAT == "global":
            return captions.raw, self.frozen_images(split), Prompts()
        patches = self._once(f"patches {split}", lambda: self.over_images(split, encode))
        return captions.raw, patches, Prompts()

    def pair_weights(self) -> Tensor:
        """Content weights ``[N, L]`` of all training pairs; kept where frozen towers make them."""

        def compute():
            captions, images, prompts = self.compared("train")
            with self.autocast():
                return self.reweighter.all_pair_weights(captions, images, self.cfg.DATALOADER.TEST.BATCH_SIZE, prompts)

        return compute() if self.node.DTR.SOURCE == "prompted" else self._once("pair weights", compute)

    def vocabulary_weights(self, split: str) -> Tensor:
        """Image-independent content weights ``[M, L]`` of a split's captions, learned from the training
        pairs.
        """
        pairs, train, captions = self.pair_weights(), self.captions["train"], self.captions[split].raw
        prompted = self.node.DTR.SOURCE == "prompted"
        learned_on = train.prompts if prompted else train.raw
        table = VocabularyWeights(
            self.reweighter.ids(learned_on),
            pairs,
            self.reweighter.content(learned_on),
            len(self.model.clip.text.token_embedding.weight),
        )
        return table(self.reweighter.ids(captions), self.reweighter.content(captions))

    def train_weights(self) -> Tensor:
        """Content weights ``[N, L]`` of all training pairs as ``DTR.SCOPE`` has them."""
        if self.node.DTR.SCOPE == "vocab":
            return self._once("vocabulary weights", lambda: self.vocabulary_weights("train"))
        return self.pair_weights()

    def step_weights(self, images: Tensor, index: Tensor) -> Tensor:
        """Content weights ``[B, L]`` of a training batch."""
        dtr, captions = self.node.DTR, self.captions["train"]
        if dtr.SOURCE == "prompted":
            prompts = self.model.emit().map(Tensor.detach)
            return self.reweighter.pair_weights(
                captions.prompts.select(index), self.reweighter.image_features(images, prompts), prompts
            )
        if dtr.CACHE or dtr.SCOPE == "vocab":
            return self.train_weights()[index]
        return self.reweighter.pair_weights(captions.raw.select(index), self.reweighter.image_features(images))

    def place(self, weights: Tensor, captions) -> Tensor:
        """Content weights at the positions ``[B, 77]`` of prompted captions."""
        return place_weights(weights, captions.eot, self.model.n_ctx, captions.tokens.shape[1])

    # -- training --------------------------------------------------------------------------------------------

    def loss(self, images, index):
        weights = None
        if self.node.DTR.ENABLED:
            weights = self.place(self.step_weights(images, index), self.captions["train"].prompts.select(index))
            if self.node.DTR.PROB < 1:
                chosen = torch.rand(len(weights), 1, device=weights.device) < self.node.DTR.PROB
                weights = torch.where(chosen, weights, 1.0)
        u, z = self.encode_pair(images, index, weights)
        terms = {"loss_con": self.contrast(u, z, index)}
        terms["loss"] = terms["loss_con"]
        if self.node.CAA.ENABLED:
            terms["loss_cate"] = self.category(u, index)
            terms["loss"] = terms["loss"] + self.node.LOSS.CATE_WEIGHT * terms["loss_cate"]
        return terms

    def category(self, u: Tensor, index: Tensor) -> Tensor:
        """L_cate of a batch."""
        caa, bank, captions = self.node.CAA, self.candidates, self.captions["train"]
        candidates, weights, valid = (
            self.model.caa(bank.features[index]),
            bank.weights[index],
            bank.valid[index],
        )
        if caa.IN_BATCH:
            labels, groups = captions.labels[index], captions.groups[index]
            candidates, weights, valid = with_batch(candidates, weights, valid, labels, groups, caa.ALPHA)
        return category_loss(u, candidates, weights, valid, self.model.scale, caa.WEIGHT_MODE)

    def after_train(self):
        if self.node.DTR.ENABLED:
            self.shortcut_check()
        super().after_train()

    @torch.no_grad()
    def shortcut_check(self) -> dict[str, float]:
        """Recall of the training pairs with and without token weights.

        Weights come from the pair, so they can give the image away; a large gap means that training used this
        shortcut.
        """
        self.set_model_mode("eval")
        captions, model = self.captions["train"].prompts, self.model
        prompts, own = model.emit(), torch.arange(len(captions), device=self.device)
        images = self.image_features("train")
        weights = self.place(self.train_weights(), captions)
        weighted = self.encode_sorted(
            captions.eot, lambda i: model.encode_captions(captions.select(i), prompts, weights[i])
        )
        results = {}
        for name, text in (
            ("on", weighted),
            ("off", self.encode_sorted(captions.eot, lambda i: model.encode_captions(captions.select(i), prompts))),
        ):
            both = [recall_at(target_ranks(*sides, own), (1,))[1] for sides in ((images, text), (text, images))]
            results[f"mean_r1_weights_{name}"] = sum(both) / 2
        print(
            f"Training pairs, mean R@1 with token weights {results['mean_r1_weights_on']:.2f}%, "
            f"without {results['mean_r1_weights_off']:.2f}%"
        )
        self.write_results({"train": results})
        return results

    # -- test ------------------------------------------------------------------------------------------------

    def branch(self, prompted: Tensor, split: str, index: Tensor | slice = slice(None)) -> Tensor:
        """Text features of ``TEST.BRANCH`` from those of the prompted branch."""
        if self.node.TEST.BRANCH == "prompt":
            return prompted
        caa = self.model.caa(self.frozen_captions(split)[index])
        return caa if self.node.TEST.BRANCH == "caa" else normalize(prompted + caa)

    def text_features(self, split):
        model, prompts, captions = self.model, self.model.emit(), self.captions[split].prompts
        if self.node.TEST.DTR == "vocab":
            weights = self.place(self.vocabulary_weights(split), captions)
            text = self.encode_sorted(
                captions.eot, lambda i: model.encode_captions(captions.select(i), prompts, weights[i])
            )
        else:
            text = super().text_features(split)
        return self.branch(text, split)

    def reranker(self, split, images):
        """Exact pair weights for the first ``TEST.RERANK`` candidates of every query."""
        if self.node.TEST.DTR != "rerank":
            return None
        model, captions = self.model, self.captions[split].prompts
        sources, compared, prompts = self.compared(split)
        learned, blank = model.emit(), self.reweighter.blank_features(prompts)

        def encode(image: Tensor, text: Tensor) -> Tensor:
            unique, place_of = text.unique(return_inverse=True)
            tokens = self.reweighter.token_features(sources.select(unique), prompts)[place_of]
            weights = self.reweighter.weights(sources.select(text), tokens, compared[image], blank)
            prompted = captions.select(text)
            features = model.encode_captions(prompted, learned, self.place(weights, prompted))
            return (images[image] * self.branch(features, split, text)).sum(1)

        def score(image: Tensor, text: Tensor) -> Tensor:
            scores = torch.empty(len(image), device=images.device)
            # pairs of one caption side by side: its frozen token features are then computed about once
            for index in text.argsort(stable=True).split(self.cfg.DATALOADER.TEST.BATCH_SIZE):
                with self.autocast():
                    scores[index] = encode(image[index], text[index]).float()
            return scores

        return self.node.TEST.RERANK, score
