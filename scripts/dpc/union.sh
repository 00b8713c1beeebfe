#!/usr/bin/env bash
# DPC: base and new classes together, every way to make scores under two prompts comparable
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/union.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study union --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
