# Everything that people and CI run. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CARGO := $(shell command -v cargo 2>/dev/null || ls $(HOME)/.cargo/bin/cargo 2>/dev/null)
# one lost connection must not end an installation
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60
export CARGO_NET_RETRY ?= 10
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/cloudstate-knative/target
ENGINE_SOURCES := $(shell find engine -name '*.rs' -o -name 'Cargo.*' -o -name 'pyproject.toml' 2>/dev/null)

CLUSTER := e2e/cluster
export PYTHON_OF_IMAGES = $(abspath $(BIN)/python)

REGISTRY ?= dev.local/cloudstate-knative
TAG ?= dev
KUBECTL ?= $(or $(shell command -v kubectl 2>/dev/null),e2e/cluster/kubectl.sh)

.PHONY: release help setup demo test fuzz test-sdks envtest e2e cluster-up cluster-down bench bench-control-plane lint gen results clean
help:            ## list the targets
	@grep -E '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | sort | awk -F'\t' '{printf "  make %-19s %s\n", $$1, $$2}'

setup: $(VENV)/.installed $(VENV)/.engine ## install everything into .venv and build the native engine

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: setup.cfg pyproject.toml sdk/python/setup.cfg | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[cli,control-plane,redis,dev]' -e sdk/python
	@touch $@

$(VENV)/.engine: $(ENGINE_SOURCES) $(VENV)/.installed
ifneq ($(and $(CARGO),$(wildcard engine/Cargo.toml)),)
	VIRTUAL_ENV=$(abspath $(VENV)) PATH="$(dir $(CARGO)):$$PATH" $(BIN)/maturin develop --quiet --release -m engine/Cargo.toml
else
	@echo "no native engine to build: the grpcio backend serves"
endif
	@touch $@

demo: setup      ## the shopping cart from zero, through load and a crash, and back (under a minute)
	PYTHONPATH=samples/shopping-cart $(BIN)/python -m demo

test: setup      ## lint, types, contracts, stubs and all tests
	$(MAKE) --no-print-directory lint
	PYTHON=$(abspath $(BIN)/python) PATH="$(addsuffix :,$(dir $(CARGO)))$$PATH" engine/test.sh
	$(BIN)/python -m pytest -q --junitxml=build/tests.xml

fuzz: $(VENV)/.fuzz ## what strangers send, under atheris; FUZZ_SECONDS=60 for each target, TARGETS picks some
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(BIN)/python -m tests.fuzz $(TARGETS)

$(VENV)/.fuzz: setup.cfg $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[fuzz]'
	@touch $@

lint: setup      ## ruff, mypy --strict, import contracts, stub drift
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/gen_protos.py --check

gen: setup       ## generate the committed protobuf stubs
	$(BIN)/python tools/gen_protos.py

envtest: setup   ## reconcilers and webhooks against a real API server: etcd and kube-apiserver, no container engine
	@kubeconfig=$$($(CLUSTER)/envtest.sh start build/envtest) && trap '$(CLUSTER)/envtest.sh stop build/envtest' EXIT && \
	CLOUDSTATE_ENVTEST=$$kubeconfig $(BIN)/python -m pytest -q tests/envtest --junitxml=build/envtest.xml

test-sdks: setup ## functions on published Cloudstate SDKs behind the real proxy; CLOUDSTATE_SDKS=python,node,java,java-0.4 picks some
	CLOUDSTATE_SDKS=$${CLOUDSTATE_SDKS:-all} $(BIN)/python -m pytest -q tests/sdks --junitxml=build/sdks.xml

release:         ## render the manifests of a release into build/release; REGISTRY and TAG say where its images are, OVERLAY picks a variant
	@mkdir -p build/release
	@$(KUBECTL) kustomize deploy/knative/base/crds >build/release/crds.yaml
	@$(KUBECTL) kustomize deploy/knative/$(if $(OVERLAY),overlays/$(OVERLAY),base) | sed -E 's#(image|value): cloudstate-knative/([a-z-]+)$$#\1: $(REGISTRY)/\2:$(TAG)#' >build/release/release.yaml

e2e: setup release ## the local journey, then Knative on a kind cluster of its own; KEEP=1 keeps the cluster
	@kubeconfig=$$($(CLUSTER)/up.sh) && $(CLUSTER)/load.sh $${NAME:-cloudstate} product && \
	{ CLOUDSTATE_KIND=$$kubeconfig $(BIN)/python -m pytest -q e2e --junitxml=build/e2e.xml; result=$$?; \
	  [ -n "$(KEEP)" ] || $(CLUSTER)/down.sh; exit $$result; }

cluster-up: setup ## a kind cluster with Knative and the product's images; tells how to reach it
	@kubeconfig=$$($(CLUSTER)/up.sh) && $(CLUSTER)/load.sh $${NAME:-cloudstate} product && \
	printf 'export KUBECONFIG=%s PATH=%s/bin:$$PATH\ncurl --header "Host: SERVICE.NAMESPACE.kn.test" http://127.0.0.1:18080/\n' $$kubeconfig $${kubeconfig%/*}

cluster-down:    ## delete that cluster
	$(CLUSTER)/down.sh

bench: setup     ## measure against the peers (Go, Rust and grpcio), write build/results/bench.json
	$(BIN)/python -m bench

bench-control-plane: setup ## how long the control plane takes to take in a thousand revisions, against a real API server
	@kubeconfig=$$($(CLUSTER)/envtest.sh start build/envtest-bench) && trap '$(CLUSTER)/envtest.sh stop build/envtest-bench' EXIT && \
	CLOUDSTATE_ENVTEST=$$kubeconfig $(BIN)/python -m bench.control_plane

results: setup   ## print every result as one table
	$(BIN)/python -m kn_cloudstate.results

clean:           ## remove what was built here
	rm -rf build $(VENV)
