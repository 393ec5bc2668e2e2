# make demo | make test | make check; `make setup` is their common first step.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup setup-dev demo test test-fast check

setup: .venv/base
setup-dev: .venv/dev

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0 -e .
	touch $@

.venv/dev: .venv/base
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0 -e '.[dev,openvino,ray,view]'
	touch $@

demo: setup
	$(BIN)/fastdraft run recipes/demo.yaml

test: setup-dev check
	$(BIN)/python -m pytest -m "not slow" -q
	$(BIN)/python -m pytest -m slow -q

test-fast: setup-dev
	$(BIN)/python -m pytest -m "not slow" -q

check: setup-dev
	$(BIN)/ruff format --check -q src tests
	$(BIN)/ruff check -q src tests
	$(BIN)/mypy src
