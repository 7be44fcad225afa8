# Everything happens in .venv, from the pinned versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# One thread a worker: two workers with two threads each fight for the cores. A file goes to one worker, so that
# runs and imports that its tests share are made once.
TEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: demo docs field test test-slow lint bench help

help:
	@echo "make demo    install, then find wrong labels among real digits and fine-tune on them"
	@echo "make lint    install, then check style, types and the directions of imports"
	@echo "make test    make lint, then run the tests and the examples of the docstrings"
	@echo "make test-slow   install, then run the slow tests: kills, clusters, several processes"
	@echo "make docs    install, then build the documentation into site/"
	@echo "make field   install, then continue the comparisons of docs/research/ (needs DATA=folder)"
	@echo "make bench   install, then run the benchmark of the training step and write the tables of the documentation"

$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("hesstune needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev,lightning,noise,onnx,peft,search,text,tracking,transformers]'
	@touch $@

$(VENV)/.slow: $(VENV)/.dev
	$(PIP) --editable '.[ray]'
	@touch $@

demo: $(VENV)/.core
	@$(BIN)/hesstune demo

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(TEST) -n 2 --dist loadfile -m "not slow" --doctest-modules src tests

# A test that hangs says where: the stacks of its worker, after ten minutes.
test-slow: $(VENV)/.slow
	$(TEST) -n 2 -m slow -o faulthandler_timeout=600 tests

# DATA holds pacs, cifar10n, wrench, amazon_isbook, sst2 and mrpc; finished rows stay.
field: $(VENV)/.dev
	$(PIP) --editable '.[peers]'
	for name in heads methods votes rules deeper label_errors; do \
	  $(BIN)/python benchmarks/bench.py run benchmarks/configs/$$name.yaml --data $(DATA) || exit $$?; done
	$(BIN)/python benchmarks/bench.py tables

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py run benchmarks/configs/training_step.yaml --again
	$(BIN)/python benchmarks/bench.py tables

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
