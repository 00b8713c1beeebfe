#!/usr/bin/env bash
# The tests of the demo with its extra, and in chromium where it is there. The extra brings Pillow below 13 into the environment, which
# the other tests pass on, too. Arguments go to pytest.
source "$(dirname "$0")/lib.sh"
usage "scripts/test_demo.sh [PYTEST OPTIONS]" 0 "$@"
cd "$PROJECT"
set_up
"$PYTHON" -c 'import gradio, playwright' 2>/dev/null \
    || PYTHONWARNINGS="ignore:Editable installation" "$PYTHON" -m pip install --quiet -e "$PROJECT[demo,demo-tests]"
"$PYTHON" -m pytest -n 2 --dist loadfile tests/demo "$@"
