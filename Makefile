# `make demo` and `make test` work on a fresh machine with Python 3.10 or newer; both install what they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LAUNCH := $(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml
DEMO := runs/demo

.PHONY: demo test test-slow lint install clean-demo

install: $(VENV)/installed
$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
