# What a person types. `make help` lists it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Where it is set, each of the hundreds of processes that the tests start compiles all of our code anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help run test check lint bench bench-listing bench-page bench-feed screenshots faults kafka lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-14s %s\n", $$1, $$2}'

$(VENV)/.run: requirements.lock pyproject.toml
	@echo "Setting up $(VENV) (about a minute, once) ..."
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/.run ## set up and serve everything on 127.0.0.1:8000, with demo data
	@$(BIN)/conversas run

test: $(VENV)/.dev ## every test, on a real PostgreSQL and a real Kafka
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder --timeout 300

lint: $(VENV)/.dev ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test ## exactly what CI runs

bench: $(VENV)/.dev ## speed as ratios, in one run
	$(BIN)/python -m benchmarks

bench-listing: $(VENV)/.dev ## every filter of the listing at 100,000 and 1,000,000 conversations (a quarter of an hour)
	$(BIN)/python -m benchmarks listing

bench-page: $(VENV)/.dev ## the pages in Chromium, against the API behind them (a quarter of an hour)
	$(BIN)/python -m benchmarks page

bench-feed: $(VENV)/.dev ## the feed: throughput, latency and catch-up, in one run
	$(BIN)/python -m benchmarks feed

screenshots: $(VENV)/.dev ## each page anew into docs/screenshots, to be looked at
	$(BIN)/pytest tests/browser/screenshots.py

faults: $(VENV)/.dev ## the long fault campaigns (bounded)
	CONVERSAS_CAMPAIGN=1 $(BIN)/pytest -m faults

kafka: $(VENV)/.run ## a local Apache Kafka on 127.0.0.1:9092, for a person to use
	@$(BIN)/conversas kafka

lock: $(VENV)/.dev ## make the lock files anew from pyproject.toml
	$(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header -o requirements-dev.lock

clean: ## throw away the virtual environment and all local data
	rm -rf $(VENV) .data
