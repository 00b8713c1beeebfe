#!/usr/bin/env bash
# PVLF paper, table 3: tuned towers of both backbones; the published rows beside ours. DATASET [SEEDS], e.g. laion '1 2 3'
# DATASET: laion (as each row says), laion_template, laion_llm, laion_combined or emoji
source "$(dirname "$0")/../lib.sh"
usage "scripts/pvlf/table3.sh DATASET [SEEDS=1] [KEY VALUE ...]" 1 "$@"
read -ra seeds <<<"${2:-1}"
"$(pick_python)" -m dassl_prompts.trainers.pvlf.study 3 --dataset "$1" --seed "${seeds[@]}" --output "${OUTPUT:-output}" -- "${@:3}"
