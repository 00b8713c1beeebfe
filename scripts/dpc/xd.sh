#!/usr/bin/env bash
# DPC, cross-dataset: train both stages on DATASET (imagenet) with all classes, test on the others; prints the backbone, too.
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/xd.sh DATASET SEED [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
run_protocol xd --trainer "DPC_${3:-CoOp}" --dataset "$1" --seed "$2" --shots "${4:-16}" "${@:5}"
