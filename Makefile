# make demo   build recipes/resnet50.toml, install the wheel in a new environment, bench and predict
# make bench  measure all recipes side by side with other engines (an hour or more); answers in benchmarks/
# make test   formatting, lint, types, then every test
# make kernels  compile kernels/ again after a change (an installation compiles them too)
#
# All do their own set-up in .venv; the second run skips what is there. To choose another torch, for instance one
# already downloaded: make demo TORCH=path/to/torch.whl TORCHVISION=path/to/torchvision.whl PIP_ARGS="..."

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
PIP_ARGS ?=
# For make bench: which models (default all), and options of `cpupack compare`, such as --input uint8.
MODELS ?=
COMPARE_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := -m pip install --disable-pip-version-check $(PIP_ARGS)
DEMO := .demo
KERNELS := cpupack/runtime/kernels/cpupack_int8.x86_64.so
C_FILES := $(wildcard kernels/*/*.c kernels/*/*.h kernels/*/*.inc)

.PHONY: help setup kernels demo bench test lint fast slow clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY) $(KERNELS)

kernels: $(KERNELS)

$(KERNELS): $(wildcard kernels/* kernels/*/*) hatch_build.py | $(READY)
	$(BIN)/python hatch_build.py

# torch first and pinned: what is installed afterwards then takes it as it is.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cpupack needs Python 3.11 or later; set PYTHON=")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) "$(TORCH)" "$(TORCHVISION)"
	$(BIN)/python $(PIP) -e ".[torchvision,digits,dev]"
	touch $@

demo: $(READY) $(KERNELS)
	rm -rf $(DEMO)
	$(BIN)/cpupack build recipes/resnet50.toml --target $$(uname -m) --out $(DEMO)/dist
	$(PYTHON) -m venv $(DEMO)/venv
	$(DEMO)/venv/bin/python $(PIP) "$(TORCH)"
	$(DEMO)/venv/bin/python $(PIP) $(DEMO)/dist/*.whl
	@# A real photo, from scikit-learn: any other file will do.
	$(BIN)/python -c 'import pathlib, shutil, sklearn.datasets; \
	  shutil.copy(pathlib.Path(sklearn.datasets.__file__).with_name("images") / "china.jpg", "$(DEMO)")'
	@# Python puts the working directory on the import path, so leave the checkout before asking.
	@cd $(DEMO); if venv/bin/python -c 'import cpupack' 2>/dev/null; then echo "cpupack is importable in $(DEMO)/venv"; exit 1; fi
	@echo; echo "The wheel alone, in an environment that does not have cpupack:"; echo
	cd $(DEMO) && venv/bin/resnet50-int8 bench
	@echo
	cd $(DEMO) && venv/bin/resnet50-int8 predict china.jpg
	@echo; echo "The wheel is in $(DEMO)/dist, the environment in $(DEMO)/venv."

bench: $(READY) $(KERNELS)
	$(BIN)/python $(PIP) "$(TORCH)" -e ".[compare]"
	$(BIN)/python benchmarks/compare.py $(MODELS) -- $(COMPARE_ARGS)

test: lint fast slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

fast: $(READY) $(KERNELS)
	$(BIN)/python -m pytest -m "not slow"

slow: $(READY) $(KERNELS)
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) $(DEMO) dist build $(dir $(KERNELS)) .pytest_cache .mypy_cache .ruff_cache
