# make quickstart   the whole method on a real model and real data: prepares .venv, then runs it
# make test         prepares .venv, then the test suite
# make setup        only prepares .venv
# make lint         ruff, mypy --strict, direction of imports
# make clean        removes .venv and everything that tools left behind; trained artifacts stay

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup quickstart test lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

quickstart: setup
	$(BIN)/bmtpt quickstart

test: setup
	$(BIN)/python -m pytest $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamp is written last, so an interrupted installation is taken up again.
# PIP_CONSTRAINT (pip < 25.3) and PIP_BUILD_CONSTRAINT (newer) pin the build tools too; -c alone does not reach them.
$(STAMP): pyproject.toml constraints.txt requirements-offline.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bmtpt needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	  $(BIN)/python -m pip install -c constraints.txt -e '.[offline,peft,dev]'
	$(BIN)/python -m pip install --no-deps --require-hashes -r requirements-offline.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
