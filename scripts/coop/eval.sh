#!/usr/bin/env bash
# Evaluate a trained CoOp run on another dataset: RUN_DIR DATASET CFG [SEED]
source "$(dirname "$0")/../lib.sh"
usage "scripts/coop/eval.sh RUN_DIR DATASET CFG [SEED=1] [OPTIONS]" 3 "$@"
"$(pick_python)" "$PROJECT/train.py" --root "${DATA:-data}" --seed "${4:-1}" --trainer CoOp \
    --dataset-config-file "$PROJECT/configs/datasets/$2.yaml" --config-file "$PROJECT/configs/trainers/CoOp/$3.yaml" \
    --output-dir "${OUTPUT:-output}/evaluation/CoOp/$3/$2/seed${4:-1}" --model-dir "$1" --eval-only "${@:5}"
