#!/usr/bin/env bash
# PromptKD, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/promptkd/xd.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol xd --trainer PromptKD --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
