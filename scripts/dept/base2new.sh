#!/usr/bin/env bash
# DePT on top of a backbone, base-to-new: DATASET SEED [BACKBONE] [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dept/base2new.sh DATASET SEED [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer "DePT_${3:-CoOp}" --dataset "$1" --seed "$2" --shots "${4:-16}" "${@:5}"
