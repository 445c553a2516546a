# Everything runs from .venv, which `setup` makes. Paths are relative and programs are run by their
# console scripts, so that a checkout may lie in a folder with a space in its name (see setup.sh).

# One thread a process: engines, learner and Ray share the cores, and oversubscribing them costs
# vLLM on a CPU nine tenths of its speed.
export OMP_NUM_THREADS ?= 1
# vLLM takes 13 s of CPU time to import compiled, 31 s when every process compiles it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup quickstart test test-fast lint clean clean-all

help:
	@echo "make setup       install everything into .venv (about 2 minutes, again: at once)"
	@echo "make quickstart  train and use a judge on the embedded task, end with a report"
	@echo "make test        the whole test suite; three files at a time; ARGS='-k grpo' goes to pytest"
	@echo "make test-fast   three minutes of it: what to run before each commit"
	@echo "make lint        ruff, mypy and the order of imports"
	@echo "make clean       remove caches and build output, keep .venv and runs/"
	@echo "make clean-all   the same and .venv"

setup:
	@sh requirements/setup.sh

quickstart: setup
	.venv/bin/stepwiser quickstart

# Files go to as many workers. Three keep two cores busy, for tests that kill processes wait at
# times; each needs 3 GB.
WORKERS ?= 3
PYTEST = .venv/bin/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) $(ARGS)

test-fast: setup
	$(PYTEST) -m "not slow" $(ARGS)

lint: setup
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all: clean
	rm -rf .venv
