#!/usr/bin/env bash
# PromptSRC, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/promptsrc/xd.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol xd --trainer PromptSRC --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
