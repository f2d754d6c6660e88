# Every target creates .venv and installs what it needs first; a second call installs nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format tiny eval-tiny space bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# torch goes first and by itself: its exact pin decides which build (CPU or CUDA) the index at hand serves,
# and nothing that follows may replace it.
$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "multimood needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,eval,space,dev]'
	@touch $@

install: $(STAMP)  ## create .venv and install the package with its extras

demo: $(STAMP)  ## answer a freshly generated clip with history
	@$(VENV)/bin/multimood demo

test: $(STAMP)  ## run the tests, without the slow ones
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

test-all: $(STAMP)  ## run every test
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(STAMP)  ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(STAMP)  ## mend what lint complains about
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

tiny: $(STAMP)  ## train assets/multimood-tiny from nothing (up to 30 minutes on two cores)
	$(PY) -m multimood.training.tiny

eval-tiny: $(STAMP)  ## evaluate assets/multimood-tiny on fresh synthetic turns
	$(PY) -m multimood.evaluation.run_synthetic

space: $(STAMP)  ## open the Gradio page
	$(PY) -m multimood.spaces_demo.app

bench: $(STAMP)  ## run the benchmarks; results go to benchmarks/results
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(PY) benchmarks/bench_media.py
	$(PY) benchmarks/bench_memory.py
	$(PY) benchmarks/bench_judge.py

clean:  ## remove .venv, caches and build leftovers
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
