#!/usr/bin/env bash
# LinCIR: evaluate a run of train.sh on a benchmark, ON=cirr (default), fashioniq or circo. DATASET SEED [BACKBONE], a file in configs/trainers/LinCIR
source "$(dirname "$0")/../lib.sh"
usage "scripts/lincir/evaluate.sh DATASET SEED [BACKBONE=vit_l14] [KEY VALUE ...]" 2 "$@"
cfg=${3:-vit_l14}
[ "$1" = emoji ] && [ $# -lt 3 ] && cfg=emoji_tiny
"$(pick_python)" -m dassl_prompts.run.composed eval --trainer LinCIR --on "${ON:-cirr}" --dataset "$1" --seed "$2" --cfg "$cfg" --output "${OUTPUT:-output}" -- "${@:4}"
