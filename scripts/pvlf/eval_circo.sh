#!/usr/bin/env bash
# PVLF: evaluate a run of train.sh on the validation split of circo. DATASET SEED [BACKBONE], as for train.sh
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/eval_circo.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
[ "$1" = emoji ] && { echo "error: the emoji data has queries in the format of CIRR only: use eval_cirr.sh" >&2; exit 2; }
"$(pick_python)" -m dassl_prompts.run.composed eval --trainer PVLF --dataset "$1" --on circo --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
