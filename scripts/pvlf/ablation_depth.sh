#!/usr/bin/env bash
# PVLF, ablation of fusion layers and prompt depth, separately (Table 5 varies them together). DATASET SEED [BACKBONE]
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/ablation_depth.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed ablate --what depth --dataset "$1" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
