#!/usr/bin/env bash
# All methods on the embedded data, three seeds each, and the ablations: renews the tables in docs (text outside the markers stays).
# bash scripts/embedded_results.sh   (OUTPUT=output JOBS=2; hours on two cores; finished runs are not repeated)
source "$(dirname "$0")/lib.sh"
usage "scripts/embedded_results.sh" 0 "$@"
cd "$PROJECT"
OUTPUT=${OUTPUT:-output} PYTHON=$(pick_python) PAGES=docs/results
METHODS="ZeroshotCLIP CLIPAdapter TipAdapter TipAdapterF LinearProbe CoOp KgCoOp ProGrad CoCoOp IVLP MaPLe TCP CoPrompt PromptSRC PromptKD"
METHODS="$METHODS DePT_CoOp DePT_CoCoOp DePT_KgCoOp DePT_MaPLe DePT_PromptSRC DPC_KgCoOp DPC_ProGrad DPC_TCP DPC_CoPrompt DPC_CoOp DPC_IVLP DPC_MaPLe DPC_PromptSRC DPC_PromptKD"
SEEDS="1 2 3"
DATASETS="emoji quickdraw icon_park clipart"
mkdir -p "$PAGES"

"$PYTHON" -m dassl_prompts.run base2new --task unknown --trainer $METHODS --dataset $DATASETS --seed $SEEDS --output "$OUTPUT" --jobs "${JOBS:-2}"
"$PYTHON" -m dassl_prompts.report "$OUTPUT" --format markdown --trainer $METHODS --seeds $SEEDS --write "$PAGES/base2new.md"
"$PYTHON" -m dassl_prompts.report "$OUTPUT" --format markdown --seeds $SEEDS --plots "$OUTPUT/plots" \
    --trainer CoOp IVLP MaPLe PromptSRC PromptKD DPC_CoOp DPC_IVLP DPC_MaPLe DPC_PromptSRC DPC_PromptKD --write "$PAGES/dpc_base2new.md"
for study in ablation omega channels; do
    "$PYTHON" -m dassl_prompts.trainers.dpc.study $study --dataset $DATASETS --seed $SEEDS --output "$OUTPUT" --write "$PAGES/dpc_$study.md"
done
for backbone in CoOp MaPLe PromptSRC PromptKD IVLP; do
    for study in readings short union; do
        "$PYTHON" -m dassl_prompts.trainers.dpc.study $study --backbone $backbone --dataset $DATASETS --seed $SEEDS --output "$OUTPUT" --write "$PAGES/dpc_$study.md"
    done
done
for study in compare ablate; do
    "$PYTHON" -m dassl_prompts.run.captions $study --domain emoji --seed $SEEDS --output "$OUTPUT" --quiet --write "$PAGES/retrieval_$study.md"
done
"$PYTHON" -m dassl_prompts.run.composed compare --dataset emoji --tune none --seed $SEEDS --output "$OUTPUT" --write docs/pvlf.md
for protocol in base2new xd; do
    "$PYTHON" -m dassl_prompts.trainers.attriprompt.study --dataset emoji --seed $SEEDS --protocol $protocol --output "$OUTPUT" \
        --write "docs/attriprompt_emoji$([ $protocol = xd ] && echo _xd).md"
done
