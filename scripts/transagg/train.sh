#!/usr/bin/env bash
# TransAgg: train on composed-retrieval triplets, print the table with the training-free baselines. DATASET SEED [BACKBONE]
# DATASET: laion_combined, laion_template, laion_llm, cirr, fashioniq or emoji; BACKBONE: a file in configs/trainers/TransAgg
source "$(dirname "$0")/../lib.sh"
usage "scripts/transagg/train.sh DATASET SEED [BACKBONE=blip] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.composed train --trainer TransAgg --dataset "$1" --seed "$2" --cfg "${3:-blip}" --output "${OUTPUT:-output}" -- "${@:4}"
