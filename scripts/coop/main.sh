#!/usr/bin/env bash
# CoOp, few-shot on all classes, seeds 1-3, with CoOp's own arguments:
# DATASET CFG END_OR_MIDDLE N_CTX SHOTS CSC, e.g. caltech101 rn50_ep50 end 16 1 False
source "$(dirname "$0")/../lib.sh"
usage "scripts/coop/main.sh DATASET CFG CLASS_TOKEN_POSITION N_CTX SHOTS CSC [OPTIONS]" 6 "$@"
run_protocol fewshot --trainer CoOp --dataset "$1" --cfg "$2" --seed 1 2 3 --shots "$5" \
    --tag "nctx$4_csc$6_ctp$3" \
    TRAINER.COOP.CLASS_TOKEN_POSITION "$3" TRAINER.COOP.N_CTX "$4" TRAINER.COOP.CSC "$6" "${@:7}"
