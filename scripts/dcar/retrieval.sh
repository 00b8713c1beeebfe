#!/usr/bin/env bash
# DCAR and its baselines on one FDRD domain (or emoji), both directions: DOMAIN SEED [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dcar/retrieval.sh DOMAIN SEED [SHOTS=16] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.captions compare --domain "$1" --seed "$2" --shots "${3:-16}" --output "${OUTPUT:-output}" -- "${@:4}"
