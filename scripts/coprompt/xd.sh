#!/usr/bin/env bash
# CoPrompt, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/coprompt/xd.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol xd --trainer CoPrompt --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
