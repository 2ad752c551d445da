# make help      print this list
# make setup     make the environment .venv with everything that development needs, and compile the kernels
# make test      do lint, fast and slow, also beside the engines that `cpupack compare` knows: all that must hold
# make lint      check formatting, style and types of Python, and the formatting of C
# make fast      run the tests that take seconds each (minutes in all)
# make slow      run the tests that build wheels and install them
# make night     run what takes too long for `make test`: more cases of the slow tests, and clusters of Ray
# make peers     install the engines of `cpupack compare` and what text models need, for `make test` and `make bench`
# make kernels   compile kernels/ again after a change
# make sanitize  run the tests of the kernels with gcc's address and undefined-behaviour sanitizers (apt: gcc g++)
# make emulate   run them with AVX-512 and AMX in portable C, on any CPU with AVX2 (headers from pip: simde-py)
# make test-arm  run the tests of what runs on ARM, on emulated CPUs: kernels, wheels, and an aarch64 Python with torch
#                (qemu, Python and packages come from apt and pip into the user's cache; root is not needed)
# make demo      build recipes/resnet50.toml, install the wheel in a new environment, bench it, and predict a photo; where
#                its weights cannot be downloaded, build recipes/efficientnet_lite0.toml too, which has trained weights
# make bench     measure all recipes side by side with other engines (an hour or more); answers in benchmarks/
# make fuzz      let libFuzzer look for programs that break the kernels, for FUZZ_MINUTES (default: 10; apt: clang)
# make damage    damage each field of programs at random, with the sanitizers of make sanitize, for FUZZ_MINUTES
# make threads   run the tests of the team of threads under gcc's thread sanitizer (apt: gcc)
# make clean     delete what all these have made
#
# Each does its own set-up in .venv; the second run skips what is there. Variables:
#   make demo TORCH=path/to/torch.whl TORCHVISION=path/to/torchvision.whl PIP_ARGS="..."   another torch, pip's options
#   make fast WORKERS=4 PYTEST_ARGS="-k recipe"   how many tests at a time (default: one a CPU), pytest's options
#   make bench MODELS="resnet50" COMPARE_ARGS="--input uint8"   which models (default: all), options of the comparison

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
PIP_ARGS ?=
MODELS ?=
COMPARE_ARGS ?=
WORKERS ?= $(shell nproc)
# One more: the tests with Ray clusters wait most of their time.
SLOW_WORKERS ?= $(shell expr $(WORKERS) + 1)
PYTEST_ARGS ?=
CHECK_ARGS ?=
FUZZ_MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/.peers
PIP := -m pip install --disable-pip-version-check $(PIP_ARGS)
DEMO := .demo
KERNELS := $(foreach cpu,x86_64 aarch64,cpupack/runtime/kernels/cpupack_int8.$(cpu).so)
# worksteal: a worker that has nothing left takes tests from the other, so that both end together.
PYTEST = $(BIN)/python -m pytest -n $(1) --dist worksteal $(PYTEST_ARGS)
# The tests start hundreds of processes, which may not write bytecode where PYTHONDONTWRITEBYTECODE is set.
COMPILE = @$(BIN)/python -m compileall -q cpupack tests/helpers
REQUIRES_TORCH := import sys, zipfile; wheels = [zipfile.ZipFile(path) for path in sys.argv[1:]]; \
  sys.exit(not any(b"\nRequires-Dist: torch" in wheel.read(name) \
  for wheel in wheels for name in wheel.namelist() if name.endswith(".dist-info/METADATA")))
C_FILES := $(wildcard kernels/*/*.c kernels/*/*.h kernels/*/*.inc cpupack/runtime/export/c/*.[ch] tests/arm/*.c)

.PHONY: help setup peers kernels demo bench test test-arm lint fast slow night sanitize emulate threads fuzz damage clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY) $(KERNELS)

peers: $(PEERS)

kernels: $(KERNELS)

$(KERNELS): $(C_FILES) kernels/exports.map hatch_build.py | $(READY)
	$(BIN)/python hatch_build.py

# torch first and pinned: what is installed afterwards then takes it as it is.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cpupack needs Python 3.11 or later; set PYTHON=")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) "$(TORCH)" "$(TORCHVISION)"
	$(BIN)/python $(PIP) -e ".[torchvision,digits,lite0,dev]"
	touch $@

# torch again and pinned: no engine may bring another.
$(PEERS): $(READY)
	$(BIN)/python $(PIP) "$(TORCH)" -e ".[compare,minilm]"
	touch $@

demo: $(READY) $(KERNELS)
	rm -rf $(DEMO)
	$(BIN)/cpupack build recipes/resnet50.toml --target $$(uname -m) --out $(DEMO)/dist --set tune.budget_s=30
	@if compgen -G '$(DEMO)/dist/*+random*.whl' >/dev/null; then \
	  echo; echo "ResNet-50 has random weights, so its predictions mean nothing. EfficientNet-Lite0 has trained ones:"; echo; \
	  $(BIN)/cpupack build recipes/efficientnet_lite0.toml --target $$(uname -m) --out $(DEMO)/dist --set tune.budget_s=15; \
	fi
	$(PYTHON) -m venv $(DEMO)/venv
	@# Only where a wheel requires it: the torch that it was built with.
	if $(BIN)/python -c '$(REQUIRES_TORCH)' $(DEMO)/dist/*.whl; then $(DEMO)/venv/bin/python $(PIP) "$(TORCH)"; fi
	$(DEMO)/venv/bin/python $(PIP) $(DEMO)/dist/*.whl
	@# A real photo: any other file will do.
	cp recipes/photos/espresso.jpg $(DEMO)
	@# Python puts the working directory on the import path, so leave the checkout before asking.
	@cd $(DEMO); if venv/bin/python -c 'import cpupack' 2>/dev/null; then echo "cpupack is importable in $(DEMO)/venv"; exit 1; fi
	@echo; echo "The wheel alone, in an environment that does not have cpupack:"; echo
	cd $(DEMO) && venv/bin/resnet50-int8 bench
	@echo
	cd $(DEMO) && $$(ls venv/bin/efficientnet-lite0-int8 2>/dev/null || echo venv/bin/resnet50-int8) predict espresso.jpg
	@echo; echo "The wheel is in $(DEMO)/dist, the environment in $(DEMO)/venv."

bench: $(PEERS) $(KERNELS)
	$(BIN)/python benchmarks/compare.py $(MODELS) -- $(COMPARE_ARGS)

# The peers first: what needs them must not be skipped.
test: $(PEERS) lint fast slow

# Everything marked arm, also what takes many minutes: fast and slow tests skip that.
test-arm: $(READY) $(KERNELS)
	CPUPACK_ARM_FULL=1 $(call PYTEST,$(WORKERS)) -m arm tests/arm

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

fast: $(READY) $(KERNELS)
	$(COMPILE)
	$(call PYTEST,$(WORKERS)) -m "not slow"

# The files that have one: each worker takes 20 s to import all the others.
SLOW = $(call PYTEST,$(SLOW_WORKERS)) $(or $(shell grep -rl --include='test_*.py' 'mark\.slow' tests),$(error no slow tests))

slow: $(READY) $(KERNELS)
	$(COMPILE)
	$(SLOW) -m "slow and not night"

night: $(READY) $(KERNELS)
	$(COMPILE)
	$(SLOW) -m night

# What cannot be had is said and skipped; kernels/check.py says what each needs. CHECK_ARGS="--required" fails then.
CHECK = $(BIN)/python kernels/check.py $@ --workers $(WORKERS) --pip-args="$(PIP_ARGS)" $(CHECK_ARGS)

sanitize: $(READY) $(KERNELS)
	$(CHECK)

emulate: $(READY) $(KERNELS)
	$(CHECK)

threads: $(READY) $(KERNELS)
	$(CHECK)

fuzz: $(READY) $(KERNELS)
	$(CHECK) --minutes $(FUZZ_MINUTES)

damage: $(READY) $(KERNELS)
	$(CHECK) --minutes $(FUZZ_MINUTES)

clean:
	rm -rf $(VENV) $(DEMO) dist build $(dir $(firstword $(KERNELS))) .pytest_cache .mypy_cache .ruff_cache
