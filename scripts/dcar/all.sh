#!/usr/bin/env bash
# DCAR and its baselines on all nine FDRD domains and their mean, seeds 1-3; a domain that fails is named at the end: [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dcar/all.sh [SHOTS=16] [KEY VALUE ...]" 0 "$@"
DOMAINS=(Caltech101 OxfordPets StanfordCars Flowers102 Food101 FGVCAircraft SUN397 DTD UCF101)
"$(pick_python)" -m dassl_prompts.run.captions compare --domain "${DOMAINS[@]}" --seed 1 2 3 --shots "${1:-16}" --quiet --output "${OUTPUT:-output}" -- "${@:2}"
