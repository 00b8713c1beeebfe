#!/usr/bin/env bash
# TCP, base-to-new: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/tcp/base2new.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer TCP --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-}" "${@:5}"
