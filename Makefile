# Each target sets itself up: it needs Python 3.10 or newer with pip and venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 15

.PHONY: demo test test-long test-all lint ruff mypy

demo: $(INSTALLED)
	$(BIN)/python train.py --hps fashion

test: $(INSTALLED)
	$(PYTEST) -m "not long"

test-long: $(INSTALLED)
	$(PYTEST) -m long

test-all: $(INSTALLED)
	$(PYTEST)

lint: ruff mypy

ruff: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(INSTALLED)
	$(BIN)/mypy

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("vdvae needs Python 3.10 or newer; try make PYTHON=python3.12")'
	@echo "setting up .venv (once; PyTorch is large)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
