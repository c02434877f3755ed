# Every target that needs Python first creates the virtual environment in .venv by itself.
# Another Python: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2
QUICK ?= 0
LINES ?= build/bench.jsonl

BIN := .venv/bin
READY := .venv/.ready
SCRIPTS := $(wildcard benchmarks/*.py data_scripts/*.py)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow check fix bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## the whole story on drawn data, in minutes, on a CPU
	$(BIN)/geonorm demo demo/
	@for page in demo/*.html; do [ ! -e "$$page" ] || echo "The report lies in $(CURDIR)/$$page"; done

# One thread a worker: two workers of two threads on two cores were 20 to 30 times slower (docs/decisions.md).
test: $(READY)  ## the quick tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m "not slow"

# pytest exits with 5 where no test was selected.
test-slow: $(READY)  ## the tests marked slow
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) -m slow || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo "No test is marked slow."; }

check: $(READY)  ## format, lint, types and the import order
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy geonorm tests $(SCRIPTS)
	$(BIN)/pytest -q tests/test_layers.py

fix: $(READY)  ## repair format and lint in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A look in minutes: make bench QUICK=1. The JSON lines elsewhere: make bench LINES=FILE
bench: $(READY)  ## every benchmark, as one table; its JSON lines go to build/bench.jsonl
	@$(BIN)/python benchmarks/_table.py --lines $(LINES) $(if $(filter-out 0,$(QUICK)),--quick)

clean:  ## remove caches, build output and demo/ (.venv and trained networks stay)
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage demo
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Messages go to stderr, so that the output of `make bench` stays a table.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "geonorm needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing geonorm into .venv (once; torch is large, this takes some minutes)" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q -c constraints.txt -e ".[dev]" >&2
	@touch $@
