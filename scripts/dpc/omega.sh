#!/usr/bin/env bash
# DPC accuracy along omega_b and omega_n, printed and plotted
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/omega.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study omega --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
