#!/usr/bin/env bash
# open_clip builds weights into the wrong activation with a warning only, and lists a tag whose model it does not have.
#
# Versions: open_clip_torch 2.28.0, 2.29.0, 3.3.0 (torch 2.15.0, torchvision 0.29.2, timm 1.0.31).
# Expected: create_model("ViT-B-16", pretrained="openai") gives OpenAI's model, or an error.
# Seen: up to 2.28 the plain name gets QuickGELU through a loader of its own, and `ViT-B-16-quickgelu` has no tag "openai"; from
#   2.29 on all twins have it and the plain name gets GELU (features off by 0.01 to 0.08), with a warning whose words changed in
#   3.0. The record of the tag says which activation it needs: get_pretrained_cfg(model, tag)["quick_gelu"], from 2.29 on.
#   2.28 and 2.29 list tags of ViTamin-L-384 and ViTamin-L2-384 without shipping their configurations.
# So: compare the record with get_model_config(model)["quick_gelu"] before building; the words of the warning are no interface.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
for version in 2.28.0 2.29.0 3.3.0; do
    "$here/env/bin/pip" install -q "open_clip_torch==$version" torch==2.15.0 torchvision==0.29.2 timm==1.0.31 2>/dev/null
    "$here/env/bin/python" - <<'PYTHON'
import open_clip

twins = [m for m in ("ViT-B-16", "ViT-L-14", "RN50x64") if "openai" in open_clip.list_pretrained_tags_by_model(m + "-quickgelu")]
mismatched = [
    f"{model}:{tag}"
    for model, tag in open_clip.list_pretrained()
    if open_clip.get_model_config(model)
    and bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")) != bool(open_clip.get_model_config(model).get("quick_gelu"))
]
without = [m for m in dict.fromkeys(m for m, _ in open_clip.list_pretrained()) if m not in open_clip.list_models()]
print(open_clip.__version__, "| -quickgelu twins with OpenAI's tag:", twins)
print("  tags whose record contradicts the model:", len(mismatched), mismatched[:3], "| models without a configuration:", without)
assert bool(twins) == (open_clip.__version__ != "2.28.0") and bool(without) == open_clip.__version__.startswith("2.")
PYTHON
done
echo "as described"
