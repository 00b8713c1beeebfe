#!/usr/bin/env bash
# Zero-shot CLIP, base and new classes: DATASET SEED [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/zsclip/base2new.sh DATASET SEED [CFG] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer ZeroshotCLIP --dataset "$1" --seed "$2" --cfg "${3:-}" "${@:4}"
