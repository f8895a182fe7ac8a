# `make demo` and `make test` work on a fresh machine with Python 3.10 to 3.14; both install what they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help demo install test test-slow test-lowest test-page lint

# The first target is what `make` alone does.
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: install  ## train two small models on synthetic radiographs and compare them: minutes on a laptop
	$(BIN)/python scripts/demo.py

install: $(VENV)/installed  ## make a virtual environment in .venv and install the requirements
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info < (3, 15) else \
		"found Python %d.%d, expected 3.10 to 3.14: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

# A worker takes a core and about 1 GiB, and whole files, whose fixtures then run once; above four little is gained.
WORKERS ?= logical
PARALLEL := -n $(WORKERS) --maxprocesses 4 --dist loadfile

# What asserts seconds runs after the rest, alone.
test: install  ## the quick tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not timing"
	$(BIN)/python -m pytest -m "timing and not slow"

test-slow: install  ## the long tests
	$(BIN)/python -m pytest $(PARALLEL) --no-loadscope-reorder --durations=15 -m "slow and not timing"
	$(BIN)/python -m pytest -m "slow and timing"

# The quick suite with the lowest versions that requirements.txt names; they have wheels for Python 3.10 to 3.12.
LOWEST := $(VENV)-lowest
test-lowest:  ## the quick tests with the lowest versions in requirements.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -r requirements.txt
	touch $(LOWEST)/installed
	$(MAKE) test VENV=$(LOWEST)

# Last, as it changes what is installed: gradio holds back pillow.
test-page: install  ## the tests of serve.py; also installs requirements-serve.txt
	$(BIN)/python -m pip install --quiet -r requirements-serve.txt
	$(BIN)/python -m pytest tests/scripts/test_serve.py

lint: install  ## check style and formatting with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages as HTML, in docs/_build/docs/index.html. Sphinx has a virtual environment of its own, without torch.
.PHONY: docs
DOCS := $(VENV)-docs
docs: $(DOCS)/installed  ## the pages of docs/ as HTML, in docs/_build
	$(DOCS)/bin/python -m sphinx -c docs -b html -W --keep-going -n -q . docs/_build
$(DOCS)/installed: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@
