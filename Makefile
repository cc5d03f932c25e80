# Every target sets itself up: a virtual environment in .venv, installed once per change of setup.cfg or constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(STAMP): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1): make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	@touch $@

demo: $(STAMP)  ## train, compare and picture DenoiSeg on real data, in minutes, on the CPU
	$(BIN)/labelfx demo denoiseg --out runs/demo/denoiseg

test: $(STAMP)  ## the test suite without its full matrices
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## the whole test suite
	$(PYTEST)

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## the documentation, warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

bench: $(STAMP)  ## speed ratios and quality tables into runs/bench
	$(BIN)/python benchmarks/run_all.py --out runs/bench

clean:  ## remove the virtual environment and all runs
	rm -rf .venv runs docs/_build
