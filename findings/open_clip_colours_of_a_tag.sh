#!/usr/bin/env bash
# In open_clip mean and deviation of the pictures belong to a tag: of all tags on CLIP's own towers one wants others than OpenAI's.
#
# Versions: open_clip_torch 3.3.0 (torch 2.15.0, torchvision 0.29.2, timm 1.0.31).
# Expected: an architecture such as ViT-L-14 has one preprocessing; weights by one group (LAION-2B) agree on it.
# Seen: ViT-L-14:laion2b_s32b_b82k was trained with mean and deviation 0.5, while ViT-L-14:laion400m_e32, ViT-L-14:datacomp_xl_s13b_b90k
#   and ViT-B-16:laion2b_s34b_b88k have OpenAI's. Code that takes the architecture's or CLIP's customary constants (CoOp's
#   INPUT.PIXEL_MEAN, torchvision pipelines of one's own) scores it in the wrong colours without a word: the random tower below
#   gives features at a cosine of 0.94 to the right ones.
# So: read get_pretrained_cfg(model, tag)["mean"] and compare it with what the pictures were prepared with.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q open_clip_torch==3.3.0 torch==2.15.0 torchvision==0.29.2 timm==1.0.31 numpy==2.4.6 2>/dev/null
"$here/env/bin/python" - <<'PYTHON'
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

others, customary = [], 0
for model, tag in open_clip.list_pretrained():
    config = open_clip.get_model_config(model)
    text, vision = config["text_cfg"], config["vision_cfg"]
    if {"hf_model_name", "no_causal_mask", "embed_cls"} & text.keys() or "timm_model_name" in vision:
        continue
    record = open_clip.get_pretrained_cfg(model, tag)
    if tuple(record.get("mean") or OPENAI_DATASET_MEAN) != OPENAI_DATASET_MEAN:
        others.append((f"{model}:{tag}", record["mean"], record["std"]))
    else:
        customary += 1
print(open_clip.__version__, "| tags with OpenAI's mean:", customary, "| others:", others)
assert others == [("ViT-L-14:laion2b_s32b_b82k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]

torch.manual_seed(0)
tower = open_clip.create_model("ViT-B-32").visual.eval()
picture = torch.rand(8, 3, 224, 224)
mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
with torch.no_grad():
    right, wrong = tower((picture - 0.5) / 0.5), tower((picture - mean) / std)
cosine = torch.nn.functional.cosine_similarity(right, wrong).mean().item()
print(f"cosine of features in the right and in the customary colours, random ViT-B-32: {cosine:.3f}")
assert cosine < 0.999
PYTHON
echo "as described"
