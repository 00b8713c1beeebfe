#!/usr/bin/env bash
# Tip-Adapter, base-to-new (new classes are zero-shot CLIP's): DATASET SEED [SHOTS] [TipAdapter|TipAdapterF]
source "$(dirname "$0")/../lib.sh"
usage "scripts/tip_adapter/base2new.sh DATASET SEED [SHOTS=16] [TRAINER=TipAdapter] [OPTIONS]" 2 "$@"
run_protocol base2new --trainer "${4:-TipAdapter}" --dataset "$1" --seed "$2" --shots "${3:-16}" "${@:5}"
