# `make help` lists the targets. Python >= 3.11, make and git are all that is needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_PORT ?= 3000
export DAGSTER_HOME ?= $(CURDIR)/dagster_home

.PHONY: help setup demo demo-ui dev test check format dictionary constraints bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## the virtual environment .venv, with pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[postgres,s3]' --group dev
	@touch $@

demo: setup ## everything once, on made-up people: simulator, 14 days, warehouse, report
	$(BIN)/kyc-pipeline demo

demo-ui: setup ## the Dagster UI over the demo's data
	$(BIN)/kyc-pipeline demo --ui --port $(DEV_PORT)

dev: setup ## Dagster's webserver and daemon on 127.0.0.1:3000
	$(BIN)/dg dev --host 127.0.0.1 --port $(DEV_PORT)

test: setup ## the whole test suite; installs a browser where there is none
	$(BIN)/python -m tests.e2e.browser
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: setup ## lint (Python and SQL), format, types, import rules, dependencies, data dictionary, definitions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint sql
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry kyc_pipeline
	$(BIN)/python -m kyc_pipeline.analyze.dictionary --check docs/data-dictionary.md
	$(BIN)/dg check defs

format: setup ## format Python and SQL
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix sql

dictionary: setup ## write docs/data-dictionary.md from lake/tables.py and sql/
	$(BIN)/python -m kyc_pipeline.analyze.dictionary docs/data-dictionary.md

constraints: ## resolve constraints.txt again (needs uv)
	uv pip compile --universal --python-version 3.11 --all-extras --group dev --group bench --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --upgrade pyproject.toml constraints.in --output-file constraints.txt

bench: setup ## the benchmarks beside their peers; writes bench/results.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group bench
	$(BIN)/python bench/run.py

clean: ## remove the virtual environment and the demo's data
	rm -rf $(VENV) demo build dist
