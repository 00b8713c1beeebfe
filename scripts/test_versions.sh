#!/usr/bin/env bash
# Run the test suite on the oldest declared versions, or on the newest known to pass, in an environment of its own.
source "$(dirname "$0")/lib.sh"
cd "$PROJECT"
TEXT="scripts/test_versions.sh oldest|newest [PYTEST ARGUMENTS]    e.g. oldest tests/models -n 2; the environment is \$ENVIRONMENT or .venv-oldest"
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    echo "usage: bash $TEXT"
    exit 0
fi
usage "$TEXT" 1 "$@"
which=$1
shift
constraints=$PROJECT/constraints/$which.txt
if [ ! -f "$constraints" ]; then
    echo "usage: bash $TEXT" >&2
    exit 2
fi
export VENV=${ENVIRONMENT:-$PROJECT/.venv-$which}
# the oldest versions have no wheels for the newest Python
if [ "$which" = oldest ] && [ -z "${PYTHON:-}" ]; then
    for PYTHON in python3.10 python3.11; do
        command -v "$PYTHON" >/dev/null && "$PYTHON" -c '' 2>/dev/null && break
    done
fi
PYTHON=$(base_python)
stamp=$VENV/.installed
want="$PROJECT $(cat setup.py "$constraints" | cksum)"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    echo "== creating $VENV from constraints/$which.txt with $("$PYTHON" --version)"
    if command -v uv >/dev/null; then # seconds instead of minutes
        uv venv --quiet --clear --seed --python "$PYTHON" "$VENV"
        uv pip install --quiet --python "$VENV/bin/python" -c "$constraints" -e ".[dev,prepare,tensorboard]"
    else
        "$PYTHON" -m venv --clear "$VENV"
        "$VENV/bin/python" -m pip install --quiet -c "$constraints" -e ".[dev,prepare,tensorboard]"
    fi
    echo "$want" >"$stamp"
fi
"$VENV/bin/python" -m dassl_prompts.check
if [ $# -eq 0 ]; then
    set -- -n auto --maxprocesses 4 --dist loadfile
fi
exec "$VENV/bin/python" -m pytest "$@"
