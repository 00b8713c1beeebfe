"""Token ids of prompts: slots for context vectors, class names or captions, and where each token stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dassl_prompts.models.blocks import Layout

SOT, EOT = 49406, 49407
#: what stands in a slot before a context vector takes its place: the single token of "x"
PLACEHOLDER = 343


@dataclass(frozen=True)
class ClassPrompts:
    """Token ids ``SOT, n_ctx slots, fixed words, class name or caption, EOT`` of C texts.

    Attributes:
        tokens: ``[C, 77]``, zero behind EOT.
        eot: ``[C]``, position of EOT.
        n_ctx: number of slots, at positions 1 .. n_ctx.
        n_prefix: number of leading positions that are equal in all texts.
        name_len: ``[C]``, tokens of the class name (for captions: of everything behind the slots).
        truncated: how many texts were cut to fit.
    """

    tokens: Tensor
    eot: Tensor
    n_ctx: int
    n_prefix: int
    name_len: Tensor
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def length(self) -> int:
        """Positions up to the last EOT."""
        return int(self.eot.max()) + 1

    def layout(self, n_prefix: int) -> Layout:
        """Where the positions behind the prefix lie; computed once."""
        known = self.__dict__.setdefault("_layouts", {})
        if n_prefix not in known:
            known[n_prefix] = Layout(self.eot + 1 - n_prefix, self.length - n_prefix)
        return known[n_prefix]

    def select(self, index: Tensor) -> ClassPrompts:
        """The texts of ``index``, in its order."""
        index = torch.as_tensor(index, device=self.tokens.device)
        return replace(self, tokens=self.tokens[index], eot=self.eot[index], name_len=self.name_len[index])


def select_texts(index: Tensor, prompts: ClassPrompts, ctx, deep, weights):
    """The prompts of some texts, with what belongs to each of them."""
    own = lambda t: t[index] if t is not None and t.ndim == 3 else t
    return prompts.select(index), own(ctx), [own(t) for t in deep], None if weights is None else weights[index]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all rows share, leaving at least the last token of the shortest row."""
    limit = min(len(row) for row in rows) - 1
    first = rows[0]
    for i in range(limit):
        if any(row[i] != first[i] for row in rows):
            return i
    return limit


def arrangement(prompts: ClassPrompts, position: str, length: int) -> Tensor:
    """``[C, L]``: from which position of ``SOT ctx name rest`` each position takes its token (CoOp's middle and front)."""
    n = prompts.n_ctx
    before = n // 2 if position == "middle" else 0
    orders = []
    for name in prompts.name_len.tolist():
        context, behind = list(range(1, 1 + n)), list(range(1 + n, length))
        orders.append([0, *context[:before], *behind[:name], *context[before:], *behind[name:]])
    return torch.tensor(orders, device=prompts.tokens.device)
