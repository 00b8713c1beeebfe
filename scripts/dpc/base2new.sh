#!/usr/bin/env bash
# DPC on top of a backbone, base-to-new: trains or finds stage 1, trains stage 2, prints both.
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/base2new.sh DATASET SEED [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer "DPC_${3:-CoOp}" --dataset "$1" --seed "$2" --shots "${4:-16}" "${@:5}"
