#!/usr/bin/env bash
# PVLF paper, table 5: prompt depth 1 to 3 with as many fusion layers; the published rows beside ours. DATASET [SEED ...]
# DATASET: laion (as each row says), laion_template, laion_llm, laion_combined or emoji
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/table5.sh DATASET [SEED ...=1] [-- KEY VALUE ...]" 1 "$@"
seeds=() dataset=$1
shift
while [ $# -gt 0 ] && [ "$1" != -- ]; do seeds+=("$1"); shift; done
"$(pick_python)" -m dassl_prompts.trainers.pvlf.study 5 --dataset "$dataset" --seed "${seeds[@]:-1}" --output "${OUTPUT:-output}" "$@"
