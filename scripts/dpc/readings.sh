#!/usr/bin/env bash
# DPC: every preset (reading of the method) on one stage 1
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/readings.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study readings --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
