# The index of commands: `make` lists them. Each brings what it needs, so that any of them can be
# the first in a fresh clone. Arguments go on with ARGS: make test ARGS="-k supervision -x".

# The first of these that is new and old enough; make PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && exit; done; echo python3)
VENV_PYTHON := .venv/bin/python
CPP_FILES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
DEVICE ?= cpu
ARGS ?=
WORKERS ?= 2 # processes of the tests; one for a debugger: make test WORKERS=0 ARGS="--pdb"

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu faults bench bench-shapes bench-masks bench-photographs experiments-smoke check-cuda gpu-session docs lint format doctor env build clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

demo: build ## synthetic data, a light model trained for minutes on CPU or GPU, tables and a picture
	@$(VENV_PYTHON) -m psis_d2 demo $(ARGS)

test: build ## the CPU test suite
	@$(VENV_PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not gpu and not slow and not faults" $(ARGS)

test-slow: build ## the tests that take minutes
	@$(VENV_PYTHON) -m pytest -m "slow and not gpu and not faults" $(ARGS)

test-gpu: build ## the tests that need a CUDA GPU
	@$(VENV_PYTHON) -m pytest -m gpu $(ARGS)

faults: build ## kills, full disks, random jsons and long runs: docs/reliability.md
	@$(VENV_PYTHON) -m pytest -m faults $(ARGS)

bench: build ## time the ops and models; DEVICE=cuda on a GPU
	@set -e; for script in benchmarks/bench_*.py; do \
		echo "== $$script"; $(VENV_PYTHON) $$script --device $(DEVICE) $(ARGS); done

check-cuda: env ## compile the CUDA kernels, no GPU needed; fails on warnings and register spills
	@$(VENV_PYTHON) tools/check_ptxas.py $(ARGS)

gpu-session: ## all that a GPU is needed for: tests, sanitizer, benchmarks, models; see its head
	@$(PYTHON) tools/gpu_session.py $(ARGS)

bench-masks: build ## train mask heads on a finished detector on PartialShapes 2, write RESULTS.md
	@$(VENV_PYTHON) -m benchmarks.yardsticks $(ARGS)

bench-photographs: build ## the same on photographs of PASCAL VOC 2012; ARGS="--data FOLDER"
	@$(VENV_PYTHON) -m benchmarks.yardsticks --yardstick photographs $(ARGS)

bench-shapes: build ## train every quick config on PartialShapes with three seeds, write RESULTS.md
	@$(VENV_PYTHON) -m benchmarks.yardsticks --yardstick partial_shapes $(ARGS)

experiments-smoke: build ## one row of each kind of the papers' tables on a few PartialShapes
	@$(VENV_PYTHON) -m psis_d2 experiment --smoke $(ARGS)

docs: env ## build the documentation into build/site; fails on a broken link
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict --quiet $(ARGS)

lint: env ## check format and style of Python, C++ and CUDA
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m ruff check .
	@.venv/bin/clang-format --dry-run --Werror $(CPP_FILES)
	@echo "clang-format: $(words $(CPP_FILES)) files formatted"

format: env ## put Python, C++ and CUDA into the checked format
	@$(VENV_PYTHON) -m ruff check --fix --quiet . || true
	@$(VENV_PYTHON) -m ruff format .
	@.venv/bin/clang-format -i $(CPP_FILES)

doctor: env ## versions, what was built, which path every op takes, and how to fix what is wrong
	@$(VENV_PYTHON) -m psis_d2 doctor

env: ## .venv with pinned packages and Detectron2
	@$(PYTHON) tools/setup_env.py --no-build

build: ## the same and the extension; PSIS_D2_NO_BUILD=1 leaves that out
	@$(PYTHON) tools/setup_env.py

clean: ## remove what was built, and caches; .venv, data and output stay
	@rm -rf build psis_d2.egg-info psis_d2/_C*.so .pytest_cache .ruff_cache
	@find psis_d2 tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf .venv
