"""What DCAR's L_cate chooses among: negatives of every training caption, their frozen features, weights."""

from __future__ import annotations

import torch
from torch import Tensor

from dassl_prompts.captions.features import encode_texts
from dassl_prompts.captions.negatives import (
    NegativeGenerator,
    given_negatives,
    swap_table_meta,
    swap_table_similar,
    swap_table_uniform,
)
from dassl_prompts.engine import read_json


def negative_captions(node, items, classnames, clip, seed: int) -> list[list[tuple[str, int]]]:
    """For every training caption up to ``N_NEG`` pairs (text, label that it describes); none equals the
    caption.

    Raises:
        ValueError: the meta table lacks classes, or the file has no negatives to take.
    """
    if node.NEG_SOURCE == "json":
        if not any(item.negatives for item in items):
            raise ValueError(
                "TRAINER.DCAR.CAA.NEG_SOURCE is json, but the annotation file has no usable negatives: use generate"
            )
        return [given_negatives(d.caption, d.negatives, d.label, classnames)[: node.N_NEG] for d in items]
    if node.SWAP == "meta":
        if not node.META_FILE:
            raise ValueError("TRAINER.DCAR.CAA.SWAP meta needs CAA.META_FILE, a JSON file {class: meta-category}")
        swaps = swap_table_meta(classnames, read_json(node.META_FILE), node.META_FILE)
    elif node.SWAP == "similar":
        swaps = swap_table_similar(
            encode_texts(clip, [f"a photo of a {name.replace('_', ' ')}." for name in classnames])
        )
    else:
        swaps = swap_table_uniform(len(classnames))
    captions, labels = [d.caption for d in items], [d.label for d in items]
    generate = NegativeGenerator(classnames, swaps, captions, labels, node.N_NEG, node.N_ATTR, node.ATTR, seed)
    return [generate(i) for i in range(len(items))]


class Candidates:
    """Frozen features of every training caption and its negatives, with their category weights.

    Attributes: ``features [N, 1+K, E]``, index 0 the positive; ``weights``, ``valid [N, 1+K]``.
    """

    def __init__(self, clip, positives: Tensor, labels: Tensor, negatives: list[list[tuple[str, int]]], node):
        n, k = len(positives), max((len(row) for row in negatives), default=0)
        self.features = positives.new_zeros(n, 1 + k, positives.shape[1])
        self.features[:, 0] = positives
        self.weights = positives.new_ones(n, 1 + k)
        self.weights[:, 0] += node.ALPHA * node.WEIGHT_POS
        self.valid = torch.zeros(n, 1 + k, dtype=torch.bool, device=positives.device)
        self.valid[:, 0] = True
        unique = {text: i for i, text in enumerate(dict.fromkeys(text for row in negatives for text, _ in row))}
        encoded = encode_texts(clip, list(unique)) if unique else positives
        for i, row in enumerate(negatives):
            for m, (text, label) in enumerate(row, 1):
                self.features[i, m] = encoded[unique[text]]
                self.weights[i, m] += node.ALPHA * (label == int(labels[i]))
                self.valid[i, m] = True


def with_batch(candidates: Tensor, weights: Tensor, valid: Tensor, labels: Tensor, groups: Tensor, alpha: float):
    """Candidates ``[B, 1+K, E]`` plus the batch's other captions, weighted by the same rule; equal texts are
    left out.
    """
    positives = candidates[:, 0]
    same = (labels[:, None] == labels[None, :]).float()
    return (
        torch.cat([candidates, positives[None].expand(len(positives), -1, -1)], 1),
        torch.cat([weights, 1 + alpha * same], 1),
        torch.cat([valid, groups[:, None] != groups[None, :]], 1),
    )
