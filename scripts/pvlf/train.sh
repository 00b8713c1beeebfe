#!/usr/bin/env bash
# PVLF: train on composed-retrieval triplets, print the table with the training-free baselines. DATASET SEED [BACKBONE]
# DATASET: laion_combined, laion_template, laion_llm, cirr, fashioniq or emoji; BACKBONE: a file in configs/trainers/PVLF
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/train.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed train --trainer PVLF --dataset "$1" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
