#!/usr/bin/env bash
# TransAgg: write and check the file for CIRCO's test server. DATASET SEED [BACKBONE], as for train.sh
source "$(dirname "$0")/../lib.sh"
usage "scripts/transagg/submit_circo.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed submit --trainer TransAgg --dataset "$1" --on circo --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
