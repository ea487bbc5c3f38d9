# PinRec in the open. `make` prints this help; everything it installs stays in .venv/ and .tools/.
PYTHON ?= python3
EXTRA  ?= cpu
# A release of torch that is known to work; a machine without a GPU wants the CPU build of it (see README, "Install").
TORCH  ?= torch==2.13.0
WORLD  ?= movielens
WORK   ?= work
BIN    := .venv/bin
PINREC := $(BIN)/pinrec

DEPLOYMENT := $(wildcard tests/contract/test_manifest*.py) tests/contract/test_images.py tests/contract/test_dashboards.py

.DEFAULT_GOAL := help
.PHONY: help audit compose-smoke image-locks k8s-rules k8s-smoke local-base sbom setup check format test test-deploy test-data demo up loadtest bench-serving bench-serving-small bench-gpu bench-gateway bench-quality bench-quality-small peers bench-steering capacity chaos chaos-signals chaos-release soak proto clean

help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.ready ## Virtual environment with the project (EXTRA=cpu|gpu) and a Triton server beside it

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRA),train,batch,dev]"
	$(BIN)/python -m services.triton install
	touch $@

check: setup ## Lint, format, types, manifests, what the images hold and what is known against it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(DEPLOYMENT)
	$(BIN)/python deploy/supply_chain.py sbom
	$(BIN)/python deploy/supply_chain.py audit --if-reachable

audit: setup ## Published vulnerabilities of the packages in the images; fails if there are any or nobody can be asked
	$(BIN)/python deploy/supply_chain.py audit

sbom: setup ## A software bill of materials of each image, in build/sbom
	$(BIN)/python deploy/supply_chain.py sbom

format: setup ## Rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tests of units share nothing, so two processes run them; the others start servers, one stack at a time.
test: setup ## Unit, conformance, contract, congruence, end to end (about 8 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 tests/unit
	$(BIN)/python -m pytest --ignore=tests/unit $(addprefix --ignore=,$(DEPLOYMENT))

test-deploy: setup ## Manifests, images, rules and dashboards against the code; a part of make check
	$(BIN)/python -m pytest -q $(DEPLOYMENT)

test-data: setup ## Only the tests that read the public logs under PINREC_DATASETS
	$(BIN)/python -m pytest -m data

demo: setup ## Train, publish, serve and ask, in five minutes (WORLD=movielens|synthetic)
	$(PINREC) demo --world $(WORLD) --work $(WORK)/demo-$(WORLD)

up: setup ## Serve the demo's release until Ctrl-C and print calls to paste
	$(PINREC) demo --world $(WORLD) --work $(WORK)/demo-$(WORLD) --stay

loadtest: setup ## 60 seconds of load against localhost:8500, or the demo's stack (PROFILE=mixed|steady|spike)
	$(BIN)/python -m loadtest.run --profile loadtest/profiles/$(or $(PROFILE),mixed).toml --world $(WORLD) --work $(WORK)/demo-$(WORLD)

bench-steering: setup ## Does a budget steer? Trains uc, oc, mt_oc on the synthetic world; docs/figures (15 minutes)
	$(BIN)/python -m benchmarks.steering --work $(WORK)/steering --report docs/figures

peers: setup ## RecTools in an environment of its own, .tools/peers, for bench-quality
	$(BIN)/python -m benchmarks.quality.peers setup --torch "$(TORCH)"

bench-quality: peers ## The paper's claims on the public logs under PINREC_DATASETS, beside RecTools (hours; goes on from docs/quality/runs)
	$(BIN)/python -m benchmarks.quality --size full --work $(WORK)/quality --results docs/quality/runs --report docs/quality

bench-quality-small: peers ## The same on fewer users, steps and models, one seed (15 minutes)
	$(BIN)/python -m benchmarks.quality --size small --work $(WORK)/quality --report $(WORK)/quality/report

.venv/.bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

bench-serving: .venv/.bench ## How fast each stage and the stack are, beside floors and peers; docs/serving (half an hour, once the worlds are made)
	$(BIN)/python -m benchmarks.serving --size full --work $(WORK)/serving --report docs/serving $(if $(ONLY),--only $(ONLY))

bench-serving-small: .venv/.bench ## The same on 10,000 items, fewer rounds (a quarter of an hour)
	$(BIN)/python -m benchmarks.serving --size small --work $(WORK)/serving $(if $(ONLY),--only $(ONLY))

bench-gpu: .venv/.bench ## The decoder on a GPU: graphs beside eager, no cache and Hugging Face; docs/figures (skipped without one)
	$(BIN)/python -m benchmarks.gpu --report docs/figures

bench-gateway: setup ## What TLS, tokens and tracing cost the gateway, against a plain one (4 minutes); docs/figures
	$(BIN)/python -m benchmarks.gateway_cost --work $(WORK)/gateway-cost --report docs/figures

chaos-signals: setup ## kill -9, power loss, ingest, reads, the daily job: bars and what was measured (15 minutes)
	$(BIN)/python -m benchmarks.chaos.signals --work $(WORK)/chaos-signals --report docs/figures

chaos-release: setup ## Switches, damage, deletions and additions under load: bars and what was measured (15 minutes)
	$(BIN)/python -m benchmarks.chaos.releases --work $(WORK)/chaos-release --report docs/figures

chaos: setup ## Faults, overload, bad networks, hostile input: what callers saw (15 minutes; ONLY=overload for one part)
	$(BIN)/python -m benchmarks.chaos.run --work $(WORK)/chaos --report docs/figures $(if $(ONLY),--only $(ONLY))

capacity: setup ## What one request costs each process, and the arithmetic to any size
	$(BIN)/python -m benchmarks.capacity --work $(WORK)/chaos --report docs/figures

soak: setup ## 20 minutes at 60 % of the capacity: errors and growth of memory
	$(BIN)/python -m benchmarks.chaos.soak --work $(WORK)/chaos --report docs/figures

compose-smoke: setup ## Images and docker-compose.yml, tried: build, start, call, break, stop (BASE=IMAGE without a registry)
	$(BIN)/python -m deploy.docker.smoke --work $(WORK)/compose-smoke --report docs/figures $(if $(BASE),--base $(BASE))

k8s-smoke: setup ## The pods of deploy/k8s/overlays/laptop, tried as containers of this machine, plain and secured (BASE as above)
	$(BIN)/python -m deploy.k8s.smoke --work $(WORK)/k8s-smoke --report docs/figures $(if $(BASE),--base $(BASE))

k8s-rules: setup ## deploy/prometheus/rules as an object for the Prometheus operator
	$(BIN)/python -m deploy.k8s.rules

local-base: ## The BASE of compose-smoke from Debian's packages alone (root, debootstrap, podman)
	sh deploy/docker/local-base.sh localhost/pinrec-base:bookworm

image-locks: setup ## Every package of the images with its version, from pyproject.toml (UPGRADE=--upgrade takes newer ones)
	$(BIN)/python -m pip install --quiet uv
	PATH="$(CURDIR)/$(BIN):$$PATH" TORCH=$(TORCH) sh deploy/docker/lock.sh $(UPGRADE)

proto: setup ## Regenerate the stubs of services/proto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=. services/proto/*.proto

clean: ## Remove what make built (not work/)
	rm -rf .venv .tools build *.egg-info .pytest_cache .mypy_cache .ruff_cache
