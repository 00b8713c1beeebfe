#!/usr/bin/env bash
# A DataLoader in order, without workers and without augmentation still draws from torch's global generator on every pass.
#
# Versions: torch 2.6.0, 2.15.0.
# Expected: a pass over an evaluation loader (SequentialSampler, no workers) leaves the training's random numbers alone.
# Seen: each iterator draws a base seed for its workers, also where there are none. A training loop that validates after an epoch
#   therefore shuffles the next one otherwise than one that does not: runs with and without validation have different results.
# So: DataLoader(..., generator=torch.Generator()) for everything that evaluates or fills a cache; a RandomSampler takes another.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q torch==2.15.0 numpy==2.4.6 2>/dev/null
"$here/env/bin/python" - <<'PYTHON'
import torch
from torch.utils.data import DataLoader


def next_order(loader):
    torch.manual_seed(0)
    list(loader)
    return torch.randperm(6).tolist()


torch.manual_seed(0)
alone = torch.randperm(6).tolist()
plain, apart = next_order(DataLoader(range(4))), next_order(DataLoader(range(4), generator=torch.Generator()))
print(f"no evaluation {alone}, after one {plain}, after one with a generator of its own {apart}")
assert plain != alone and apart == alone
print("as described")
PYTHON
