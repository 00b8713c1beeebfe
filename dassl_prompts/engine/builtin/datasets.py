"""``DatasetBase``: lists of ``Datum``, and few-shot sampling."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from dassl_prompts.engine.builtin.registry import DATASET_REGISTRY, build_named, check_availability
from dassl_prompts.engine.datum import Datum


class DatasetBase:
    """Lists of :class:`Datum` for training, validation and test.

    Args:
        train_x: labelled training data.
        train_u: unlabelled training data, optional.
        val: validation data, optional.
        test: test data.

    Raises:
        ValueError: ``train_x`` is empty.
    """

    #: folder of the dataset below DATASET.ROOT
    dataset_dir = ""
    #: names of all domains
    domains: Sequence[str] = ()

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        if not train_x:
            raise ValueError(f"{type(self).__name__}: there is no training image (train_x is empty)")
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> list[Datum]:
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        return self._val

    @property
    def test(self) -> list[Datum]:
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name by label."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in the order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Largest label plus one."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Largest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Class name by label, and the names in label order."""
        mapping = {item.label: item.classname for item in data_source}
        return mapping, [mapping[label] for label in sorted(mapping)]

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Check that the domains named in the config exist.

        Raises:
            ValueError: an unknown domain; lists the known ones.
        """
        for domain in (*source_domains, *target_domains):
            check_availability(domain, self.domains)

    def generate_fewshot_dataset(self, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False):
        """Draw ``num_shots`` items per class from each source with Python's global generator, as Dassl does.

        Args:
            data_sources: lists of items; drawn from in this order.
            num_shots: items per class; < 1 returns the sources as they are.
            repeat: draw with replacement where a class has fewer items (else all of them are kept).

        Returns:
            one list, or a list of lists for several sources.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        output = [self._draw(source, num_shots, repeat) for source in data_sources]
        return output[0] if len(output) == 1 else output

    def _draw(self, source: Sequence[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        drawn = []
        for items in self.split_dataset_by_label(source).values():
            if len(items) >= num_shots:
                drawn += random.sample(items, num_shots)
            elif repeat:
                drawn += random.choices(items, k=num_shots)
            else:
                drawn += items
        return drawn

    def split_dataset_by_label(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Items by label; labels in the order they are first seen."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.label].append(item)
        return groups

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Items by domain; domains in the order they are first seen."""
        groups = defaultdict(list)
        for item in data_source:
            groups[item.domain].append(item)
        return groups


def build_dataset(cfg) -> DatasetBase:
    """The dataset ``cfg.DATASET.NAME``.

    Raises:
        ValueError: no such dataset; lists the known ones.
    """
    return build_named(DATASET_REGISTRY, "dataset", cfg.DATASET.NAME, cfg)
