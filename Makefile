# make quickstart   the whole method on a real model and real data: prepares .venv, then runs it
# make test         prepares .venv, then the test suite
# make setup        prepares .venv only
# make lint         ruff, mypy --strict, direction of imports
# make site         the pages of docs/ as a site, in build/site
# make audit        known vulnerabilities of the pinned packages, and their bill of materials in build/bmtpt.cdx.json
# make clean        removes .venv and what tools left; trained artifacts stay

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup quickstart test lint site audit clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

setup: $(STAMP)

quickstart: setup
	$(BIN)/bmtpt quickstart

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

site: setup
	$(BIN)/zensical build --clean --strict

# Needs pypi.org. --strict: without it, packages that cannot be looked up are skipped in silence.
audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install -q pip-audit==2.10.1 cyclonedx-bom==7.5.0
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt
	build/audit/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml --output-file build/bmtpt.cdx.json

# pip is used where it has settings of its own (an index, a folder of wheels, constraints), which uv would not read;
# elsewhere uv if it is on PATH. UV= (empty) and UV=uv overrule that.
PIP_SETTINGS := $(shell $(PYTHON) -m pip config list 2>/dev/null | grep -E 'index|find-links|constraint|proxy')
UV ?= $(if $(PIP_SETTINGS),,$(shell command -v uv))
INSTALL = $(if $(UV),VIRTUAL_ENV=$(abspath $(VENV)) $(UV) pip install,$(BIN)/python -m pip install)
OWN_CONSTRAINT := $(shell $(PYTHON) -m pip config list 2>/dev/null | sed -n "s/.*\.constraint='\(.*\)'/\1/p")

# The stamp is written last, so an interrupted installation is taken up again.
# PIP_CONSTRAINT (pip < 25.3), PIP_BUILD_CONSTRAINT (newer) and UV_BUILD_CONSTRAINT pin the build tools too, which -c
# alone does not reach. What pip was constrained to before stays in force.
$(STAMP): pyproject.toml constraints.txt requirements-offline.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bmtpt needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT='$(strip constraints.txt $(OWN_CONSTRAINT))' PIP_BUILD_CONSTRAINT=constraints.txt UV_BUILD_CONSTRAINT=constraints.txt \
	  $(INSTALL) -c constraints.txt -e '.[offline,peft,serve,dev]'
	$(INSTALL) --no-deps --require-hashes -r requirements-offline.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
