# `make demo` and `make test` do all set-up themselves, virtual environment included.
PYTHON ?= python3
VENV ?= .venv
# Test processes, of one thread each.
WORKERS ?= auto
# The torch build to install, before anything else; on a GPU machine `make TORCH=torch` takes the newest CUDA build.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(subst /,_,$(TORCH))
# Parts that the paper's equations live in: every branch of them is tested.
FULLY_COVERED := tgo_trl/objectives.py,tgo_trl/thresholds.py,tgo_trl/weights.py,tgo_trl/processes/*

.PHONY: help setup demo test test-slow lint types benchmark clean

help:
	@echo "make demo       align a small pipeline of handwritten digits, and compare with SFT (about 6 minutes)"
	@echo "make test       ruff, mypy --strict, pytest with coverage (under 10 minutes)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make benchmark  the cost of a trainer step beside a bare PyTorch loop"
	@echo "make clean      remove the virtual environment and what the demo wrote"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/digits/demo.py --output_dir outputs/digits

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" --cov --cov-report= --durations=10
	$(BIN)/python -m coverage report --fail-under=90
	$(BIN)/python -m coverage report --include="$(FULLY_COVERED)" --fail-under=100

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --durations=10

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY)
	$(BIN)/python -m mypy

benchmark: $(READY)
	$(BIN)/python -m benchmarks.step_overhead

clean:
	rm -rf $(VENV) outputs
