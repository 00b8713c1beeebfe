"""SEARLE's optimisation-based textual inversion (OTI): every reference image's word is optimised by itself.

The word's text feature, in random sentences, is drawn to the image's feature; with a file of phrases about concepts, the
word put in place of a concept of the image must also leave the phrase's feature where it was. The answer is the moving
average of the word over the steps (Baldrati et al., ICCV 2023, section 3.1; values from the authors' code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.engine.reading import read_json
from dassl_prompts.models.clip_tokens import ClipTokens
from dassl_prompts.ranking.exact import ordered_topk
from dassl_prompts.trainers.zeroshot_cir.textual_inversion import encode_with_word

#: sentences around the word; SEARLE draws from a longer list of the same kind
SENTENCES = (
    ("a photo of a", ""),
    ("a picture of a", ""),
    ("an image of a", ""),
    ("a drawing of a", ""),
    ("this is a", ""),
    ("here is a", "in a picture"),
    ("a", ""),
    ("", ""),
)
INIT_STD = 0.02


@dataclass(frozen=True)
class OTI:
    """Words [B, width] of image features [B, d], by optimisation.

    Attributes:
        steps, lr, weight_decay: of AdamW. ema: decay of the moving average. phrase_weight: of the phrases against 1 of the
            image. concepts: most similar ones from which phrases are drawn. phrases: concept -> phrases that name it; empty
            = the image's term alone.
    """

    encoder: ClipTokens
    steps: int = 350
    lr: float = 2e-2
    weight_decay: float = 0.01
    ema: float = 0.99
    batch: int = 32
    phrase_weight: float = 0.5
    concepts: int = 15
    phrases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seed: int = 1

    def __call__(self, features: Tensor) -> Tensor:
        """Equal rows, as several queries about one image have them, are optimised once."""
        distinct, row = torch.unique(features, dim=0, return_inverse=True)
        with torch.enable_grad():
            parts = [self.optimise(part) for part in distinct.split(self.batch)]
        return torch.cat(parts)[row]

    def optimise(self, features: Tensor) -> Tensor:
        text, device = self.encoder.clip.text, features.device
        draw = torch.Generator().manual_seed(self.seed)
        start = INIT_STD * torch.randn(len(features), text.width, generator=draw)
        words = start.to(device).requires_grad_(True)
        average = words.detach().clone()
        optimiser = torch.optim.AdamW([words], lr=self.lr, weight_decay=self.weight_decay)
        near = self.nearest(features)
        for _ in range(self.steps):
            chosen = torch.randint(len(SENTENCES), (len(features),), generator=draw).tolist()
            sentences = [(SENTENCES[i][0], None, SENTENCES[i][1]) for i in chosen]
            told = encode_with_word(text, sentences, words)
            replaced = phrase = None
            if self.phrases:
                pairs = [self.draw_phrase(concepts, draw) for concepts in near]
                phrase = self.feature([sentence for _, sentence in pairs])
                replaced = encode_with_word(text, [pieces_without(*pair) for pair in pairs], words)
            loss = oti_loss(told, features, replaced, phrase, self.phrase_weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            average = self.ema * average + (1 - self.ema) * words.detach()
        return average

    @torch.no_grad()
    def feature(self, texts: Sequence[str]) -> Tensor:
        return self.encoder.text_tokens(list(texts)).features.float()

    def nearest(self, features: Tensor) -> list[list[str]]:
        """The concepts most similar to every image."""
        names = list(self.phrases)
        if not names:
            return []
        known = F.normalize(self.feature([f"a photo of a {name}" for name in names]), dim=-1)
        scores = F.normalize(features, dim=-1) @ known.T
        _, found = ordered_topk(scores, min(self.concepts, len(names)))
        return [[names[i] for i in row] for row in found.tolist()]

    def draw_phrase(self, concepts: Sequence[str], draw: torch.Generator) -> tuple[str, str]:
        """A concept and a phrase that names it; any phrase of the concepts is as likely as another."""
        pairs = [(concept, phrase) for concept in concepts for phrase in self.phrases[concept]]
        return pairs[int(torch.randint(len(pairs), (1,), generator=draw))]


def oti_loss(
    told: Tensor, image: Tensor, replaced: Tensor | None, phrase: Tensor | None, phrase_weight: float
) -> Tensor:
    """Mean cosine distance of the word's sentences to the images and, weighted, of the phrases with the word to those with
    their concept; all [B, d]. Without phrases the first alone."""
    loss = (1 - F.cosine_similarity(told, image)).mean()
    if replaced is None:
        return loss
    return (loss + phrase_weight * (1 - F.cosine_similarity(replaced, phrase)).mean()) / (1 + phrase_weight)


def pieces_without(concept: str, phrase: str) -> tuple[str | None, ...]:
    """The phrase with the word in place of the concept's first occurrence.

    >>> pieces_without("dog", "a dog that runs")
    ('a ', None, ' that runs')
    """
    before, _, after = phrase.partition(concept)
    return (before, None, after)


def read_phrases(path: str) -> dict[str, list[str]]:
    """``{concept: [phrase, ...]}`` from a JSON file.

    Raises:
        ValueError: another structure, or a phrase that does not name its concept.
    """
    content = read_json(path, dict)
    for concept, phrases in content.items():
        if not isinstance(phrases, list) or not phrases or not all(isinstance(p, str) for p in phrases):
            raise ValueError(f"{path}: {concept!r} needs a list of phrases")
        strange = [phrase for phrase in phrases if not concept or concept not in phrase]
        if strange:
            raise ValueError(f"{path}: the phrase {strange[0]!r} does not name its concept {concept!r}")
    return content
