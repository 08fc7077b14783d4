# `make demo` and `make test` are all a fresh clone needs: both set up .venv first.
# Another interpreter: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c "" 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.installed-docs
JOBS ?= 2
ARGS ?=

# One thread a process: the tests run side by side, and results don't depend on the machine's cores.
export OMP_NUM_THREADS ?= 1
PYTEST := $(BIN)/python -m pytest

.PHONY: help install install-docs demo test test-slow test-arviz1 test-pyro lint format types imports examples \
        doctest docs check clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "'$(PYTHON)' is not Python 3.10 or newer. Say: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

install: $(INSTALLED)  ## set up .venv with the package and its tools

install-docs: $(DOCS_INSTALLED)  ## add what the documentation is built with

demo: $(INSTALLED)  ## fit eight schools: prints the verdict and a table, writes model, data and the page of the fit
	$(BIN)/pyro-flows demo

test: $(INSTALLED)  ## the tests, without the slow ones
	$(PYTEST) -n $(JOBS) $(ARGS)

test-slow: $(INSTALLED)  ## the slow tests
	$(PYTEST) -n $(JOBS) -m slow $(ARGS)

test-arviz1: $(INSTALLED)  ## diagnostics against ArviZ 1.x, on Python 3.12 or newer
	bash tests/run_arviz1.sh

test-pyro: $(INSTALLED)  ## Pyro's own tests on our guides and layers: make test-pyro PYRO=path/to/pyro
	@test -n "$(PYRO)" || { echo "Say where Pyro's repository is: make test-pyro PYRO=path/to/pyro"; exit 1; }
	$(BIN)/python tests/pyro_conformance/run.py $(PYRO)

lint: $(INSTALLED)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)  ## mypy, strict
	$(BIN)/mypy

imports: $(INSTALLED)  ## the directions of imports between rooms
	$(BIN)/lint-imports

examples: $(INSTALLED)  ## every example, with tiny settings
	@set -e; for example in examples/*.py; do \
	  flags="--num-steps 5"; \
	  case $$example in *radon*) flags="$$flags --synthetic";; esac; \
	  echo "== $$example $$flags"; \
	  MPLBACKEND=Agg $(BIN)/python $$example $$flags; \
	done

doctest: $(INSTALLED)  ## the examples in docstrings
	$(PYTEST) --doctest-modules pyro_flows $(ARGS)

docs: $(DOCS_INSTALLED)  ## run and build the documentation, warnings as errors, to docs/_build/html
	$(BIN)/python -m sphinx -j $(JOBS) -q -W --keep-going -b html docs docs/_build/html

check: lint types imports test examples  ## what to run before a commit

clean:  ## remove what the tools left, but not .venv
	rm -rf build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
