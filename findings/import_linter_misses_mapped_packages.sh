#!/usr/bin/env bash
# import-linter keeps every contract about a sub-package that setuptools maps from elsewhere, because it never reads it.
#
# Versions: import-linter 2.17, grimp 3.20, setuptools 80.9.0.
# Expected: a project whose `package_dir` puts the folder plugins/ into the package as shop.plugins imports the same way
#   installed editable and from a wheel, so a contract gives one verdict for both.
# Seen: the editable project has "Analyzed 2 files, 0 dependencies" and both contracts are KEPT although shop.core and
#   shop.plugins.sale import each other; from a wheel the same files are "Analyzed 4 files, 2 dependencies", both BROKEN.
#   grimp asks the import system only for the top package and then walks that folder; Python itself imports shop.plugins
#   in both installations. Exit code and wording of the editable run are those of a clean project.
# So: show import-linter the tree as a wheel has it (a folder of symbolic links is followed), as scripts/lint.sh does.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install -q setuptools==80.9.0 wheel==0.45.1 import-linter==2.17 grimp==3.20 2>/dev/null

mkdir -p "$here/project/shop" "$here/project/plugins"
cd "$here/project"
touch shop/__init__.py plugins/__init__.py
echo 'import shop.plugins.sale' >shop/core.py
echo 'import shop.core' >plugins/sale.py
cat >setup.py <<'PYTHON'
from setuptools import setup

setup(name="shop", version="1", packages=["shop", "shop.plugins"], package_dir={"shop.plugins": "plugins"})
PYTHON
cat >.importlinter <<'INI'
[importlinter]
root_package = shop
[importlinter:contract:circles]
name = no circles
type = acyclic_siblings
ancestors =
    shop
[importlinter:contract:floors]
name = core stays below plugins
type = layers
containers = shop
layers =
    (plugins)
    core
INI

verdict() { # the count of files and the verdicts of lint-imports, run in the current folder
    "$here/env/bin/lint-imports" --no-logo --no-cache | grep -E '^Analyzed|KEPT|BROKEN' || true
}

"$here/env/bin/pip" install -q --no-build-isolation -e . 2>/dev/null
"$here/env/bin/python" -c 'import shop.core, shop.plugins.sale'
editable=$(verdict)
"$here/env/bin/pip" uninstall -qy shop
"$here/env/bin/pip" install -q --no-build-isolation . 2>/dev/null
mkdir "$here/elsewhere" && cp .importlinter "$here/elsewhere" && cd "$here/elsewhere"
wheel=$(verdict)

printf 'editable:\n%s\nwheel:\n%s\n' "$editable" "$wheel"
[ "$(grep -c KEPT <<<"$editable")" = 2 ] && grep -q 'Analyzed 2 files, 0 dependencies' <<<"$editable"
[ "$(grep -c BROKEN <<<"$wheel")" = 2 ] && grep -q 'Analyzed 4 files, 2 dependencies' <<<"$wheel"
echo "as described"
