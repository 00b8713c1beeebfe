"""Training of inversion networks: Pic2Word on images alone, LinCIR on captions alone.

Towers are frozen. Pic2Word: the text "a photo of <word>" of an image's word has to find its image among those of the batch,
and the other way round. LinCIR: the words of a caption that name things are replaced by one word made from the caption's
own feature plus noise, and the feature has to stay where it was.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.composed.loading import ShuffledItems
from dassl_prompts.composed.trainer import ComposedTrainer, StepCosine
from dassl_prompts.engine import add_defaults, build_optimizer, register_trainer
from dassl_prompts.engine.reading import read_text
from dassl_prompts.models.backbones import load_token_encoder
from dassl_prompts.trainers.zeroshot_cir.textual_inversion import (
    PREFIX,
    Phi,
    Pic2WordNetwork,
    check_clip,
    encode_with_word,
    inversion_query,
)

PIC2WORD = {
    "HIDDEN": 512,  # width of the hidden layers
    "LAYERS": 2,  # hidden layers
    "DROPOUT": 0.1,
    "WARMUP": 10000,  # steps in which the rate rises
}
LINCIR = {
    "HIDDEN_MULT": 4,  # width of the two hidden layers in multiples of the feature width
    "DROPOUT": 0.5,
    "NOISE": 1.0,  # a normal vector times a uniform number up to this is added to every caption's feature
    "CAPTIONS": "",  # text file, one caption per line; "" = the training set's own descriptions of images
}


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.PIC2WORD", PIC2WORD)
    add_defaults(cfg, "TRAINER.LINCIR", LINCIR)


class InversionModel(nn.Module):
    """Frozen towers and the network that is trained; the checkpoint holds the network."""

    def __init__(self, encoder, network: nn.Module, method: str):
        super().__init__()
        self.encoder, self.network = encoder, network
        self.query = inversion_query(encoder, network, method)


class InversionTrainer(ComposedTrainer):
    """Base: a method names its network, its batches and its loss."""

    method = ""

    @classmethod
    def build_network(cls, node, width: int, words: int) -> nn.Module:
        raise NotImplementedError

    @classmethod
    def build_net(cls, cfg, device="cpu") -> InversionModel:
        backbone = cfg.MODEL.BACKBONE
        encoder = load_token_encoder(backbone.NAME, device, activation=backbone.get("ACTIVATION", ""))
        check_clip(encoder, cls.method)
        encoder.tune("none")
        network = cls.build_network(cfg.TRAINER[cls.config_node], encoder.width, encoder.clip.text.width)
        return InversionModel(encoder, network.to(device), cls.method)

    @property
    def node(self):
        return self.cfg.TRAINER[self.config_node]

    def build_model(self):
        print(f"Loading the backbone {self.cfg.MODEL.BACKBONE.NAME}")
        self.use_net()
        self.optim = build_optimizer(self.model, self.cfg.OPTIM, param_groups=self.param_groups())
        self.sched = self.build_schedule()
        print(f"{sum(p.numel() for p in self.model.network.parameters()):,} trained parameters, towers: none")
        self.register_model("composed", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.sched.step()
        return {"loss": loss.item()}


@register_trainer
class Pic2Word(InversionTrainer):
    """Pic2Word: zero-shot composed retrieval, its inversion network trained on images alone.

    Trained on the pictures of the triplets; their captions are not used.
    """

    config_node, method = "PIC2WORD", "pic2word"
    reading_keys = ("TRAINER.PIC2WORD.HIDDEN", "TRAINER.PIC2WORD.LAYERS")

    @classmethod
    def build_network(cls, node, width, words):
        return Pic2WordNetwork([width, *[node.HIDDEN] * node.LAYERS, words], node.DROPOUT)

    def build_schedule(self) -> StepCosine:
        return StepCosine(self.optim, self.max_epoch, end_ratio=0.0, warmup=self.node.WARMUP)

    def param_groups(self) -> list[dict]:
        """Biases do not decay."""
        parameters = list(self.model.network.named_parameters())
        weights = [p for name, p in parameters if not name.endswith("bias")]
        biases = [p for name, p in parameters if name.endswith("bias")]
        return [{"params": weights}, {"params": biases, "weight_decay": 0.0}]

    def training_loader(self):
        triplets = self.dm.dataset.train_x
        paths = list(dict.fromkeys(path for t in triplets for path in (t.reference, t.target)))
        if self.cfg.CIR.CACHE:
            features = torch.from_numpy(np.array(self.cache("train-pictures", paths, tokens=False).array))
        else:
            encode = self.in_eval_mode(self.encoder.image_features)
            features = torch.cat([encode(batch).float().cpu() for batch in self.batches(paths)])
        return ShuffledItems("image", features, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE), f"{len(paths):,} pictures"

    def loss(self, batch: dict) -> Tensor:
        images = batch["image"].to(self.device).float()
        told = encode_with_word(self.encoder.clip.text, [(PREFIX, None)] * len(images), self.model.network(images))
        return contrastive_loss(told, images, self.encoder.clip.logit_scale.exp())


def contrastive_loss(text: Tensor, image: Tensor, scale: Tensor | float) -> Tensor:
    """Mean of both directions' cross-entropy of the in-batch softmax of cosines times ``scale``; both [B, d]."""
    logits = scale * F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T
    right = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@register_trainer
class LinCIR(InversionTrainer):
    """LinCIR: zero-shot composed retrieval, its inversion network trained on captions alone.

    Trained on captions; no picture is read before the evaluation.
    """

    config_node, method = "LINCIR", "lincir"
    reading_keys = ("TRAINER.LINCIR.HIDDEN_MULT",)

    @classmethod
    def build_network(cls, node, width, words):
        return Phi([width, *[node.HIDDEN_MULT * width] * 2, words], node.DROPOUT)

    def build_schedule(self) -> StepCosine:
        return StepCosine(self.optim, self.max_epoch)

    def param_groups(self) -> list[dict]:
        return [{"params": list(self.model.network.parameters()), "constant": True}]

    def check_training_data(self) -> None:
        if not self.captions():
            raise ValueError(f"{self.node.CAPTIONS or self.cfg.DATASET.NAME} holds no caption")

    def captions(self) -> list[str]:
        """The training texts; blank ones are left out.

        Raises:
            ValueError: the training set has none and no file is given.
        """
        given = self.node.CAPTIONS
        lines = read_text(Path(given)).splitlines() if given else self.dm.dataset.captions()
        return [line.strip() for line in lines if line.strip()]

    def training_loader(self):
        captions = self.captions()
        loader = ShuffledItems("caption", captions, self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
        return loader, f"{len(captions):,} captions"

    def loss(self, batch: dict) -> Tensor:
        with torch.no_grad():
            features = self.encoder.text_tokens(batch["caption"]).features.float()
        strength = self.node.NOISE * torch.rand(len(features), 1)
        noise = (strength * torch.randn(features.shape)).to(features.device)
        words = self.model.network(features + noise)
        pieces = [without_keywords(caption) for caption in batch["caption"]]
        return F.mse_loss(encode_with_word(self.encoder.clip.text, pieces, words), features)


#: words that name nothing: what stands between them is replaced. The authors take the runs of nouns, adjectives and
#: determiners that a parser finds
FUNCTION_WORDS = frozenset(
    "about above after against along and around as at be been before behind below beside between but by can could do does "
    "down during for from had has have he her his i in inside into is it its may might must near next not of off on onto or "
    "our out outside over she should so than that their them then there they through to toward towards under until up upon "
    "was we were when where which while who will with within without would you your".split()
)


def without_keywords(caption: str) -> tuple[str | None, ...]:
    """The caption in pieces, every run of words that are not function words replaced by None; a caption of function words
    alone has one at random replaced.

    >>> without_keywords("a red dog on the grass, and two cats")
    (None, 'on', None, 'and', None)
    """
    words = caption.split()
    named = [word.strip(".,;:!?\"'()").lower() not in FUNCTION_WORDS for word in words]
    if not any(named):
        named[int(torch.randint(len(words), (1,)))] = True
    pieces: list[str | None] = []
    for word, replace in zip(words, named):
        if replace:
            pieces += [] if pieces and pieces[-1] is None else [None]
        elif pieces and pieces[-1] is not None:
            pieces[-1] += f" {word}"
        else:
            pieces.append(word)
    return tuple(pieces)
