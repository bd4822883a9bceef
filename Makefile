# Everything sets itself up: a virtual environment in .venv, from pinned versions, once. No step needs another tool than
# Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Threads that wait give their core away, see infill_aug/cli.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint types bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[all]"
	touch $(READY)

demo: $(READY)  ## the main job, on pictures that everybody has
	$(BIN)/infill-aug demo $(ARGS)

test: $(READY)  ## all tests, doctests and notebooks
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY)  ## reading cost of the data loader; its table stands in docs/benchmarks.md
	$(BIN)/python recipes/bench_dataloader.py $(ARGS)

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
