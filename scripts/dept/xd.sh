#!/usr/bin/env bash
# DePT on top of a backbone, cross-dataset: train on DATASET (imagenet), test on the others: DATASET SEED [BACKBONE] [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dept/xd.sh DATASET SEED [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
run_protocol xd --trainer "DePT_${3:-CoOp}" --dataset "$1" --seed "$2" --shots "${4:-16}" "${@:5}"
