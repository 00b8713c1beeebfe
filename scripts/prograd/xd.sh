#!/usr/bin/env bash
# ProGrad, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/prograd/xd.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol xd --trainer ProGrad --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
