#!/usr/bin/env bash
# All methods on the embedded data, three seeds each, and the ablations; writes docs/emoji_results.md.
# bash scripts/emoji_results.sh   (OUTPUT=output JOBS=2; about two hours on two cores, finished runs are not repeated)
source "$(dirname "$0")/lib.sh"
cd "$PROJECT"
OUTPUT=${OUTPUT:-output} PYTHON=$(pick_python) PAGE=docs/emoji_results.md
DRAFT=$(mktemp "$PAGE.XXXXXX")
trap 'rm -f "$DRAFT"' EXIT

# section TITLE COMMAND...: run it, and put its command line and the Markdown tables that it prints on the page
section() {
    local title=$1 printed
    shift
    echo "== $title" >&2
    printed=$("$PYTHON" -m "$@" | tee /dev/stderr)
    printf '\n## %s\n\n```\npython -m %s\n```\n\n%s\n' "$title" "${*//$OUTPUT/output}" "$(grep '^|' <<<"$printed")" >>"$DRAFT"
}

CLASSIFICATION="ZeroshotCLIP CoOp CoCoOp IVLP MaPLe PromptSRC PromptKD DPC_CoOp DPC_IVLP DPC_MaPLe DPC_PromptSRC DPC_PromptKD"
cat >"$DRAFT" <<'PAGE_HEAD'
# Results on the embedded data

Written by `bash scripts/emoji_results.sh`. Seeds 1, 2, 3; mean, and standard deviation where it is given; percent. The data and the
backbones are described in [emoji.md](emoji.md): held-out style, unseen concepts. Recipes: `configs/trainers/*/emoji_tiny.yaml`,
chosen on training concepts set aside (`tools/choose_emoji_recipe.py`). A test of 300 pictures has a standard error of 2.7
points: differences of a point or two say nothing.
PAGE_HEAD

"$PYTHON" -m dassl_prompts.run base2new --trainer $CLASSIFICATION --dataset emoji --seed 1 2 3 --output "$OUTPUT" --jobs "${JOBS:-2}"
section "Base-to-new, 16 shots" dassl_prompts.report "$OUTPUT" --format markdown --dataset Emoji --seeds 1 2 3 --trainer $CLASSIFICATION
section "DPC on CoOp: ablation" dassl_prompts.run.dpc_study ablation --dataset emoji --seed 1 2 3 --output "$OUTPUT"
section "DPC on CoOp: accuracy along omega" dassl_prompts.run.dpc_study omega --dataset emoji --seed 1 2 3 --output "$OUTPUT"
section "Image-text retrieval, 16 shots" dassl_prompts.run.retrieval compare --domain emoji --seed 1 2 3 --output "$OUTPUT" --quiet
section "DCAR: ablation" dassl_prompts.run.retrieval ablate --domain emoji --seed 1 2 3 --output "$OUTPUT" --quiet
mv "$DRAFT" "$PAGE"
echo "written: $PAGE"
