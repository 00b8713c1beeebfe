#!/usr/bin/env bash
# Style and structure: ruff (ruff.toml) and the floors of the house (.importlinter).
source "$(dirname "$0")/lib.sh"
usage "scripts/lint.sh    ruff and import-linter over the whole repository; ruff's fixes: ruff check --fix . && ruff format ." 0 "$@"
cd "$PROJECT"
PYTHON=$(pick_python)
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# import-linter looks for a package's files below its folder, and trainers/, datasets/ and configs/ lie beside it here:
# it is shown the package as an installation has it.
view=$(mktemp -d)
trap 'rm -rf "$view"' EXIT
mkdir "$view/dassl_prompts"
ln -s "$PROJECT"/dassl_prompts/* "$PROJECT"/{trainers,datasets,configs} "$view/dassl_prompts/"
cd "$view"
"$PYTHON" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()' --no-logo --no-cache "$PROJECT/.importlinter"
