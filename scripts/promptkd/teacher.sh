#!/usr/bin/env bash
# The teacher of PromptKD: PromptSRC on the larger CLIP, trained on the base classes: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/promptkd/teacher.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
case "$1" in emoji*) cfg=emoji_base ;; *) cfg=vit_l14_c2_ep20_batch8_4+4ctx ;; esac
run_protocol base2new --trainer PromptSRC --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-$cfg}" "${@:5}"
