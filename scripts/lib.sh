# Sourced by every script: where the project is, which Python runs it, and the set-up that quickstart.sh and test.sh share.

set -euo pipefail
PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$PROJECT/.venv}

# The interpreter: $PYTHON, else the project's own environment, else whatever is active.
pick_python() {
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
    elif [ -x "$VENV/bin/python" ]; then
        echo "$VENV/bin/python"
    else
        command -v python3 || command -v python
    fi
}

# usage TEXT MINIMUM "$@": print the usage line for --help, or unless there are enough arguments.
usage() {
    local text=$1 minimum=$2
    shift 2
    if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
        echo "usage: bash $text"
        exit 0
    fi
    if [ $# -lt "$minimum" ]; then
        echo "usage: bash $text" >&2
        exit 2
    fi
}

# run_protocol PROTOCOL OPTIONS...: one job through the protocol driver; $OUTPUT is the root of the output tree.
run_protocol() {
    "$(pick_python)" -m dassl_prompts.run "$1" --output "${OUTPUT:-output}" "${@:2}"
}

# Run a command for one of several datasets: a failure is noted and the next one is tried, an interruption (130) ends the script.
FAILED=()
attempt() {
    local name=$1 code=0
    shift
    "$@" || code=$?
    [ $code -ne 130 ] || exit 130
    [ $code -eq 0 ] || FAILED+=("$name")
}

# finish WHAT COUNT: list what attempt noted; ends the script, with 1 if anything failed.
finish() {
    if [ ${#FAILED[@]} -gt 0 ]; then
        echo "error: ${#FAILED[@]} of $2 $1 failed, what was said of each stands above: ${FAILED[*]}" >&2
        exit 1
    fi
    exit 0
}

# A Python of at least 3.10 to make the environment with.
base_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10 or newer found; set PYTHON=/path/to/python" >&2
    exit 1
}

# Create $VENV and install the project in it; does nothing when that is done for this folder and this setup.py.
set_up() {
    local stamp want
    stamp=$VENV/.installed
    want="$PROJECT $(cksum <"$PROJECT/setup.py")"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
        echo "== environment $VENV is ready"
    else
        echo "== creating $VENV and installing dassl-prompts with its dependencies (a few minutes, several GB with CUDA)"
        if [ -z "${TORCH_INDEX:-}" ] && ! command -v nvidia-smi >/dev/null; then
            echo "   no NVIDIA GPU is seen: torch for the CPU alone is several GB smaller, interrupt and start again with"
            echo "   TORCH_INDEX=https://download.pytorch.org/whl/cpu to have that one"
        fi
        "$(base_python)" -m venv "$VENV"
        "$VENV/bin/python" -m pip install --quiet --upgrade pip
        [ -z "${TORCH_INDEX:-}" ] || "$VENV/bin/python" -m pip install --quiet --index-url "$TORCH_INDEX" torch torchvision
        # one call: pip has to choose torch and torchvision together. The warning left out is setuptools' remark on every
        # editable installation; errors are printed.
        PYTHONWARNINGS="ignore:Editable installation" "$VENV/bin/python" -m pip install --quiet -e "$PROJECT[dev]"
        echo "$want" >"$stamp"
    fi
    PYTHON=$VENV/bin/python
    "$PYTHON" -m dassl_prompts.check
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    usage "scripts/lib.sh    nothing by itself: functions that the other scripts source" 1 "$@"
fi
