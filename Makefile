# make demo   build and run the demo      (LENGTH=8192 METHOD=... SEED=..., or ARGS="--length 8192")
# make test   lint, C++ tests (plain, then with sanitizers), Python tests
# make bench  build and run the benchmarks              (ARGS="...")
# make build | lint | format | clean
#
# Everything is installed into .venv, made on first use. Stamps keep a second call quick.

.DEFAULT_GOAL := demo
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(or $(MAX_JOBS),$(shell nproc))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

# With a GPU any torch this package supports is kept, also that of the system's Python: it fits the
# driver. Without one the version is pinned.
GPU := $(shell command -v nvidia-smi)
TORCH := $(if $(GPU),torch>=2.11,torch==2.13.0)

# The folder setup.py builds in.
BUILD = build/$(shell $(VENV)/bin/python -c 'import sys; print(sys.implementation.cache_tag)')
SANITIZE := build/sanitize
CPP_FILES = $(shell find $(wildcard bench cpp tests) -name '*.h' -o -name '*.cpp')

.PHONY: demo test bench build lint format clean test-cpp test-python

demo: build
	$(VENV)/bin/python -m minference_ext.demo $(if $(LENGTH),--length $(LENGTH)) \
	  $(if $(METHOD),--method $(METHOD)) $(if $(SEED),--seed $(SEED)) $(ARGS)

test: lint test-cpp test-python

bench: build
	$(VENV)/bin/python -m bench $(ARGS)

$(VENV)/.requirements: requirements-dev.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(if $(GPU),--system-site-packages) $(VENV)
	$(PIP) install -q "$(TORCH)"
	$(PIP) install -q -r requirements-dev.txt
	touch $@

$(VENV)/.installed: $(VENV)/.requirements setup.py pyproject.toml
	@echo "compiling: the first time takes some minutes"
	$(PIP) install -q --no-build-isolation -e .
	touch $@

# Compiles what changed. Nothing runs from the build folder: the package is used where it lies.
build: $(VENV)/.installed
	cmake --build $(BUILD)
	cmake --install $(BUILD) --prefix python/minference_ext >/dev/null

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

test-cpp: build
	cmake -B $(BUILD) -DMINFERENCE_TESTS=ON >/dev/null
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --no-tests=error --output-on-failure
	cmake -S . -B $(SANITIZE) -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMINFERENCE_PYTHON=OFF \
	  -DMINFERENCE_TESTS=ON -DMINFERENCE_SANITIZE=ON >/dev/null
	cmake --build $(SANITIZE)
	ctest --test-dir $(SANITIZE) --no-tests=error --output-on-failure

test-python: build
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest $(ARGS)

clean:
	rm -rf build python/minference_ext/lib python/minference_ext/include
	rm -rf python/minference_ext/*.so python/*.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis $(VENV)/.installed
