#!/usr/bin/env bash
# torchmetrics' expected calibration error puts a confidence of exactly 1.0 into a bin of its own.
#
# Versions: torchmetrics 1.9.0, torch 2.15.0.
# Expected: n_bins equal bins over (0, 1], the last one closed, as the definition of ECE has it: with 10 bins, 0.95 and 1.0
#   share the bin (0.9, 1.0].
# Seen: there are n_bins + 1 bins; 1.0 falls into the extra one, so that over- and underconfidence of the top bin no longer
#   cancel: 0.075 where the definition gives 0.025. Softmax in fp32 is exactly 1.0 for any logit that leads by 17 or more, which
#   at CLIP's temperature of 100 is a lead of 0.17 in cosine: on easy data sets that is a large part of the pictures.
# So: clamp confidences just below 1 before handing them over, or bin them oneself.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q torch==2.15.0 torchmetrics==1.9.0 2>/dev/null
"$here/env/bin/python" - <<'PYTHON'
import torch
from torchmetrics.classification import MulticlassCalibrationError

# 50 pictures at confidence 1.0 of which 45 are right, 50 at 0.95 which are all right
probabilities = torch.tensor([[1.0, 0.0]] * 50 + [[0.95, 0.05]] * 50)
labels = torch.tensor([0] * 45 + [1] * 5 + [0] * 50)
given = float(MulticlassCalibrationError(num_classes=2, n_bins=10)(probabilities, labels))

confidence, answer = probabilities.max(dim=1)
right = (answer == labels).double()
defined = 0.0
for i in range(10):
    inside = (confidence > i / 10) & (confidence <= (i + 1) / 10)
    if inside.any():
        gap = right[inside].mean() - confidence[inside].double().mean()
        defined += float(inside.double().mean() * gap.abs())
saturated = torch.softmax(torch.tensor([18.0, 0.0]), dim=0)[0].item()
print(f"torchmetrics {given:.4f}, by the definition {defined:.4f}; softmax of a lead of 18 in fp32: {saturated!r}")
assert abs(given - 0.075) < 1e-4 and abs(defined - 0.025) < 1e-4 and saturated == 1.0
print("as described")
PYTHON
