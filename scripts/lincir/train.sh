#!/usr/bin/env bash
# LinCIR: train the network for the image's word on captions (emoji, laion_llm, laion_combined, or a file: TRAINER.LINCIR.CAPTIONS). DATASET SEED [BACKBONE], a file in configs/trainers/LinCIR
source "$(dirname "$0")/../lib.sh"
usage "scripts/lincir/train.sh DATASET SEED [BACKBONE=vit_l14] [KEY VALUE ...]" 2 "$@"
cfg=${3:-vit_l14}
[ "$1" = emoji ] && [ $# -lt 3 ] && cfg=emoji_tiny
"$(pick_python)" -m dassl_prompts.run.composed train --trainer LinCIR --dataset "$1" --seed "$2" --cfg "$cfg" --output "${OUTPUT:-output}" -- "${@:4}"
