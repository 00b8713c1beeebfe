#!/usr/bin/env bash
# Zero-shot CLIP on all classes of a dataset: DATASET [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/zsclip/zeroshot.sh DATASET [CFG] [OPTIONS]" 1 "$@"
run_protocol fewshot --trainer ZeroshotCLIP --dataset "$1" --cfg "${2:-}" "${@:3}"
