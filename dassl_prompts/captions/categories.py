"""Categories against attributes: what wrong first answers are, and whether captions stand above their annotated negatives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from dassl_prompts.captions.gallery import DIRECTIONS, NEGATIVE_KINDS, Gallery, Ranking
from dassl_prompts.ranking.exact import recall_at


def categories(
    ways: dict[str, Ranking], gallery: Gallery, ranks: dict[str, Tensor], ks: Sequence[int]
) -> OrderedDict[str, float]:
    """Categories against attributes, in percent of the queries; empty where the gallery has not two categories.

    ``<direction>_wrong_category`` and ``_wrong_attributes``: the first answer is of another category, or of the right one
    and yet wrong; with R@1 they are 100. ``_category_r<k>``: one of the first k is of the query's category.
    ``_within_r<k>``: recall of the right answer among the candidates of its category.

    Args:
        ways: of :func:`rankings`. gallery: with labels. ranks: of the right answers, by direction.
    """
    results: OrderedDict[str, float] = OrderedDict()
    if gallery.labels is None or len(set(torch.as_tensor(gallery.labels).tolist())) < 2:
        return results
    image = torch.as_tensor(gallery.labels).cpu()
    labels, targets = (image, image[gallery.image_of_text.cpu()]), gallery.targets()
    for direction, way in ways.items():
        sides = labels if direction == "i2t" else labels[::-1]
        nearest, within = way.category_ranks(targets[direction], *sides)
        wrong = {"category": nearest > 1, "attributes": (nearest == 1) & (ranks[direction] > 1)}
        results.update({f"{direction}_wrong_{kind}": 100.0 * int(x.sum()) / len(x) for kind, x in wrong.items()})
        for name, found in (("category", nearest), ("within", within)):
            results.update({f"{direction}_{name}_r{k}": v for k, v in recall_at(found, ks).items()})
    return results


def negative_accuracy(gallery: Gallery) -> OrderedDict[str, float]:
    """``negatives_category`` and ``negatives_attributes``: of the captions with annotated negatives of the kind, the percentage
    that scores higher with their image than each of them does; a tie is wrong.
    """
    results: OrderedDict[str, float] = OrderedDict()
    negatives = gallery.negatives
    if negatives is None:
        return results
    image = gallery.image[gallery.image_of_text.to(gallery.image.device)]
    own, caption = (image * gallery.text).sum(1), negatives.caption.to(image.device)
    beaten = own[caption] > (image[caption] * negatives.text).sum(1)
    for number, kind in enumerate(NEGATIVE_KINDS):
        chosen = negatives.kind.to(image.device) == number
        asked, wrong = caption[chosen].unique(), caption[chosen & ~beaten].unique()
        if len(asked):
            results[f"negatives_{kind}"] = 100.0 * (len(asked) - len(wrong)) / len(asked)
    return results


def categories_table(results: dict[str, float], ks: Sequence[int]) -> str:
    """Lines of :func:`categories` and :func:`negative_accuracy`, of what ``results`` holds."""
    lines = []
    for direction, name in DIRECTIONS.items():
        if f"{direction}_wrong_category" in results:
            lines.append(
                f"* {name:<14}  first answer of another category {results[f'{direction}_wrong_category']:6.2f}%"
                f"  of the category and wrong {results[f'{direction}_wrong_attributes']:6.2f}%"
            )
            for key, what in (("category", "any of the category"), ("within", "among the category")):
                recalls = "".join(f"  R@{k} {results[f'{direction}_{key}_r{k}']:6.2f}%" for k in ks)
                lines.append(f"* {'':<14}  {what}{recalls}")
    for kind in NEGATIVE_KINDS:
        if f"negatives_{kind}" in results:
            lines.append(f"* above all annotated negatives ({kind}): {results[f'negatives_{kind}']:.2f}%")
    return "\n".join(lines)
