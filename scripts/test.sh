#!/usr/bin/env bash
# Set up the environment if needed, check style and structure, then run the test suite, a file at a time on each core, on
# four at most.
# Arguments go to pytest; `-n 0` runs all in one process, as a debugger needs it.
source "$(dirname "$0")/lib.sh"
usage "scripts/test.sh [PYTEST OPTIONS]" 0 "$@"
cd "$PROJECT"
set_up
echo "== style and structure"
PYTHON=$PYTHON bash scripts/lint.sh
echo "== running the tests"
"$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
