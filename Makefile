# `make demo` and `make test` work on a fresh machine with Python 3.10 to 3.14; both install what they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LAUNCH := $(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml
DEMO := runs/demo

.PHONY: install test test-slow test-lowest test-page lint demo

install: $(VENV)/installed
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
test: install
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not timing"
	$(BIN)/python -m pytest -m "timing and not slow"

test-slow: install
	$(BIN)/python -m pytest $(PARALLEL) -m "slow and not timing"
	$(BIN)/python -m pytest -m "slow and timing"

# The quick suite with the lowest versions that requirements.txt names; they have wheels for Python 3.10 to 3.12.
LOWEST := $(VENV)-lowest
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -r requirements.txt
	touch $(LOWEST)/installed
	$(MAKE) test VENV=$(LOWEST)

# Last, as it changes what is installed: gradio holds back pillow.
test-page: install
	$(BIN)/python -m pip install --quiet -r requirements-serve.txt
	$(BIN)/python -m pytest tests/scripts/test_serve.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages as HTML, in docs/_build/docs/index.html. Sphinx has a virtual environment of its own, without torch.
.PHONY: docs
DOCS := $(VENV)-docs
docs: $(DOCS)/installed
	$(DOCS)/bin/python -m sphinx -c docs -b html -W --keep-going -n -q . docs/_build
$(DOCS)/installed: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# On the synthetic sample: pretrain a small ViT-MAE, fine-tune it and a ResNet-18, compare them on the test split.
IMAGES := --data_dir sample_data --output_dir $(DEMO)
SMALL_VIT := --config_name vit-mae-tiny --image_size 64 --config_overrides \
	hidden_size=96,intermediate_size=384,num_hidden_layers=4,patch_size=8
FINE_TUNE := --lr_scheduler_type cosine --warmup_ratio 0.1 --evaluate_test

demo: install sample_data
	rm -rf $(DEMO)
	$(LAUNCH) scripts/run_mae_pretrain.py $(IMAGES)/mae $(SMALL_VIT) \
		--num_train_epochs 60 --per_device_train_batch_size 32 --learning_rate 1e-3
	$(LAUNCH) scripts/run_classification.py $(IMAGES)/mae-vit --model_name_or_path $(DEMO)/mae/model \
		$(FINE_TUNE) --num_train_epochs 30 --learning_rate 1e-3
	$(LAUNCH) scripts/run_classification.py $(IMAGES)/resnet-18 --config_name resnet-18 --image_size 64 \
		$(FINE_TUNE) --num_train_epochs 10 --learning_rate 1e-3
	$(BIN)/python scripts/report_study.py $(DEMO)
	@echo "What the autoencoder draws: $(DEMO)/mae/reconstructions.png"

sample_data: | install
	$(BIN)/python scripts/make_sample_data.py $@
