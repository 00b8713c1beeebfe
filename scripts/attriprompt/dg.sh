#!/usr/bin/env bash
# AttriPrompt, domain generalisation: train on DATASET (imagenet), test on its shifted versions: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/attriprompt/dg.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol dg --trainer AttriPrompt --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
