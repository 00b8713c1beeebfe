#!/usr/bin/env bash
# Tip-Adapter, few-shot on all classes: DATASET SEED [SHOTS] [TipAdapter|TipAdapterF]
source "$(dirname "$0")/../lib.sh"
usage "scripts/tip_adapter/fewshot.sh DATASET SEED [SHOTS=16] [TRAINER=TipAdapter] [OPTIONS]" 2 "$@"
run_protocol fewshot --trainer "${4:-TipAdapter}" --dataset "$1" --seed "$2" --shots "${3:-16}" "${@:5}"
