"""Batches of cached triplets: every caption comes with its own reference's token map and its own target's feature."""

import numpy as np
import torch

from dassl_prompts.composed.loading import CachedTriplets
from dassl_prompts.composed.trainer import spread


def test_reference_and_target_are_those_of_the_caption():
    references, targets = np.arange(5 * 2 * 3).reshape(5, 2, 3), -np.arange(7 * 3).reshape(7, 3)
    rows = [(0, 6, "a"), (4, 1, "b"), (2, 2, "c"), (1, 0, "d")]
    found = {}
    for batch in CachedTriplets(references, targets, rows, 2):
        assert batch["reference"].shape == (2, 2, 3) and batch["target"].shape == (2, 3)
        for i, caption in enumerate(batch["caption"]):
            found[caption] = batch["reference"][i], batch["target"][i], int(batch["target_id"][i])
    assert sorted(found) == ["a", "b", "c", "d"]
    for reference, target, caption in rows:
        one, other, number = found[caption]
        assert torch.equal(one, torch.from_numpy(references[reference]))
        assert torch.equal(other, torch.from_numpy(targets[target])) and number == target


def test_a_sheet_shows_no_query_twice():
    """Of five queries, a sheet of eight showed the first two twice and the last two never."""
    assert spread(8, 5) == [0, 1, 2, 3, 4]
    assert spread(8, 16) == list(range(0, 16, 2)) and spread(8, 1461)[-1] == 1278 and not spread(0, 5)
