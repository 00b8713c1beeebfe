#!/usr/bin/env bash
# DPC's "feature channel invariance": rank correlation of the text features' channels between P, mixtures and P'
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/channels.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study channels --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
