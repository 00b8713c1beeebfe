#!/usr/bin/env bash
# PVLF paper, table 4: prompt length 5 to 35; the published rows beside ours. DATASET [SEEDS], e.g. laion '1 2 3'
# DATASET: laion (as each row says), laion_template, laion_llm, laion_combined or emoji
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/table4.sh DATASET [SEEDS=1] [KEY VALUE ...]" 1 "$@"
read -ra seeds <<<"${2:-1}"
"$(pick_python)" -m dassl_prompts.trainers.pvlf.study 4 --dataset "$1" --seed "${seeds[@]}" --output "${OUTPUT:-output}" -- "${@:3}"
