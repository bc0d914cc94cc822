# Everything happens in a virtual environment of the project's own, made on first
# use. Stamp files in it make the second call fast: a step is redone only after a
# change of what it depends on.
#
#   make train [ARGS="--preset cifar100-lt/hybrid-psc --data.root DIR"]
#   make test  [ARGS="-k similarity"]
#   make lint | format | setup | build | cuda-compile | clean
#   make gpu-check [STAGES="a b"]     on a machine with an NVIDIA GPU
#   make oldest-torch   one binary for every PyTorch from the oldest supported one on
#   make check-all      .ci/run, slow tests, CUDA sources for newer GPUs, arm64 tests
#   make sanitize [ARGS="avx2"] | sanitize-quick | arm64-compile | arm64-test
#   make docs           the pages of docs/, into build/docs
#   make wheel          a wheel in dist/, and a try of it in an environment of its own
#   make fuzz  [FUZZ_SECONDS=600] [ARGS="archive options"]
#
# Variables: PYTHON (>= 3.10), VENV, S3H_CUDA (auto, on, off; auto where nvidia-smi finds
# a GPU, else off), S3H_DATA_ROOT (folder with the CIFAR archives, for the tests that read
# them; ../shared/data where that is there), ARGS.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps

# CUDA kernels take long to compile and serve nobody without a GPU.
S3H_CUDA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo auto || echo off)
export PYTHON S3H_CUDA

S3H_DATA_ROOT ?= $(if $(wildcard ../shared/data/.),$(abspath ../shared/data))
ifneq ($(S3H_DATA_ROOT),)
export S3H_DATA_ROOT
endif

SETUP := tools/setup_venv.sh tools/requirements.py pyproject.toml constraints-dev.txt
NATIVE := setup.py CMakeLists.txt $(shell find csrc cmake -type f 2>/dev/null)
CXX_SOURCES = $(shell find csrc python_tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: train test setup setup-dali build lint format docs wheel sanitize \
	sanitize-quick fuzz arm64-compile arm64-test cuda-compile oldest-torch \
	check-all gpu-check clean

train: $(STAMPS)/build
	$(BIN)/python -m s3h_ext.train $(ARGS)

test: $(STAMPS)/build $(STAMPS)/dev
	$(BIN)/python -m pytest $(ARGS)

setup: $(STAMPS)/base $(STAMPS)/dev

# NVIDIA DALI, some 200 MB: the tests that need it are skipped where it is not there.
setup-dali: $(STAMPS)/dali

build: $(STAMPS)/build

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z --cached --others --exclude-standard | xargs -0 $(BIN)/codespell
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Native tests under the address, undefined-behaviour and thread sanitizers. ARGS: CPU
# levels, all that this machine has if empty.
sanitize: $(STAMPS)/base
	PATH="$(abspath $(BIN)):$$PATH" tools/sanitize.sh $(ARGS)

# The instruction set that every builder has: what CI has the time for.
sanitize-quick: $(STAMPS)/base
	PATH="$(abspath $(BIN)):$$PATH" tools/sanitize.sh --quick

docs: $(STAMPS)/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs
	@echo "build/docs/index.html"

# ARGS: requirements for the environment it is tried in, such as torch==2.12.0.
wheel: $(STAMPS)/wheel
	tools/wheel.sh $(VENV) $(ARGS)

# FUZZ_SECONDS: for each fuzzer. ARGS: which ones.
fuzz: export FUZZ_SECONDS ?= 120
fuzz: $(STAMPS)/build
	tools/fuzz/run.sh $(BIN)/python $(ARGS)

arm64-compile:
	tools/arm64_compile.sh

# Under emulation. Needs g++-aarch64-linux-gnu and qemu-user.
arm64-test: $(STAMPS)/base
	PATH="$(abspath $(BIN)):$$PATH" tools/arm64_test.sh

cuda-compile: $(STAMPS)/base $(STAMPS)/dev
	PYTHON=$(BIN)/python tools/cuda_compile.sh

# CUDA_ARCHS, as in TORCH_CUDA_ARCH_LIST: what its CUDA library is built for.
oldest-torch: $(STAMPS)/build
	tools/oldest_torch.sh $(BIN)/python

check-all:
	.ci/run
	$(MAKE) test ARGS="-m slow"
	$(MAKE) arm64-test
	CUDA_ARCHS="10.0 12.0" PYTHON=$(BIN)/python tools/cuda_compile.sh

# STAGES, OUT, BENCHMARK_ARGS, BATCH_ARGS: see docs/gpu-status.md.
# GPU_PYTHON: an interpreter that already holds the requirements, its own PyTorch
# among them, to be used in place of the virtual environment.
STAGES ?= a b full
ifdef GPU_PYTHON
gpu-check:
	PYTHON=$(GPU_PYTHON) tools/gpu_evidence.sh $(STAGES)
else
gpu-check: $(STAMPS)/build $(STAMPS)/dev
	PYTHON=$(BIN)/python tools/gpu_evidence.sh $(STAGES)
endif

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find s3h_ext -name '*.so' -delete

$(STAMPS)/base: $(SETUP)
	tools/setup_venv.sh $(VENV) build runtime
	@mkdir -p $(@D) && touch $@

$(STAMPS)/dev: $(STAMPS)/base
	tools/setup_venv.sh $(VENV) dev
	@touch $@

$(STAMPS)/dali: $(STAMPS)/base
	tools/setup_venv.sh $(VENV) dali-cuda13
	@touch $@

$(STAMPS)/docs: $(STAMPS)/base
	tools/setup_venv.sh $(VENV) docs
	@touch $@

$(STAMPS)/wheel: $(STAMPS)/base
	tools/setup_venv.sh $(VENV) wheel
	@touch $@

$(STAMPS)/build: $(STAMPS)/base $(STAMPS)/config $(NATIVE) \
		$(if $(wildcard s3h_ext/*.so),,FORCE)
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

SETTING = $(S3H_CUDA) $(S3H_WERROR) $(TORCH_CUDA_ARCH_LIST) $(NVCC_CCBIN) \
	$(CMAKE_ARGS) $(if $(filter default,$(origin CXX)),,$(CXX)) $(CURDIR)
# Changes when the build would come out otherwise with the same sources: another
# setting, or a checkout that was moved together with its environment.
$(STAMPS)/config: $(STAMPS)/base FORCE
	@echo '$(SETTING)' | cmp -s - $@ || echo '$(SETTING)' >$@

.PHONY: FORCE
FORCE:
