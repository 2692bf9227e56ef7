# Everything runs in .venv, which `make install` makes; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_OUT ?= runs/digits

# The first Python that is here, works and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)

.PHONY: help install extras demo test lint types bench docs clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## make .venv and install hwnas with its tested dependencies, once

# Redone where the packages asked for have changed. The stamp comes last: a broken install is redone.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "hwnas needs Python 3.11, 3.12 or 3.13: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

extras: install ## add OpenVINO and TensorRT for RTX, so that the tests run them too (150 MB, no GPU needed)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"openvino>=2025.0" "tensorrt-rtx>=1.4"

demo: install ## go from this machine to a verified engine on handwritten digits
	$(BIN)/hwnas run examples/digits.toml --out $(DEMO_OUT)

# Two processes, of one thread each, as their tests' networks are small; what measures time runs
# after them, alone. docs/decisions/0041-tests-in-two-processes.md
test: lint types ## all checks: lint, types, import contracts, tests with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/pytest --doctest-modules -n 2 --dist loadgroup -m "not serial" \
		--cov --cov-report= --cov-fail-under=0 hwnas profilers export tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m serial --cov --cov-append tests

lint: install ## style, format and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install ## mypy, strict
	$(BIN)/mypy

bench: install ## run the benchmarks that need no data of yours; results go to benchmarks/results
	@set -e; for script in benchmarks/[a-z]*.py benchmarks/latency/[a-z]*.py \
		benchmarks/robustness/objective_cost.py benchmarks/deploy/engine_speed.py benchmarks/cifar10/throughput.py \
		$(filter-out benchmarks/search/modelopt%,$(wildcard benchmarks/search/[a-z]*.py)); do \
		echo "== $$script"; $(BIN)/python "$$script"; done

docs: install ## write the command line reference and the schema of latency tables again
	$(BIN)/python -m hwnas.cli.reference docs/cli.md
	$(BIN)/python -m hwnas_profilers.table_schema latency_tables/schema.json

clean: ## remove caches, builds and .venv; runs/ is kept
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f .coverage .coverage.*
	find hwnas profilers export tests -name __pycache__ -type d -prune -exec rm -rf {} +
