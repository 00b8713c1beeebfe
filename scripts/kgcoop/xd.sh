#!/usr/bin/env bash
# KgCoOp, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/kgcoop/xd.sh DATASET SEED [SHOTS=4] [CFG] [OPTIONS]" 2 "$@"
run_protocol xd --trainer KgCoOp --dataset "$1" --seed "$2" --shots "${3:-4}" --cfg "${4:-}" "${@:5}"
