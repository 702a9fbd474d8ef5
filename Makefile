# One command each; `make help` lists them. Everything needed is installed into
# .venv, made on first use, from any Python 3.10 or later: make PYTHON=python3.12 test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture check lint format docs night soak bench bench-quick bench-report fleet sizing mutants wheel clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.installed ## make the environment (.venv) with everything the demo and the tests need

demo: setup ## record a week of usage offline, deliver it over a crash, and prove that each event arrived once
	$(BIN)/meter-lib demo --from-file tests/data/week.jsonl

test: setup ## run the tests
	$(BIN)/pytest -q -n 2 $(ARGS)

torture: setup ## the tests of durability, twelve times as long: some ten minutes
	TORTURE_FACTOR=12 $(BIN)/pytest -q -n 2 tests/durability $(ARGS)

check: lint test ## formatting, lint, types, layers, then the tests

lint: $(VENV)/.installed-dev ## formatting, lint, types and layers alone
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## write anew what is made from the code, and the outputs that docs/ shows, where they have changed
	$(BIN)/python -m meter_worker.verdict_page > docs/verdicts.md
	$(BIN)/python -m meter_worker.reason_page > docs/dead-letters.md
	$(BIN)/python -m meter_worker.log_page > docs/logs.md
	$(BIN)/python -m meter_worker.cli.command_page > docs/commands.md
	$(BIN)/python -m tests.docs

night: setup ## play docs/a-night.md: three days of outage, 50,000 events, a bad deploy, a replay
	$(BIN)/python -m tests.docs --all docs/a-night.md

soak: setup ## simulate delivery in the worst network until interrupted, or for SECONDS=…
	$(BIN)/python -m tests.simulation $(if $(SECONDS),--seconds $(SECONDS))

bench: setup ## measure all targets as ratios to plain SQLite and plain HTTP, other queues beside them: some ten minutes
	$(BIN)/python bench/bench.py $(ARGS)

bench-quick: setup ## compare the working tree with main, pair by pair, in a minute
	$(BIN)/python bench/quick.py $(ARGS)

bench-report: $(VENV)/.installed-bench ## write docs/performance.md and its plots from what `make bench` measured
	$(BIN)/python bench/report.py $(ARGS)

fleet: $(VENV)/.installed-bench ## play how a fleet comes back after outages, and write docs/fleet.md and its plots: some minutes
	$(BIN)/python bench/fleet.py $(ARGS)
	$(BIN)/python bench/fleet_report.py

sizing: setup ## measure what an event costs, and write the tables of docs/sizing.md
	$(BIN)/python bench/sizing.py $(ARGS)

mutants: setup ## break the product on purpose in every way we know, and see that a test notices
	$(BIN)/python tests/mutants/run.py $(ARGS)

wheel: setup ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## remove what the other commands made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo "$(PYTHON) cannot be run: install Python 3.10 or later, or name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version): meter-lib needs 3.10 or later; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module (on Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[broker]' || \
	  echo "no Kafka client or broker to be had for this machine: tests/kafka will be skipped" >&2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@
