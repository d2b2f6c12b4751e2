# Needs Python >= 3.11 and make; everything else is installed into .venv by these targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PAGES := tests/migrations/test_schema_page.py tests/services/ops/test_permissions.py \
	tests/db/test_errors_page.py tests/services/cli/test_options_page.py
PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal
.DEFAULT_GOAL := help
.PHONY: help demo test lint types layers docs pages bench prove wheel clean

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.run ## Import, embed, search and validate the samples on the embedded server
	@$(BIN)/pgcorpus demo

test: lint types layers ## Everything CI runs: lint, types, layers, schema drift, tests
	$(BIN)/python -m pytest $(PARALLEL)
	@$(BIN)/python -m tests.pooler $(PARALLEL)

lint: $(VENV)/.dev ## ruff, all rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.dev ## The direction of imports
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## The site of the documentation, into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "read it: site/index.html"

pages: $(VENV)/.dev ## Write the generated pages of the reference anew: schema, permissions, errors, options
	PAGES=write $(BIN)/python -m pytest --quiet $(PAGES)

bench: $(VENV)/.dev ## Searches and loads, measured beside floors of PostgreSQL and two peers
	@$(BIN)/python -m tests.benchmarks

prove: $(VENV)/.dev ## Promises at full size: workers killed, server restarted, long exports imported
	@$(BIN)/python -m tests.prove

wheel: $(VENV)/.dev ## The package for installation elsewhere, into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## Stop the embedded server, delete it and the virtual environment
	@test ! -x $(BIN)/pgcorpus || $(BIN)/pgcorpus server destroy --yes
	rm -rf $(VENV)
