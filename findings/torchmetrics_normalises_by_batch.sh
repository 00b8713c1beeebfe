#!/usr/bin/env bash
# A torchmetrics metric fed with scores batch by batch turns some batches into probabilities and leaves others as they are.
#
# Versions: torchmetrics 1.9.0, torch 2.15.0.
# Expected: AUROC depends on the order of the scores alone; the same scores in one batch or in two give one value.
# Seen: whether scores are passed through a sigmoid is decided anew for every update, by whether a value of that batch lies
#   outside 0 .. 1. Cosine similarities of a vision-language model often lie inside for one batch and not for the next; the
#   stored scores are then of two kinds, and the area under the curve changes with the batch size: 1.0 in one batch, 0.75 in
#   two. The documentation says that scores outside 0 .. 1 are taken as logits, not that batches are judged apart.
# So: give probabilities, or all scores in one update.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q torch==2.15.0 torchmetrics==1.9.0 2>/dev/null
"$here/env/bin/python" - <<'PYTHON'
import torch
from torchmetrics.classification import BinaryAUROC

scores, labels = torch.tensor([0.10, 0.20, 0.40, -0.05, 0.15, 0.70]), torch.tensor([0, 0, 1, 0, 0, 1])


def area(size: int) -> float:
    metric = BinaryAUROC()
    for start in range(0, len(scores), size):
        metric.update(scores[start : start + size], labels[start : start + size])
    return float(metric.compute())


whole, halves = area(6), area(3)
pairs = [(a > b).item() for a in scores[labels == 1] for b in scores[labels == 0]]
print(f"one batch {whole:.4f}, two batches {halves:.4f}, by counting pairs {sum(pairs) / len(pairs):.4f}")
metric = BinaryAUROC()
metric.update(scores[:3], labels[:3])
metric.update(scores[3:], labels[3:])
print("stored:", [[round(v, 3) for v in part.tolist()] for part in metric.preds])
assert whole == 1.0 == sum(pairs) / len(pairs) and halves == 0.75
print("as described")
PYTHON
