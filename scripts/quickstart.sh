#!/usr/bin/env bash
# From a fresh machine to a finished result: environment, then base-to-new on the embedded emoji data, then the table.
source "$(dirname "$0")/lib.sh"
usage "scripts/quickstart.sh" 0 "$@"
cd "$PROJECT"
set_up
echo "== zero-shot CLIP on the embedded emoji data"
bash scripts/zsclip/base2new.sh emoji 1
echo "== CoOp by its own recipe"
bash scripts/coop/base2new.sh emoji 1
echo "== CoOp as the first stage of DPC, then DPC on top of it"
bash scripts/dpc/base2new.sh emoji 1
echo "== all runs, side by side"
"$PYTHON" -m dassl_prompts.report "${OUTPUT:-output}"
echo "== done; runs are in $(cd "${OUTPUT:-output}" && pwd), next: README.md"
