#!/usr/bin/env bash
# DPC, base-to-new on the eleven datasets with seeds 1 to 3; what fails, such as a dataset that is not there, is listed at the end.
source "$(dirname "$0")/../lib.sh"
usage "scripts/dpc/all.sh [BACKBONE=CoOp] [SHOTS=16] [OPTIONS]" 0 "$@"
DATASETS=(imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101)
for dataset in "${DATASETS[@]}"; do
    cfg=
    [ "$dataset" = eurosat ] && cfg=vit_b16_ep10_bs2top2 # five base classes
    attempt "$dataset" run_protocol base2new --trainer "DPC_${1:-CoOp}" --dataset "$dataset" --seed 1 2 3 --shots "${2:-16}" --cfg "$cfg" "${@:3}"
done
finish datasets "${#DATASETS[@]}"
