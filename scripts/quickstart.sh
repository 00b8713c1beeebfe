#!/usr/bin/env bash
# From a fresh machine to a finished result: environment, then base-to-new on the embedded emoji data, then the table.
source "$(dirname "$0")/lib.sh"
cd "$PROJECT"
set_up
echo "== zero-shot CLIP on the embedded emoji data"
bash scripts/zsclip/base2new.sh emoji 1
echo "== CoOp, then DPC on top of it"
bash scripts/dpc/base2new.sh emoji 1
echo "== done; runs are in $PROJECT/output, next: README.md"
