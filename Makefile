# Everything is installed in .venv, in the versions that constraints.txt pins; nothing outside the checkout changes.

PYTHON ?= python3
ARGS ?=
# Processes that run the tests side by side, each with databases of its own; 0: none but pytest's.
WORKERS ?= 0

VENV := .venv
BIN := $(VENV)/bin
# A stamp says that .venv holds what pyproject.toml and the pins ask for: to serve, or to work on the project.
SERVE := $(VENV)/serve.stamp
DEVELOP := $(VENV)/develop.stamp

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The build backend is pinned too; older releases of pip know it by the first name, newer ones by the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint format bench screenshots hooks pins clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo 'Arguments: make test ARGS="-k replay", make run ARGS="--port 3100". Another Python: PYTHON=python3.13'

run: $(SERVE) ## Serve the bus alone on 127.0.0.1:3000, on SQLite unless EVENTBUS_DATABASE_URL says otherwise
	@$(BIN)/eventbus serve $(ARGS)

test: $(DEVELOP) ## Run the tests (PostgreSQL comes along; MySQL where EVENTBUS_TEST_MYSQL_URL is set)
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

lint: $(DEVELOP) ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEVELOP) ## Put the code in the form that lint expects
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEVELOP) ## Measure, each figure as a ratio to a limit of the same run
	$(BIN)/python -m benchmarks $(ARGS)

screenshots: $(DEVELOP) ## Take the pictures of docs/dashboard.md anew, with the Chromium that is installed
	$(BIN)/python -m tests.browser.screenshots $(ARGS)

docs: $(DEVELOP) ## Build the documentation in ./site; ARGS=serve shows it while you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(ARGS),$(ARGS),build --quiet)

hooks: $(DEVELOP) ## Run lint before each commit
	$(BIN)/pre-commit install

# Neither a header nor an index: the pins hold for every platform, and name nobody's registry.
pins: $(DEVELOP) ## Pin the newest versions that pyproject.toml allows
	PIP_CONSTRAINT= $(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group dev --group docs \
		--annotation-style line --no-emit-index-url --no-header --output-file constraints.txt pyproject.toml

clean: ## Remove .venv and whatever the tools left
	rm -rf $(VENV) build dist site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SERVE): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[server,cli,dashboard]'
	@touch $@

$(DEVELOP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --requirement constraints.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $(SERVE) $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed; $(PYTHON) is not. Name one: make $(MAKECMDGOALS) PYTHON=python3.12' >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo '$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv' >&2; \
		exit 1; }
