#!/usr/bin/env bash
# A CLIPTextModel saved by transformers 5 is read by transformers 4 as random weights.
#
# Versions: transformers 5.24.0 writes, 4.56.2 reads (torch 2.15.0).
# Expected: save_pretrained and from_pretrained of one class understand each other, or the older one raises.
# Seen: 5 leaves out the prefix `text_model.` that 4 expects, so that every tensor is unknown to 4 and every parameter is missing:
#   a random tower is returned, with a warning in the log. CLIPModel keeps its names in both.
# So: look at the loading report, or check a parameter, before believing a text tower from a file.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
pip="$here/env/bin/pip install -q"
$pip transformers==5.24.0 torch==2.15.0 numpy==2.4.6 2>/dev/null
cat > "$here/make.py" <<'PYTHON'
import sys
import torch, transformers
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100)
CLIPTextModel(CLIPTextConfig(**sizes)).save_pretrained(sys.argv[1])
print("written by", transformers.__version__, sorted(load_file(f"{sys.argv[1]}/model.safetensors"))[0])
PYTHON
cat > "$here/read.py" <<'PYTHON'
import sys
import transformers
from safetensors.torch import load_file
from transformers import CLIPTextModel

stored = load_file(f"{sys.argv[1]}/model.safetensors")
model, report = CLIPTextModel.from_pretrained(sys.argv[1], output_loading_info=True)
own = dict(model.named_parameters())
equal = sum(any(p.shape == t.shape and bool((p == t).all()) for t in stored.values()) for n, p in own.items() if "token_embedding" in n)
print("read by", transformers.__version__, "| missing:", len(report["missing_keys"]), "of", len(own), "| token embedding as stored:", bool(equal))
assert (len(report["missing_keys"]) == 0) == (transformers.__version__[0] == "5") == bool(equal)
PYTHON
"$here/env/bin/python" "$here/make.py" "$here/model" 2>/dev/null
"$here/env/bin/python" "$here/read.py" "$here/model" 2>/dev/null
$pip transformers==4.56.2 2>/dev/null
"$here/env/bin/python" "$here/read.py" "$here/model" 2>/dev/null
echo "as described"
