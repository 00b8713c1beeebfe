#!/usr/bin/env bash
# DCAR without token re-weighting, without category-aware augmentation, without both; seeds 1-3: DOMAIN [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dcar/ablation.sh DOMAIN [SHOTS=16] [KEY VALUE ...]" 1 "$@"
"$(pick_python)" -m dassl_prompts.run.captions ablate --domain "$1" --seed 1 2 3 --shots "${2:-16}" --quiet --output "${OUTPUT:-output}" -- "${@:3}"
