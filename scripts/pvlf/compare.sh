#!/usr/bin/env bash
# Baselines, TransAgg and PVLF with equal data, backbone and tuning mode, seeds 1-3. DATASET [TUNE] [BACKBONE]
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/compare.sh DATASET [none|text|both] [BACKBONE=blip] [KEY VALUE ...]" 1 "$@"
"$(pick_python)" -m dassl_prompts.run.composed compare --dataset "$1" --tune "${2:-none}" --seed 1 2 3 --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
