# make demo | make test | make check | make docs; `make setup` is their common first step.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
# Debian's, for tests in a real browser.
CHROMIUM := command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }
# Comes as source: six minutes of one core, without the library for pictures, which nothing here uses, and for any x86: on a
# virtual Xeon with AMX the build for that very processor ended the process at the first product of q8_0 weights.
LLAMA_CPP := CMAKE_ARGS='-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF' $(INSTALL) -e '.[llamacpp]'

.PHONY: setup setup-dev demo test test-fast test-newest test-lowest check docs

setup: .venv/base
setup-dev: .venv/dev

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/dev: .venv/base
	$(INSTALL) -e '.[dev,docs,openvino,play,ray,report,view]'
	# optimum-intel asks for torchvision, which package indexes hold for torch with CUDA: where torch has none, importing it
	# fails, and with it every model of transformers.
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/pip uninstall -q -y torchvision
	if command -v c++ >/dev/null; then $(LLAMA_CPP); else echo 'no C++ compiler: the tests of llama.cpp will be skipped'; fi
	$(CHROMIUM) || echo 'no chromium: the tests that need a browser will be skipped'
	touch $@

demo: setup
	$(BIN)/fastdraft run recipes/demo.yaml

test: setup-dev check
	$(BIN)/python -m pytest -m "not slow" -q
	$(BIN)/python -m pytest -m slow -q

test-fast: setup-dev
	$(BIN)/python -m pytest -m "not slow" -q

# The fast tests with the newest release of everything (without OpenVINO, which asks for an older transformers), and with
# the oldest that pyproject.toml allows: docs/decisions/0009-versions.md.
test-newest: .venv-newest/dev
	.venv-newest/bin/python -m pytest -m "not slow" -q -n auto

test-lowest: .venv-lowest/dev
	.venv-lowest/bin/python -m pytest -m "not slow" -q -n auto

.venv-newest/dev: pyproject.toml
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --disable-pip-version-check -q --upgrade --upgrade-strategy eager torch==2.13.0 \
		-e '.[dev,docs,play,ray,report,view]'
	touch $@

.venv-lowest/dev: pyproject.toml dev/lowest.py
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) dev/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --disable-pip-version-check -q -c .venv-lowest/constraints.txt torch==2.13.0 -e '.[dev]'
	touch $@

check: setup-dev
	$(BIN)/ruff format --check -q src tests
	$(BIN)/ruff check -q src tests
	$(BIN)/mypy src

# The two pages that are printed from the code, and the site, in site/.
docs: setup-dev
	$(BIN)/python -m typer fastdraft.cli utils docs --name fastdraft --title "Every command" --output docs/commands.md
	$(BIN)/fastdraft recipe schema --markdown > docs/recipe.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict
