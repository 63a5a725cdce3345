# What a person types. Every target does its own set-up; `make` alone says what there is.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; \
	sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--require-hashes --no-deps --use-pep517
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help start devnet test check fix bench soak fuzz docs lock setup clean examples

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

start: $(VENV)/.runtime  ## a node on this machine; ARGS="--port 0" for example
	@$(BIN)/zerostate-node start $(ARGS)

devnet: $(VENV)/.runtime  ## a whole mesh on loopback
	@$(BIN)/zerostate-node devnet $(ARGS)

setup: $(VENV)/.dev  ## the virtual environment, with what tests and checks need

test: check  ## every check and every test
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy zerostate_node
	$(BIN)/lint-imports

fix: $(VENV)/.dev  ## format, and what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## our workload beside Celery and Redis, in one run
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev  ## write the generated documents anew
	$(BIN)/python -m zerostate_node.cli.docs

examples:  ## build the example agents from source
	$(MAKE) -C examples

lock: $(VENV)/.dev  ## resolve dependencies anew into the hash-pinned locks
	$(LOCK) --upgrade pyproject.toml -o requirements.lock
	$(LOCK) --upgrade --group dev pyproject.toml -c requirements.lock -o requirements-dev.lock
	$(LOCK) --upgrade --group build -c requirements-dev.lock -o requirements-build.lock

clean:  ## what can be made again
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Not bin/python: Python without its ensurepip leaves that behind, and no pip.
$(VENV)/bin/pip:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 to 3.13 with venv is needed"; \
		echo "hint: on Debian: apt-get install python3 python3-venv"; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON), once; this takes a minute"
	@$(PYTHON) -m venv --clear $(VENV)

# The package itself is a path entry: a checkout runs in place, nothing is built.
$(VENV)/.runtime: requirements.lock | $(VENV)/bin/pip
	@$(PIP_INSTALL) -r requirements.lock
	@$(BIN)/python tests/support/link_checkout.py
	@touch $@

# Stubs of an old trio come with libp2p's dependencies and shadow trio's own annotations.
$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@$(PIP_INSTALL) -r requirements-dev.lock
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $@
