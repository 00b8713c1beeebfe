#!/usr/bin/env bash
# DPC: both stages with 5 epochs each, beside the recipes' own schedules
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/short.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study short --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
