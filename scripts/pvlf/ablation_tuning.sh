#!/usr/bin/env bash
# PVLF, ablation of towers tuned, TransAgg and PVLF (Table 3). DATASET SEED [BACKBONE]
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/ablation_tuning.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed ablate --what tuning --dataset "$1" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
