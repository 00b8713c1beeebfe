#!/usr/bin/env bash
# KgCoOp, few-shot on all classes: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/kgcoop/fewshot.sh DATASET SEED [SHOTS=4] [CFG] [OPTIONS]" 2 "$@"
run_protocol fewshot --trainer KgCoOp --dataset "$1" --seed "$2" --shots "${3:-4}" --cfg "${4:-}" "${@:5}"
