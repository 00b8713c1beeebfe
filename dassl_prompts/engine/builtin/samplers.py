"""Samplers by name."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data.sampler import RandomSampler, Sampler, SequentialSampler


def _groups(data_source: Sequence, key: Callable) -> dict[int, list[int]]:
    groups = defaultdict(list)
    for index, item in enumerate(data_source):
        groups[key(item)].append(index)
    return groups


class RandomDomainSampler(Sampler):
    """Batches with the same number of images from each of ``n_domain`` randomly chosen domains.

    Args:
        data_source: list of ``Datum``.
        batch_size: images per batch; a multiple of ``n_domain``.
        n_domain: domains per batch; <= 0 means all.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """

    #: whether the domains of a batch are drawn or taken in their order
    shuffle_domains = True

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int):
        self.domain_dict = _groups(data_source, lambda item: item.domain)
        self.domains = list(self.domain_dict)
        n_domain = n_domain if n_domain > 0 else len(self.domains)
        if batch_size % n_domain:
            raise ValueError(f"batch size {batch_size} is not a multiple of the number of domains per batch {n_domain}")
        self.n_domain = n_domain
        self.n_img_per_domain = batch_size // n_domain
        self.length = len(list(iter(self)))

    def __iter__(self) -> Iterator[int]:
        pool = copy.deepcopy(self.domain_dict)
        final: list[int] = []
        while True:
            chosen = random.sample(self.domains, self.n_domain) if self.shuffle_domains else self.domains
            for domain in chosen:
                picked = random.sample(pool[domain], self.n_img_per_domain)
                final.extend(picked)
                taken = set(picked)
                pool[domain] = [index for index in pool[domain] if index not in taken]
            if any(len(pool[domain]) < self.n_img_per_domain for domain in chosen):
                return iter(final)

    def __len__(self) -> int:
        return self.length


class SeqDomainSampler(RandomDomainSampler):
    """As :class:`RandomDomainSampler`, with all domains in their order in every batch."""

    shuffle_domains = False

    def __init__(self, data_source: Sequence, batch_size: int):
        super().__init__(data_source, batch_size, n_domain=-1)


class RandomClassSampler(Sampler):
    """Batches of ``batch_size / n_ins`` randomly chosen classes with ``n_ins`` images each.

    Args:
        data_source: list of ``Datum``.
        batch_size: images per batch.
        n_ins: images per class in a batch.

    Raises:
        ValueError: ``batch_size < n_ins``, or more classes per batch than there are.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int):
        if batch_size < n_ins:
            raise ValueError(f"batch size {batch_size} is smaller than the number of images per class {n_ins}")
        self.ncls_per_batch = batch_size // n_ins
        self.n_ins = n_ins
        self.index_dic = _groups(data_source, lambda item: item.label)
        self.labels = list(self.index_dic)
        if len(self.labels) < self.ncls_per_batch:
            raise ValueError(f"{len(self.labels)} classes cannot fill batches of {self.ncls_per_batch} classes")
        self.length = len(list(iter(self)))

    def _chunks(self, indices: list[int]) -> list[list[int]]:
        indices = list(indices)
        if len(indices) < self.n_ins:
            indices = np.random.choice(indices, size=self.n_ins, replace=True).tolist()
        random.shuffle(indices)
        whole = len(indices) - len(indices) % self.n_ins
        return [indices[i : i + self.n_ins] for i in range(0, whole, self.n_ins)]

    def __iter__(self) -> Iterator[int]:
        pool = {label: self._chunks(self.index_dic[label]) for label in self.labels}
        available = list(self.labels)
        final: list[int] = []
        while len(available) >= self.ncls_per_batch:
            for label in random.sample(available, self.ncls_per_batch):
                final.extend(pool[label].pop(0))
                if not pool[label]:
                    available.remove(label)
        return iter(final)

    def __len__(self) -> int:
        return self.length


AVAILABLE = [
    "RandomDomainSampler",
    "SeqDomainSampler",
    "RandomSampler",
    "SequentialSampler",
    "RandomClassSampler",
]


def build_sampler(sampler_type, cfg=None, data_source=None, batch_size=32, n_domain=0, n_ins=16) -> Sampler:
    """The sampler ``sampler_type`` over ``data_source``.

    Raises:
        ValueError: no such sampler; lists the known ones.
    """
    if sampler_type == "RandomSampler":
        return RandomSampler(data_source)
    if sampler_type == "SequentialSampler":
        return SequentialSampler(data_source)
    if sampler_type == "RandomDomainSampler":
        return RandomDomainSampler(data_source, batch_size, n_domain)
    if sampler_type == "SeqDomainSampler":
        return SeqDomainSampler(data_source, batch_size)
    if sampler_type == "RandomClassSampler":
        return RandomClassSampler(data_source, batch_size, n_ins)
    raise ValueError(f"Unknown sampler type: {sampler_type}; known are {AVAILABLE}")
