"""AttriPrompt's prompt pool: keys, retrieval, composition, and how evenly the prompts are used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.classification.prompted import normalize

KEYS = ("prompt", "learned")
MODES = ("per_cluster", "union", "static")
WEIGHTINGS = ("none", "sim", "softmax")
#: below this share of log M the usage entropy of a layer counts as collapsed
COLLAPSE = 0.1


class Retrieval(NamedTuple):
    """What an image takes out of the pool, for every text layer.

    Attributes:
        index: ``[B, L, S]`` int64, prompts in slot order: cluster by cluster, the most similar first.
        score: ``[B, L, S]`` fp32, their cosine similarity to the query.
        mixture: ``[B, L, S, M]`` fp32 weights over the pool, only with softmax weighting, else None.
    """

    index: Tensor
    score: Tensor
    mixture: Tensor | None = None


class PromptPool(nn.Module):
    """``size`` prompts of ``length`` tokens that queries select by cosine similarity.

    Args:
        layers: text layers that get prompts.
        size, length: M and p.
        width: text width d.
        per_layer: a pool for every layer instead of one for all.
        key: "prompt" (mean token of the prompt itself) or "learned" (own vectors of ``query_width``).
        query_width: length of a query; with literal keys it has to be ``width``.
        std: standard deviation of the initial prompts.

    Parameters: ``prompts [G, M, p, d]`` and, with learned keys, ``keys [G, M, E]``; G is 1 or ``layers``.
    Buffers: ``centre [L, E]``, the mean of all training queries so far, and their number.
    """

    def __init__(
        self,
        layers: int,
        size: int,
        length: int,
        width: int,
        *,
        per_layer: bool = False,
        key: str = "prompt",
        query_width: int | None = None,
        std: float = 0.02,
    ):
        super().__init__()
        query_width = width if query_width is None else query_width
        if key == "prompt" and query_width != width:
            raise ValueError(
                f"the queries have {query_width} dimensions but prompt tokens {width}, so prompts cannot be their own keys: "
                "set TRAINER.ATTRIPROMPT.POOL.KEY learned"
            )
        groups = layers if per_layer else 1
        self.layers = layers
        self.prompts = nn.Parameter(torch.empty(groups, size, length, width).normal_(std=std))
        self.keys = nn.Parameter(torch.empty(groups, size, query_width).normal_(std=0.02)) if key == "learned" else None
        self.register_buffer("centre", torch.zeros(layers, query_width))
        self.register_buffer("centre_count", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        return self.prompts.shape[1]

    def unit_keys(self) -> Tensor:
        """Normalised keys ``[G, M, E]``."""
        return normalize(self.prompts.mean(dim=2) if self.keys is None else self.keys)

    @torch.no_grad()
    def observe(self, queries: Tensor) -> None:
        """Take the unit queries ``[B, L, K, E]`` of a training batch into the running mean."""
        new = queries.shape[0] * queries.shape[2]
        self.centre_count += new
        self.centre += (queries.float().sum(dim=(0, 2)) - new * self.centre) / self.centre_count

    def similarity(self, queries: Tensor, centred: bool = False) -> Tensor:
        """Cosine ``[B, L, K, M]`` between queries (minus the running mean, if ``centred``) and keys."""
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            if centred:
                queries = queries - self.centre[:, None]
            return torch.einsum("blke,lme->blkm", normalize(queries), self.unit_keys().expand(self.layers, -1, -1))

    def compose(self, retrieval: Retrieval, weighting: str = "none") -> Tensor:
        """The slots' vectors ``[B, L, S * p, d]``, fp32; gradients reach the selected prompts only."""
        layer = torch.arange(self.layers, device=self.prompts.device)[:, None]
        if retrieval.mixture is not None:
            chosen = torch.einsum("blsm,lmpd->blspd", retrieval.mixture, self.prompts.expand(self.layers, -1, -1, -1))
        else:
            chosen = self.prompts[layer if len(self.prompts) > 1 else torch.zeros_like(layer), retrieval.index]
            if weighting == "sim":
                chosen = chosen * retrieval.score[..., None, None]
        return chosen.flatten(2, 3)

    def mean_prompt(self, slots: int) -> Tensor:
        """The unretrieved stream ``[L, S * p, d]``: every slot holds the mean of the pool."""
        return self.prompts.mean(dim=1).repeat(1, slots, 1).expand(self.layers, -1, -1)


def retrieve(similarity: Tensor, top_k: int = 1, mode: str = "per_cluster") -> Retrieval:
    """Pick prompts by similarity ``[B, L, K, M]``; ties go to the lowest prompt.

    ``per_cluster`` gives each cluster its ``top_k`` prompts, so prompts may repeat; ``union`` scores a prompt by its best
    cluster and gives the ``K * top_k`` best, all different.
    """
    clusters = similarity.shape[2]
    if mode == "union":
        similarity = similarity.amax(dim=2, keepdim=True)
        top_k = clusters * top_k
    # topk leaves the order of ties open, a stable sort does not
    score, index = similarity.sort(dim=-1, descending=True, stable=True)
    return Retrieval(index[..., :top_k].flatten(2), score[..., :top_k].flatten(2))


def mix(similarity: Tensor, temperature: float) -> Retrieval:
    """Softmax weighting: every slot holds a convex combination of the whole pool; ``index`` names the largest weight."""
    best = retrieve(similarity)
    return best._replace(mixture=(similarity / temperature).softmax(dim=-1))


def key_loss(retrieval: Retrieval) -> Tensor:
    """Pulls the selected keys towards their queries: mean of 1 - cos."""
    return 1 - retrieval.score.mean()


class PoolUsage:
    """Counts which prompts are retrieved.

    Args:
        layers, size: L and M.
    """

    def __init__(self, layers: int, size: int):
        self.layers, self.size = layers, size
        self.reset()

    def reset(self) -> None:
        self.images = 0
        self.counts = torch.zeros(self.layers, self.size, dtype=torch.int64)
        self.per_layer = torch.zeros(self.layers, dtype=torch.int64)
        self.overall = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def update(self, index: Tensor) -> None:
        """Add the retrievals ``[B, L, S]`` of a batch."""
        hits = (index[..., None] == torch.arange(self.size, device=index.device)).sum(dim=2)  # [B, L, M]
        self.images += len(index)
        for name, value in (
            ("counts", hits.sum(dim=0)),
            ("per_layer", (hits > 0).sum(dim=(0, 2))),
            ("overall", (hits > 0).any(dim=1).sum()),
        ):
            setattr(self, name, getattr(self, name).to(index.device) + value)

    def entropy(self) -> Tensor:
        """Entropy of the usage per layer ``[L]``, as a share of log M; 1 = all prompts equally often."""
        share = self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp_min(1)
        entropy = torch.special.xlogy(share, share).sum(dim=1).abs()  # no -0.0
        return entropy / math.log(self.size) if self.size > 1 else torch.ones_like(entropy)

    def collapsed(self) -> list[int]:
        """Layers (from 1) whose entropy is below a tenth of log M."""
        return [layer for layer, value in enumerate(self.entropy().tolist(), 1) if value < COLLAPSE]

    def summary(self) -> dict:
        """Plain numbers for results.json; layers in order."""
        images = max(self.images, 1)
        return {
            "images": self.images,
            "entropy": [round(value, 4) for value in self.entropy().tolist()],
            "distinct_per_layer": [round(value, 3) for value in (self.per_layer.double() / images).tolist()],
            "distinct_per_image": round(float(self.overall) / images, 3),
            "unused": [int(value) for value in (self.counts == 0).sum(dim=1)],
            "counts": self.counts.tolist(),
        }


class TupleMemo:
    """Class features by retrieved tuple, kept while the pool stays as it is.

    The text of an image depends on the image only through the prompts it retrieved, so images with equal tuples share all
    class features.

    Args:
        limit: bytes to keep; the oldest entries go first.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.version: object = None
        self.images = self.encoded = 0
        self._store: dict[bytes, Tensor] = {}
        self._bytes = 0

    def lookup(self, tuples: Tensor, encode: Callable[[Tensor], Tensor], version: object) -> Tensor:
        """Class features ``[U, C, E]`` of different tuples ``[U, L, S]``; ``encode`` is called with those not yet known.

        Args:
            version: anything that changes with the pool, the words or the classes; a new one empties the memo.
        """
        if version != self.version:
            self.clear()
            self.version = version
        names = [row.tobytes() for row in tuples.cpu().numpy()]
        unknown = [i for i, name in enumerate(names) if name not in self._store]
        self.encoded += len(unknown)
        found = {name: self._store[name] for name in names if name in self._store}
        if unknown:
            new = encode(tuples[torch.tensor(unknown, device=tuples.device)])
            found.update((names[i], row) for i, row in zip(unknown, new))
        result = torch.stack([found[name] for name in names])
        for i in unknown:
            self._keep(names[i], found[names[i]])
        return result

    def _keep(self, name: bytes, row: Tensor) -> None:
        size = row.numel() * row.element_size()
        if size > self.limit:
            return
        while self._bytes + size > self.limit:
            oldest = self._store.pop(next(iter(self._store)))
            self._bytes -= oldest.numel() * oldest.element_size()
        self._store[name] = row.clone()  # a row of a batch would keep the whole batch alive
        self._bytes += size

    def clear(self) -> None:
        self._store, self._bytes = {}, 0


def order_free(index: Tensor, text_layers: int) -> Tensor:
    """``[B, L, S]`` with slots sorted in the layers where their order cannot matter.

    From the second text layer on, slots carry no positional embedding, and other tokens attend to them as to a set. What
    the slots themselves become depends on their order, but is overwritten at the next prompted layer and unused after the
    last block. That leaves the first layer, and the last prompted one when blocks without prompts follow.
    """
    depth = index.shape[1]
    end = depth if depth == text_layers else depth - 1
    middle = index[:, 1:end].sort(dim=-1).values
    return torch.cat([index[:, :1], middle, index[:, max(end, 1) :]], dim=1)
