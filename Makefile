# One-word commands. `make` lists them; `make run` and `make test` set up what they need.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Another Python than the first of python3, python3.13, python3.12, ... : make setup PYTHON=...
PYTHON ?=
BIN := .venv/bin
# That of .venv has PyTorch for CPU: on a GPU, the one that serves vLLM there.
KERNELS_PYTHON ?= $(BIN)/python
ALL_ARMS := off,again,on,everything,eager-off,eager-on,hooks
# Once more for a test that failed, told as such: on a shared machine a neighbour may take a second
# away. What fails twice fails; what passed only then is named at the end, and is a bug to mend.
PYTEST := $(BIN)/python -m pytest --reruns 1 --reruns-delay 2 -rR
READY := .venv/.stamp
TOOLS := .tools/.stamp
SOURCES := $(wildcard bench dashboards examples helm scripts sidecar tests)

.PHONY: help
help: ## list these commands
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: setup
setup: $(READY) ## make .venv with vLLM for CPU, this package and its tools (once; some 3 minutes)

$(READY): pyproject.toml requirements/constraints.txt scripts/setup.sh scripts/progress.sh
	@scripts/setup.sh .venv $(PYTHON)
	@touch $@

.PHONY: tools
tools: $(TOOLS) ## fetch prometheus and alertmanager into .tools; install chromium, buildah and podman

$(TOOLS): scripts/prometheus.sh scripts/chromium.sh scripts/containers.sh
	@scripts/progress.sh "tools: fetching prometheus" .cache/logs/prometheus.log scripts/prometheus.sh .tools
	@scripts/progress.sh "tools: looking for chromium" .cache/logs/chromium.log scripts/chromium.sh .tools
	@scripts/progress.sh "tools: looking for buildah and podman" .cache/logs/containers.log scripts/containers.sh
	@touch $@

.PHONY: run
run: setup ## serve the bundled model with the tap on, send it requests, show its internals
	@$(BIN)/python -m sidecar demo

.PHONY: tamper
tamper: setup ## the same, and the model is tampered with once its canary is armed
	@$(BIN)/python -m sidecar demo --tamper

.PHONY: test
test: setup tools lint unit e2e ## every check: lint, unit tests, tests on a real vLLM server

.PHONY: unit
unit: setup tools ## unit tests only: some 10 minutes on 2 cores, no vLLM process
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(PYTEST) tests --ignore=tests/e2e --ignore=tests/image --numprocesses 2

.PHONY: e2e
e2e: setup tools ## tests on a real vLLM server only: two servers at a time, then what measures time
	@export PATH="$(CURDIR)/.tools/bin:$$PATH"; failed=0; \
	$(PYTEST) tests/e2e tests/image -m "not alone" --numprocesses 2 --dist loadgroup --no-loadscope-reorder || failed=1; \
	$(PYTEST) tests/e2e tests/image -m alone || failed=1; \
	exit $$failed

.PHONY: lint
lint: setup ## formatting, ruff, mypy strict, import contracts
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: setup ## format the code, mend what ruff can mend
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

.PHONY: model
model: setup ## train the bundled model again
	@$(BIN)/python -m sidecar.demo.train --bf16

.PHONY: dashboards
dashboards: setup ## write the Grafana dashboards, dashboards/json, anew from the code
	@$(BIN)/python -m dashboards.generate

.PHONY: runbooks
runbooks: setup ## have alerts and dashboards name your copy of docs/runbooks: URL=https://...
	@scripts/runbooks.sh "$(URL)"
	@$(BIN)/python -m dashboards.generate

.PHONY: bench
bench: setup ## what it costs and takes: tap on over off, sidecar, fleet; under 30 minutes on 2 cores
	@$(BIN)/python -m bench.overhead --arms off,again,on --rounds 8 --json build/bench/overhead.json
	@$(BIN)/python -m bench.capacity --only ingest,sender,growth --results build/bench
	@$(BIN)/python -m bench.capacity --only memory --quick --results build/bench
	@$(BIN)/python -m bench.scrape --json build/bench/scrape.json
	@$(BIN)/python -m bench.fleet --json build/bench/fleet.json

.PHONY: bench-gpu
bench-gpu: ## the same of the tap on a GPU, in the environment that serves vLLM there: KERNELS_PYTHON=...
	@$(KERNELS_PYTHON) -m bench.overhead --shape 0.6b --arms $(ALL_ARMS) --json bench/results/overhead_gpu_0.6b.json
	@$(KERNELS_PYTHON) -m bench.overhead --shape 8b --arms off,again,on --json bench/results/overhead_gpu_8b.json
	@$(KERNELS_PYTHON) -m bench.overhead --shape 70b-layers --arms off,again,on --json bench/results/overhead_gpu_70b.json
	@$(KERNELS_PYTHON) -m bench.kernels

.PHONY: performance
performance: setup ## write docs/performance.md and docs/scale.md anew from bench/results
	@$(BIN)/python -m bench.performance

.PHONY: kernels
kernels: setup ## what the tap's kernels cost on a GPU, beside the least they can: KERNELS_PYTHON=...
	@$(KERNELS_PYTHON) -m bench.kernels

.PHONY: image
image: ## build the sidecar's image and its SBOM; BASES=debian: on bases made here, no registry asked
	@scripts/image.sh exporter

.PHONY: lock
lock: ## name again what the image is built of, and all hashes: requirements/*.lock
	@scripts/lock.sh

.PHONY: chart
chart: setup ## write the values' schema and the patches anew, lint the chart, pack it into build/
	@mkdir -p build
	@PYTHONPATH=. $(BIN)/python -m helm.schema
	@PYTHONPATH=. $(BIN)/python -m helm.patches
	@PYTHONPATH=. $(BIN)/python -m helm.pack build

.PHONY: clean
clean: ## remove caches, compiled graphs, logs and tools; keeps .venv
	@rm -rf .cache .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
