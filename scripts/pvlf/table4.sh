#!/usr/bin/env bash
# PVLF paper, table 4: prompt length 5 to 35; the published rows beside ours. DATASET [SEED ...]
# DATASET: laion (as each row says), laion_template, laion_llm, laion_combined or emoji
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/table4.sh DATASET [SEED ...=1] [-- KEY VALUE ...]" 1 "$@"
seeds=() dataset=$1
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do seeds+=("$1"); shift; done
"$(pick_python)" -m dassl_prompts.trainers.pvlf.study 4 --dataset "$dataset" --seed "${seeds[@]:-1}" --output "${OUTPUT:-output}" "$@"
