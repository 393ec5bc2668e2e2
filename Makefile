# make demo | make llm | make test | make test-engines | make check | make docs; `make setup` is their common first step.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check -q -c constraints.txt torch==2.13.0
# Debian's, for tests in a real browser.
CHROMIUM := command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }
# Comes as source. Compiled without the library for pictures and without llama.cpp's common library: nothing here uses
# them. Not for this very processor: on a virtual Xeon with AMX such a build ended the process at the first product of q8_0
# weights. On x86 GGML_NATIVE=OFF means AVX2, FMA, F16C and BMI2.
LLAMA_CPP := CMAKE_ARGS='-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF \
	-DCMAKE_PROJECT_llama_cpp_INCLUDE="$(CURDIR)/.ci/llama-cpp.cmake"' $(INSTALL) -e '.[llamacpp]'
# Two workers for each core, with one thread each: many tests wait for processes, the others multiply small matrices. Each
# worker takes 2 GiB, so there are at most eight.
WORKERS := $(shell $(PYTHON) -c "import os; print(min(2 * os.cpu_count(), 8))")
PYTEST := -m pytest -q -n $(WORKERS) --dist worksteal --durations 30
test test-fast test-newest test-lowest: export OMP_NUM_THREADS = 1

.PHONY: setup setup-dev setup-engines demo llm test test-fast test-engines test-newest test-lowest check docs

setup: .venv/base
setup-dev: .venv/dev
setup-engines: .venv/engines

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/dev: .venv/base
	$(INSTALL) -e '.[dev,docs,openvino,play,ray,report,view]'
	$(CHROMIUM) || echo 'no chromium: the tests that need a browser will be skipped'
	touch $@

.venv/engines: .venv/dev
	$(LLAMA_CPP)
	touch $@

demo: setup
	$(BIN)/fastdraft run recipes/demo.yaml

# A real LLM of 135M parameters, fetched once, and its packaged draft: what each way of decoding reaches on this machine.
llm: setup
	$(INSTALL) -e '.[openvino]'
	$(BIN)/fastdraft bench smollm2 smollm2 --prompts 2 --tokens 48 --repeats 2 --gammas 2-4 --temperature 0
	@echo 'To chat with it: .venv/bin/pip install -e ".[play]", then .venv/bin/fastdraft play smollm2 --engine openvino'

test: setup-dev check
	$(BIN)/python $(PYTEST) -m "not engine"

test-fast: setup-dev
	$(BIN)/python $(PYTEST) -m "not slow and not engine"

# One thread each: on a busy machine two threads took six times as long for a proof (dev/LOG.md, 2026-11-30).
test-engines: setup-engines
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engine --engines llama_cpp -n 2 -q

# The fast tests with the newest release of everything (without OpenVINO, which asks for an older transformers), and with
# the oldest that pyproject.toml allows: docs/decisions/0009-versions.md.
test-newest: .venv-newest/dev
	.venv-newest/bin/python $(PYTEST) -m "not slow and not engine"

test-lowest: .venv-lowest/dev
	.venv-lowest/bin/python $(PYTEST) -m "not slow and not engine"

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
	$(BIN)/ruff format --check -q src tests benchmarks examples dev
	$(BIN)/ruff check -q src tests benchmarks examples dev
	$(BIN)/mypy src benchmarks examples

# The two pages that are printed from the code, and the site, in site/.
docs: setup-dev
	$(BIN)/python -m typer fastdraft.cli utils docs --name fastdraft --title "Every command" --output docs/commands.md
	$(BIN)/fastdraft recipe schema --markdown > docs/recipe.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict
