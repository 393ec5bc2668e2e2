#!/usr/bin/env bash
# bash dev/restructure/apply.sh CHECKOUT: the new layout, then the new names, as two commits in that clean checkout.
# Copy this folder out of the checkout first: the commits do not need it, and the second removes it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cd "$1"
export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1
python3 "$here/move.py" .
git add -A && git commit -qm "Move every module to the new layout"
python3 "$here/rename.py" .
git rm -rqf dev/restructure
.venv/bin/python -m fastdraft recipe schema --markdown > "$here/recipe.md" && mv "$here/recipe.md" docs/recipe.md
.venv/bin/python -m typer fastdraft.cli utils docs --name fastdraft --title "Every command" --output docs/commands.md
.venv/bin/ruff format -q src tests benchmarks dev
git add -A && git commit -qm "Rename identifiers, recipe keys and options by the glossary"
.venv/bin/ruff check src tests benchmarks --output-format concise || true
echo "then: FASTDRAFT_GOLDEN=write .venv/bin/python -m pytest tests/test_golden.py; make check; make test"
