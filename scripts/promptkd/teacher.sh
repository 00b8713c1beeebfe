#!/usr/bin/env bash
# The teacher of PromptKD: PromptSRC on the larger CLIP (embedded data: on the same), trained on the base classes: DATASET SEED [SHOTS] [CFG]
source "$(dirname "$0")/../lib.sh"
usage "scripts/promptkd/teacher.sh DATASET SEED [SHOTS=16] [CFG] [OPTIONS]" 2 "$@"
case "$1" in emoji* | quickdraw | icon_park | clipart) cfg=open_tiny ;; *) cfg=vit_l14_c2_ep20_batch8_4+4ctx ;; esac
run_protocol base2new --trainer PromptSRC --dataset "$1" --seed "$2" --shots "${3:-16}" --cfg "${4:-$cfg}" "${@:5}"
