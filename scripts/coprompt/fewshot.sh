#!/usr/bin/env bash
# CoPrompt, few-shot on all classes: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/coprompt/fewshot.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol fewshot --trainer CoPrompt --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
