#!/usr/bin/env bash
# PVLF: evaluate a run of train.sh on the validation split of cirr. DATASET SEED [BACKBONE], as for train.sh
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/eval_cirr.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
on=cirr
[ "$1" = emoji ] && on=emoji  # its queries have the format of CIRR
"$(pick_python)" -m dassl_prompts.run.composed eval --trainer PVLF --dataset "$1" --on "$on" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
