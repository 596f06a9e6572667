# Each target sets itself up: it needs Python 3.10 or newer with pip and venv, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint ruff mypy

demo: $(INSTALLED)
	$(BIN)/python train.py --hps fashion

test: $(INSTALLED)
	$(BIN)/python -m pytest

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
