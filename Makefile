# Every target makes its own set-up: a virtual environment in .venv, once. Needs python3 (3.11 or newer) and pip.
#   make demo      one federated run on the embedded benchmark
#   make test      all tests but the slow ones and those on real data
# Variables: VENV (the environment's folder), PYTHON, PYTEST_ARGS, DEMO (arguments of `pfl-platform run`),
# DATA (folder of the real data slices), TORCH and TORCH_INDEX (see tools/bootstrap.py).

PYTHON ?= python3
VENV ?= .venv
DATA ?= ../shared/data
DEMO ?= --plugin fedmosaic --recipe demo
PYTEST_ARGS ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := $(VENV)/bin
READY := $(VENV)/.pfl-platform-ready
# Two tests at a time, each on one thread; which stay together: tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
export PFL_DATA = $(DATA)

.PHONY: help setup demo test lint format ranks realdata slow perf clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A new entry point or a new version is an installation, too.
$(READY): pyproject.toml constraints.txt tools/bootstrap.py
	@$(PYTHON) tools/bootstrap.py $(VENV)
	@touch $@

setup: $(READY)  ## the virtual environment only

demo: $(READY)  ## FedMosaic on the embedded benchmark: ten clients, four backbones, two minutes
	@$(BIN)/pfl-platform run $(DEMO)

test: $(READY)  ## the tests (not slow, not realdata)
	@$(PYTEST) -m "not slow and not realdata" $(PYTEST_ARGS)

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## ruff's formatting
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

ranks: $(READY)  ## every method at two ranks and in one process: the same bits
	@OMP_NUM_THREADS=1 $(BIN)/python -m pfl_platform.testing.ranks --backbones tiny-llama-s,tiny-llama-m --set backbone_options.init=0 --set engine.zero=2

realdata: $(READY)  ## the tests on real data slices in DATA
	@$(PYTEST) -m "realdata and not slow" $(PYTEST_ARGS)

slow: $(READY)  ## the slow tests
	@$(PYTEST) -m slow $(PYTEST_ARGS)

perf: $(READY)  ## the platform against a hand-written loop
	@for script in tools/perf/*.py; do $(BIN)/python "$$script"; done

clean:  ## removes the environment and caches; runs are kept
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find platform plugins benchmarks model_zoo tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
