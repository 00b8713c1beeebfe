#!/usr/bin/env bash
# PVLF: write and check the file for CIRCO's test server. DATASET SEED [BACKBONE], as for train.sh
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/submit_circo.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed submit --trainer PVLF --dataset "$1" --on circo --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
