# The one place that people, hooks and CI call. `make` lists what there is.
#
# PYTHON=python3.12   the Python that makes the environment (default: a fitting one on the PATH)
# PROFILE=cpu|gpu     what to install (default: gpu where an NVIDIA driver answers)
# CONFIG=file         the Ray Serve config file that `make up` deploys (default: config.yaml)
# PROCESSES=2         how many tests `make test` runs at once; slow ones run one by one
# ARGS='...'          options for a benchmark, or for pytest in test and test-fast

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(FITS)' 2>/dev/null && echo $$p && break; done),python3)
CONFIG ?= config.yaml
PROCESSES ?= 2
VENV := .venv/bin

.DEFAULT_GOAL := help
# Every target with a help text is a command and no file.
.PHONY: env env-dev $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; \
		do printf '  make %-15s %s\n' "$$name" "$$what"; done

up: env ## Install what is missing, start the platform, ask a first question
	@$(VENV)/python -m cluster.local up "$(CONFIG)"

down: ## Stop what `make up` started, and nothing else
	@if [ -x $(VENV)/python ]; then $(VENV)/python -m cluster.local down; else echo 'Nothing runs.'; fi

status: ## Show what runs
	@if [ -x $(VENV)/python ]; then $(VENV)/python -m cluster.local status; else echo 'Nothing runs.'; fi

monitoring: env ## Start a Prometheus that scrapes what `make up` started (ARGS='--port 9090')
	@$(VENV)/python -m cluster.monitoring.local_prometheus $(ARGS)

test: env-dev ## Run every test; the first run installs everything
	@$(VENV)/python -m pytest --numprocesses=$(PROCESSES) $(ARGS)

test-fast: env-dev ## Run the tests that need neither Ray nor a model
	@$(VENV)/python -m pytest -m 'not slow and not e2e' $(ARGS)

test-clouds: env-dev sky ## Launch through SkyPilot's AWS code before moto (three minutes)
	@ARRIERO_SKY_CLOUD=1 $(VENV)/python -m pytest tests/integration/test_provisioners.py $(ARGS)

test-vms: env-dev sky ## Run a fleet on "VMs" of this machine (root, 5 GB; ten minutes the first time)
	@$(VENV)/python -m tests.support.vm_image
	@ARRIERO_VMS=1 unshare --net --mount --pid --fork --kill-child --mount-proc \
		$(VENV)/python -m pytest -s tests/chaos/test_vms.py $(ARGS)

check: env-dev ## Formatting, lint, types, import rules, generated pages
	@$(VENV)/ruff format --check --quiet . || { echo 'Not formatted: run make format'; exit 1; }
	@$(VENV)/ruff check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports --no-logo
	@$(VENV)/python -m serve_app.config_reference --check
	@$(VENV)/python -m serve_app.metrics_reference --check
	@$(VENV)/python -m cluster.monitoring.grafana --check

format: env-dev ## Format the code and mend what ruff can
	@$(VENV)/ruff check --fix-only --quiet . && $(VENV)/ruff format .

bench-overhead: env-dev ## Measure against bare vLLM and Ray Serve LLM (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.overhead $(ARGS)

bench-gateway: env-dev ## Measure the gateway alone, beside LiteLLM (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.gateway $(ARGS)

bench-router: env-dev ## Measure what one decision of the fair queue costs
	@$(VENV)/python -m bench.router $(ARGS)

bench-scheduler: env-dev ## Measure what fair turns cost an engine's step (ARGS=--quick for less)
	@$(VENV)/python -m bench.scheduler $(ARGS)

bench-ledger: env-dev ## Measure what a limit costs a request (ARGS=--quick for seconds)
	@$(VENV)/python -m bench.ledger $(ARGS)

bench-simulate: env-dev ## Simulate the paper's workloads under every order (ARGS=--quick for seconds)
	@$(VENV)/python -m bench.simulate $(ARGS)

bench-lora-ops: env-dev ## Measure what adapters cost a CPU engine's products (ARGS=--quick for less)
	@$(VENV)/python -m bench.lora_ops $(ARGS)

bench-isolation: env-dev ## Simulate what others' prompts do to a light tenant's first tokens
	@$(VENV)/python -m bench.isolation $(ARGS)

bench-prefix-routing: env-dev ## Simulate how much of prompts is computed again, by way of routing
	@$(VENV)/python -m bench.prefix_routing $(ARGS)

bench-adapter-routing: env-dev ## Simulate how often adapters are loaded, by way of routing
	@$(VENV)/python -m bench.adapter_routing $(ARGS)

bench-objective: env-dev ## Simulate first tokens in time at overload (ARGS=--quick for less)
	@$(VENV)/python -m bench.objective $(ARGS)

bench-adapter-stall: env-dev ## Measure what others feel of a cold adapter (ARGS=--quick for less)
	@$(VENV)/python -m bench.adapter_stall $(ARGS)

bench-adapters: env-dev ## Measure many adapters, beside vLLM and Ray Serve LLM (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.adapters $(ARGS)

bench-fairness: env-dev ## Measure fairness of the running platform (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.fairness $(ARGS)

bench-observability: env-dev ## Measure what metrics, logs and traces cost (ARGS=--quick for less)
	@$(VENV)/python -m bench.observability $(ARGS)

bench-migration: env-dev ## Measure what the death of an engine costs (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.migration $(ARGS)

bench-overload: env-dev ## Measure ten times what it can serve (ARGS=--quick for two minutes)
	@$(VENV)/python -m bench.overload $(ARGS)

chaos: env-dev ## Kill, stop, hang and drain engines at random (ARGS='--seconds 600 --seed 7')
	@$(VENV)/python -m tests.chaos.storm $(ARGS)

chaos-deaths: env-dev ## Kill each kind of process on a real Ray, under load
	@ARRIERO_DEATHS=1 RAY_AUTH_MODE=token $(VENV)/python -m pytest tests/chaos/test_deaths.py \
		tests/chaos/test_node_drain.py tests/chaos/test_worker_death.py \
		$(ARGS)

chaos-fleet: env-dev ## Take nodes back under load (ARGS='--reclaims 20 --kills 5 --cells 2')
	@RAY_AUTH_MODE=token $(VENV)/python -m tests.chaos.fleet_storm $(ARGS)

chaos-cells: env-dev ## Kill whole cells under load, with all of their Ray (ARGS='--deaths 10 --seed 7')
	@RAY_AUTH_MODE=token $(VENV)/python -m tests.chaos.cell_storm $(ARGS)

bench-spot: env-dev ## Replay spot traces (ARGS='--traces FOLDER', --quick for minutes)
	@$(VENV)/python -m bench.spot $(ARGS)

bench-cell-paths: env-dev ## Time the way to a cell through the front and a cell of gateways (ARGS=--quick)
	@$(VENV)/python -m bench.cell_paths $(ARGS)

bench-node-loop: env-dev ## Time how nodes come, beside Ray's own autoscalers (ARGS=--quick for minutes)
	@$(VENV)/python -m bench.node_loop $(ARGS)

bench-autoscale: env-dev ## Compare scaling with Ray Serve's own, simulated (ARGS=--live on a real Ray)
	@$(VENV)/python -m bench.autoscale $(ARGS)

bench-spot-bound: env-dev ## Say what availability costs at least on spot traces (ARGS='--traces FOLDER')
	@$(VENV)/python -m bench.spot_bound $(ARGS)

bench-spot-explain: env-dev ## Say where the money goes on spot traces (ARGS='--traces FOLDER')
	@$(VENV)/python -m bench.spot_explain $(ARGS)

bench-spot-curve: env-dev ## Draw spot's cost over availability (ARGS='--traces FOLDER --plots FOLDER')
	@$(VENV)/python -m bench.spot_curve $(ARGS)

constraints: env ## Resolve the pinned versions anew
	@$(VENV)/python -m cluster.pins

sky: env ## Make .venv-sky, the environment that runs SkyPilot
	@"$(PYTHON)" -m cluster.bootstrap --sky

clean: down ## Stop, and remove everything that make has made here; the model's cache stays
	@rm -rf .venv .venv-sky .arriero build *.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .import_linter_cache

env:
	@"$(PYTHON)" -m cluster.bootstrap

env-dev:
	@"$(PYTHON)" -m cluster.bootstrap --dev
