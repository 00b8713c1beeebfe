#!/usr/bin/env bash
# CoPrompt, base-to-new: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/coprompt/base2new.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer CoPrompt --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
