#!/usr/bin/env bash
# PVLF paper, table 3: tuned towers of both backbones; the published rows beside ours. DATASET [SEED ...]
# DATASET: laion (as each row says), laion_template, laion_llm, laion_combined or emoji
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/table3.sh DATASET [SEED ...=1] [-- KEY VALUE ...]" 1 "$@"
seeds=() dataset=$1
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do seeds+=("$1"); shift; done
"$(pick_python)" -m dassl_prompts.trainers.pvlf.study 3 --dataset "$dataset" --seed "${seeds[@]:-1}" --output "${OUTPUT:-output}" "$@"
