#!/usr/bin/env bash
# MaPLeITR alone on one FDRD domain (or emoji): DOMAIN SEED [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/itr/maple.sh DOMAIN SEED [SHOTS=16] [KEY VALUE ...]" 2 "$@"
"$(pick_python)" -m dassl_prompts.run.captions compare --method MaPLeITR --domain "$1" --seed "$2" --shots "${3:-16}" --output "${OUTPUT:-output}" -- "${@:4}"
