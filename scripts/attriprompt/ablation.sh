#!/usr/bin/env bash
# AttriPrompt's ablation table, each switch against the full method: DATASET "SEEDS" [PROTOCOL] [further options of the study]
source "$(dirname "$0")/../lib.sh"
usage "scripts/attriprompt/ablation.sh DATASET SEEDS [PROTOCOL=base2new] [OPTIONS]" 2 "$@"
# SEEDS is a list such as "1 2 3"
"$(pick_python)" -m dassl_prompts.trainers.attriprompt.study --dataset "$1" --seed $2 --protocol "${3:-base2new}" --output "${OUTPUT:-output}" "${@:4}"
