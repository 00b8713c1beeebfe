#!/usr/bin/env bash
# DCAR and its baselines on all nine FDRD domains, seeds 1-3: [SHOTS]
source "$(dirname "$0")/../lib.sh"
usage "scripts/dcar/all.sh [SHOTS=16] [KEY VALUE ...]" 0 "$@"
for domain in Caltech101 OxfordPets StanfordCars Flowers102 Food101 FGVCAircraft SUN397 DTD UCF101; do
    "$(pick_python)" -m dassl_prompts.run.retrieval compare --domain "$domain" --seed 1 2 3 --shots "${1:-16}" --quiet --output "${OUTPUT:-output}" -- "${@:2}"
done
