#!/usr/bin/env bash
# From a fresh machine to a finished result: environment, then base-to-new on the embedded emoji data, then the table.
source "$(dirname "$0")/lib.sh"
usage "scripts/quickstart.sh" 0 "$@"
cd "$PROJECT"
OUTPUT=${OUTPUT:-output}
cat <<TEXT
dassl-prompts quickstart
  1. makes the environment $VENV with everything from PyPI (only the first time)
  2. trains and tests zero-shot CLIP, CoOp, and DPC on CoOp, on embedded drawings of emoji: base classes, then classes
     never trained on; 6 short runs, some minutes on two CPU cores; no download of data or weights
  3. prints the table and draws the plots
What to expect: CoOp gains on base classes against zero-shot CLIP, and DPC leaves the new classes exactly as CoOp had them. What DPC adds on
base classes differs from seed to seed and is small on this data set (docs/results/dpc_base2new.md has three sets, three seeds and
nine backbones). Everything may be repeated: what is finished is not run again.

TEXT
set_up
echo "== training and testing"
"$PYTHON" -m dassl_prompts.run base2new --trainer ZeroshotCLIP CoOp DPC_CoOp --dataset emoji --seed 1 --output "$OUTPUT"
echo "== plots"
"$PYTHON" -m dassl_prompts.report "$OUTPUT" --plots "$OUTPUT/plots" --write "$OUTPUT/report.txt"
cat <<TEXT
== done in $SECONDS s; every run's log.txt below $OUTPUT/base2new has all it printed and all its settings. Next:
  $PYTHON -m dassl_prompts.run fewshot --trainer CoOp --dataset folder:/my/pictures --shots 8
  $PYTHON -m dassl_prompts.predict $OUTPUT/base2new/train_base/emoji/shots_16/DPC_CoOp/open_tiny/seed1 picture.png --classes apple banana
  $PYTHON -m dassl_prompts.list
TEXT
