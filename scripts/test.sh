#!/usr/bin/env bash
# Set up the environment if needed, then run the test suite. Arguments go to pytest.
source "$(dirname "$0")/lib.sh"
cd "$PROJECT"
set_up
echo "== running the tests"
"$PYTHON" -m pytest "$@"
