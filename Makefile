PYTHON ?= python3
BIN := .venv/bin
export NO_ALBUMENTATIONS_UPDATE := 1
# Where it is set, as in many container images, every process compiles 4,000 modules of torch and others again: 12 s of a processor.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help quickstart test pytest lint audit clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

quickstart: .venv/.installed  ## set up .venv and fine-tune on the bundled images (a few minutes on a CPU)
	$(BIN)/tlkit finetune recipes/quickstart.yaml

test: .venv/.installed-dev  ## set up .venv, then lint and types beside the tests
	$(MAKE) --jobs=2 lint pytest

pytest: export HF_HUB_OFFLINE := 1
pytest: .venv/.installed-dev
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

audit: .venv/.installed-dev  ## ask the network whether a pinned package has a known hole (not part of test)
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:  ## remove .venv, builds and caches; runs/ and data/ stay
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

# The stamps keep a second run from installing anything. Without bytecode of 23,000 files, of which few are ever imported.
INSTALL := $(BIN)/pip install --quiet --no-compile -c constraints.txt

.venv/.made:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	    "tlkit needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is %d.%d.\n  Name another one: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	@echo 'Setting up .venv; with PyTorch this takes some minutes.'
	$(INSTALL) -e '.[offline]'
	@touch $@

.venv/.installed-dev: .venv/.made pyproject.toml constraints.txt
	@echo 'Setting up .venv; with PyTorch this takes some minutes.'
	$(INSTALL) -e '.[adapters,offline,export,hub,mlflow,openvino,parquet,postgresql,search,serve,stream,wandb,dev]'
	@touch .venv/.installed $@
