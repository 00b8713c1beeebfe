#!/usr/bin/env bash
# PVLF, ablation of prompt length 5 to 35 (Table 4). DATASET SEED [BACKBONE]
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/ablation_length.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed ablate --what length --dataset "$1" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
