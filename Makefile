# Needs Python >= 3.11 and make, nothing else. Every target sets up its virtual environment when that is missing or
# older than what it is made from.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready
RUN := $(VENV)/bin/python
OUT := out/demo

.PHONY: help demo test check bench bench-gpu families slow clean
.DEFAULT_GOAL := help

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1 - /p' Makefile

demo: $(READY) ## explain a picture of the bundled model, on a CPU
	$(RUN) -m denoscope demo --out $(OUT) --overwrite
	@test -f $(OUT)/report.html
	@echo $(OUT)/report.html

test: $(READY) ## run the tests, the examples of docstrings and documents among them
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

check: $(READY) ## lint, check the format and the types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(READY) ## measure speed and fidelity
	$(RUN) benchmarks/run.py
	$(RUN) benchmarks/study.py

bench-gpu: $(READY) ## measure networks of the true sizes on a GPU, or small ones on a CPU
	$(RUN) benchmarks/gpu.py

families: $(READY) ## measure every small pipeline: recorded, replayed, decoded, explained
	$(RUN) benchmarks/families.py

slow: $(READY) ## run the tests that take minutes
	$(RUN) -m pytest -m slow

clean: ## remove the environment, the caches and everything made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp goes first and comes last, so that an interrupted setup starts over.
$(READY): pyproject.toml constraints.txt
	rm -f $(READY)
	rm -rf $(VENV)
	@echo "Setting up $(VENV); this takes some minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-input --disable-pip-version-check \
		--constraint constraints.txt --editable '.[imagenet,test,dev]'
	$(RUN) -m pip check
	touch $(READY)
