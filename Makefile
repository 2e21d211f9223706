# Two commands are all a newcomer needs: `make demo` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
DATA   ?= var
PORT   ?= 8000

BIN       := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODULES   := frontend/node_modules/.installed
BUILT     := frontend/dist/index.html
SOURCES   := $(shell find frontend/src frontend/public frontend/index.html frontend/vite.config.ts -type f 2>/dev/null)

.PHONY: help demo test test-fast lint format dev pictures doctor bench peers frontend schema upgrade clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

demo: $(INSTALLED) $(BUILT) ## Set everything up, run the main job on a real model, serve it (EXIT=1: stop afterwards)
	@$(BIN)/python -m workbench.launch demo --data-dir $(DATA) --port $(PORT) $(if $(EXIT),--exit)

test: ## Set everything up and run all tests
	@# Two at a time, for a machine with two processors. What fails ends it.
	@$(MAKE) --no-print-directory -j 2 ready checked
	@$(MAKE) --no-print-directory -j 2 tested-without tested-with-servers

.PHONY: ready programs checked checked-python checked-frontend tested-without tested-with-servers

ready: $(INSTALLED) $(BUILT) .venv-peers/.installed programs

programs:
	@sh scripts/ensure_chromium.sh
	@sh scripts/ensure_nginx.sh

checked: checked-python checked-frontend

checked-python: $(INSTALLED)
	@$(BIN)/lint-imports
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .
	@$(BIN)/mypy apps workbench worker microscope

checked-frontend: $(MODULES)
	@cd frontend && npm run --silent lint && npm run --silent typecheck && npm test --silent

tested-without:
	@$(BIN)/pytest -m "not servers and not e2e and not model" --durations 15

# One test after the other: they share one portal, and their time limits reckon with half the machine.
tested-with-servers:
	@$(BIN)/pytest -m "servers or e2e or model" --durations 15
	@$(BIN)/python -m tests.postgres

test-fast: $(INSTALLED) ## Only the tests that start no servers
	@$(BIN)/pytest -n 2 --dist loadgroup -m "not servers and not e2e and not model"

lint: checked-python $(MODULES) ## What the tests check of style, types and structure
	@cd frontend && npm run --silent lint && npm run --silent typecheck

format: $(INSTALLED) ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

dev: $(INSTALLED) $(MODULES) ## All servers with their logs in this terminal, and the front end reloading on port 5173
	@$(BIN)/python -m workbench.launch dev --data-dir $(DATA) --port $(PORT)

pictures: $(INSTALLED) $(BUILT) ## Take the pictures of README and docs from the demo, light and dark
	@sh scripts/ensure_chromium.sh
	@$(BIN)/python -m workbench.launch pictures --data-dir $(DATA) --port $(PORT)

doctor: $(INSTALLED) ## Say what is missing or wrong on this machine
	@$(BIN)/microscope doctor

bench: $(INSTALLED) peers ## Measure speed against peers and floors, write docs/benchmarks.md and draw its chart
	@$(BIN)/python -m benchmarks --data $(DATA)/benchmarks --write docs/benchmarks.md

peers: .venv-peers/.installed .venv-nnsight/.installed ## Install the peer packages for tests and benchmarks, in environments of their own

frontend: $(BUILT) ## Build the browser application

schema: $(INSTALLED) $(MODULES) ## Regenerate what is generated from code: schemas, the front end's types, references in docs/
	@$(BIN)/python manage.py write_schemas
	@$(BIN)/python -m microscope.cli.reference > docs/cli.md
	@$(BIN)/python -m tests.families.table > docs/models.md
	@cd frontend && npm run --silent types

upgrade: ## Take the newest versions of every Python dependency into the lock files, and run everything
	@PYTHON=$(PYTHON) sh scripts/lock.sh --upgrade
	@$(MAKE) --no-print-directory test

clean: ## Remove what was installed and built; recordings and models in the data folder stay
	rm -rf $(VENV) frontend/node_modules frontend/dist

$(INSTALLED): pyproject.toml scripts/install.sh locks/build.txt locks/workbench.txt locks/torch-cpu.txt locks/torch-gpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Installing Python packages (a few minutes the first time) …"
	@sh scripts/install.sh $(BIN)/python torch workbench
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv-peers/.installed: scripts/install.sh locks/build.txt locks/peers.txt locks/peers-alone.txt
	@echo "Installing the peer packages …"
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@sh scripts/install.sh .venv-peers/bin/python torch peers peers-alone
	@touch $@

# Apart from the others, one of which asks for an old release of it.
.venv-nnsight/.installed: scripts/install.sh locks/build.txt locks/nnsight.txt
	@echo "Installing nnsight …"
	@test -x .venv-nnsight/bin/python || $(PYTHON) -m venv .venv-nnsight
	@sh scripts/install.sh .venv-nnsight/bin/python torch nnsight
	@touch $@

$(MODULES): frontend/package.json frontend/package-lock.json
	@command -v npm > /dev/null || { echo "Node.js 20 or newer is needed to build the browser part."; exit 1; }
	@echo "Installing front-end packages …"
	@cd frontend && npm ci --no-audit --no-fund --loglevel error
	@touch $@

$(BUILT): $(MODULES) $(SOURCES)
	@echo "Building the front end …"
	@cd frontend && npm run --silent build
