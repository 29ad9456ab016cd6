# demo · test · test-slow · check · lint · docs · faults · bench · wheel-check: each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test test-fast test-slow check lint docs faults bench wheel-check clean

demo: $(INSTALLED)
	$(BIN)/rayscope demo

# All tests that are not marked slow.
test test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow"

# The others: they train for long, start processes or kill them. A quarter of an hour on two cores.
test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: lint docs test test-slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Into build/site, without a network.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Kills at file operations, and broken inputs: both tables, into docs/faults.md. Half an hour on two cores.
faults: $(INSTALLED)
	$(BIN)/python tests/faults

# Every part; the peers' environments are installed where they are not there yet. One part: rayscope benchmark step
bench: $(INSTALLED)
	$(BIN)/rayscope benchmark

# A wheel in a clean environment, run outside the repository.
wheel-check: $(INSTALLED)
	scripts/wheel_check.sh

# torch first and by its exact version: with it in place pip has no reason to fetch another build.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev]
	touch $@

clean:
	rm -rf .venv build dist runs multirun
