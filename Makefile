# make demo   build and run the demo      (LENGTH=8192 METHOD=... SEED=..., or ARGS="--length 8192")
# make test   lint, C++ tests (plain, then with sanitizers), Python tests
# make bench  build and run the benchmarks              (ARGS="...")
# make gpu    tests, sanitizers and benchmarks on a GPU, 9 minutes  (ARGS="...")
# make pictures  draw those of the README into bench/pictures, and their numbers as JSON
# make build | lint | format | clean
#
# Everything is installed into .venv, made on first use. Stamps keep a second call quick. Without a GPU
# CUDA kernels are compiled by what tests only (CUDA=AUTO|ON|OFF decides otherwise).

.DEFAULT_GOAL := demo
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)
export CMAKE_ARGS ?= -DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DMINFERENCE_CUDA=$(CUDA)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(or $(MAX_JOBS),$(shell nproc))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# With a GPU any torch this package supports is kept, also that of the system's Python: it fits the
# driver. Without one the version is pinned.
GPU := $(shell command -v nvidia-smi)
TORCH := $(if $(GPU),torch>=2.11,torch==2.13.0)

# Once `make test` has compiled them, CUDA kernels cost the others nothing and stay.
CUDA = $(if $(GPU)$(wildcard build/cpython-*/CMakeFiles/minference_cuda.dir/cuda/any),AUTO,OFF)
test test-cpp test-oldest test-python: CUDA = AUTO
CUTLASS := nvidia-cutlass==4.2.0.0  # headers; its dependencies are for its Python code
# Runs the CUDA tests where there is no GPU. Copied: its folder may be read-only.
MINFERENCE_PTXSIM ?= $(wildcard ../shared/ptxsim)
PTXSIM := $(if $(MINFERENCE_PTXSIM),build/ptxsim/build/libcudart.so.13)

# The folder setup.py builds in.
BUILD = build/$(shell $(VENV)/bin/python -c 'import sys; print(sys.implementation.cache_tag)')
SANITIZE := build/sanitize
CPP_FILES = $(shell find bench cpp cuda tests -regex '.*\.\(h\|c\|cpp\|cu\|cuh\)')

.PHONY: demo test bench gpu pictures build lint format clean test-cpp test-python test-oldest

demo: build
	$(VENV)/bin/python -m minference_ext.demo $(if $(LENGTH),--length $(LENGTH)) \
	  $(if $(METHOD),--method $(METHOD)) $(if $(SEED),--seed $(SEED)) $(ARGS)

test: lint test-cpp test-oldest test-python

bench: build
	$(VENV)/bin/python -m bench $(ARGS)

# Times count: nothing else may run on the machine meanwhile.
pictures: build
	mkdir -p bench/pictures
	$(VENV)/bin/python -m minference_ext demo --repeat 3 --plots bench/pictures \
	  --json bench/pictures/demo.json
	$(VENV)/bin/python -m minference_ext bench attention --rounds 7 \
	  --plot bench/pictures/bench_attention.png --json bench/pictures/bench_attention.json

$(VENV)/.requirements: requirements-dev.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(if $(GPU),--system-site-packages) $(VENV)
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -r requirements-dev.txt
	$(PIP) install -q --no-deps $(CUTLASS)
	touch $@

$(VENV)/.installed: $(VENV)/.requirements setup.py pyproject.toml
	@echo "compiling: the first time takes some minutes"
	$(PIP) install -q --no-build-isolation -e .
	touch $@

# Compiles what changed. Nothing runs from the build folder: the package is used where it lies.
# Configures as well: a wheel built in this tree may have left the paths of its own tools there.
build: $(VENV)/.installed
	$(VENV)/bin/python setup.py -q build_ext --inplace | sed '/^-- /d'

lint: $(VENV)/.requirements
	@echo clang-format --dry-run -Werror: $(words $(CPP_FILES)) files
	@clang-format --dry-run -Werror $(CPP_FILES)
	ruff check .
	ruff format --check .
	mypy

format: $(VENV)/.requirements
	@echo clang-format -i: $(words $(CPP_FILES)) files
	@clang-format -i $(CPP_FILES)
	ruff check --fix-only -q .
	ruff format .

$(PTXSIM): $(wildcard $(MINFERENCE_PTXSIM)/src/*)
	mkdir -p build/ptxsim
	cp -r --no-preserve=mode $(MINFERENCE_PTXSIM)/* build/ptxsim
	chmod +x build/ptxsim/ptxsim
	$(MAKE) -C build/ptxsim -j $(CMAKE_BUILD_PARALLEL_LEVEL) >/dev/null

test-cpp: build $(PTXSIM)
	cmake -B $(BUILD) -DMINFERENCE_TESTS=ON \
	  -DMINFERENCE_PTXSIM=$(if $(PTXSIM),$(abspath build/ptxsim)) >/dev/null
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --no-tests=error --output-on-failure
	cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMINFERENCE_PYTHON=OFF \
	  -DMINFERENCE_TESTS=ON -DMINFERENCE_SANITIZE=ON $(CMAKE_ARGS) -DMINFERENCE_CUDA=OFF >/dev/null
	cmake --build $(SANITIZE)
	ctest --test-dir $(SANITIZE) --no-tests=error --output-on-failure

test-python: build
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest $(ARGS)

# The Transformers integration once more, on the oldest version it supports.
OLDEST := build/transformers-4.57.1
$(OLDEST)/.installed:
	$(PIP) install -q --target $(@D) transformers==$(patsubst build/transformers-%,%,$(OLDEST))
	touch $@

test-oldest: build $(OLDEST)/.installed
	PYTHONPATH=$(OLDEST) OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest \
	  tests/test_transformers.py tests/test_transformers_settings.py tests/test_model_families.py \
	  tests/test_transformers_methods.py

# On a machine with one NVIDIA GPU, network or not: bench/README.md.
gpu:
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m bench.gpu $(ARGS)

clean:
	rm -rf build python/minference_ext/lib python/minference_ext/include
	rm -rf python/minference_ext/*.so python/*.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV)/.installed
