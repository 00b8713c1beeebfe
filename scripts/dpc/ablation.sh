#!/usr/bin/env bash
# DPC's ablation table: dual prompts, + DHNO, + weighting, + decoupling, and cross-entropy instead of the contrastive loss
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/ablation.sh DATASETS SEEDS [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 2 "$@"
"$(pick_python)" -m dassl_prompts.trainers.dpc.study ablation --dataset $1 --seed $2 --backbone "${3:-CoOp}" --shots "${4:-16}" --output "${OUTPUT:-output}" "${@:5}"
