# `make demo` and `make test` do all set-up themselves, virtual environment included.
PYTHON ?= python3
VENV ?= .venv
# Test processes, of one thread each.
WORKERS ?= auto
# The torch build to install, before anything else; on a GPU machine `make TORCH=torch` takes the newest CUDA build.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
LATEST := .venv-latest
LOWEST := .venv-lowest
# On top of $(VENV), so each has one of its own.
DEEPSPEED := $(VENV)-deepspeed
PYTEST := -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not long and not deepspeed"
# Which says that DeepSpeed is asked for, so that its tests fail without it.
DEEPSPEED_PYTEST := DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(DEEPSPEED)/bin/python -m pytest --durations=10
READY := $(VENV)/.ready-$(subst /,_,$(TORCH))
# Parts that the paper's equations live in: every branch of them is tested.
FULLY_COVERED := tgo_trl/losses/*,tgo_trl/labels/*,tgo_trl/noise/*

.PHONY: help setup demo frontier paper-table ablations docs test coverage test-slow test-long test-latest test-lowest test-deepspeed pins lint types benchmark benchmark-gpu clean

help:
	@echo "make demo         align a small pipeline of handwritten digits, and compare with SFT (about 6 minutes)"
	@echo "make frontier     the tables of docs/results_tables.md: methods along their strength (an hour and a half on two cores)"
	@echo "make paper-table  every loss in both worlds, tuned alike (an hour and a half on two cores)"
	@echo "make ablations    what threshold, weights and temperature do (an hour on two cores)"
	@echo "make test         ruff, mypy --strict, pytest (under 10 minutes)"
	@echo "make coverage     the same, and which lines the tests run (half as long again)"
	@echo "make docs         the documentation as a site, in outputs/docs/html (needs Python 3.11)"
	@echo "make test-slow    the tests that take minutes"
	@echo "make test-long    commands killed at many points, and benchmarks at a small size"
	@echo "make test-latest  the tests on the newest versions that pyproject.toml allows, and what differs from the pins"
	@echo "make test-lowest  the tests on the lower bounds of pyproject.toml"
	@echo "make test-deepspeed  all tests that need DeepSpeed, of which make test runs two"
	@echo "make pins         hold constraints.txt to the versions that test-latest installed"
	@echo "make benchmark    the cost of a trainer step beside a bare PyTorch loop"
	@echo "make benchmark-gpu  steps of published networks on this GPU, beside a bare loop (goes on where it ended)"
	@echo "make clean        remove the virtual environments and what the demo wrote"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	$(BIN)/python examples/digits/demo.py --output_dir outputs/digits

frontier: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.frontier --output_dir outputs/frontier

paper-table: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.paper_table --output_dir outputs/paper_table

ablations: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablations --output_dir outputs/ablations

docs: $(READY)
	$(BIN)/python -m docs.site.build

# mypy takes half a minute of one core: it runs beside the tests, and what it says follows what they say.
define TEST_AND_TYPE
$(BIN)/python -m mypy > $(VENV)/.types 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) --durations=10 $(1); tested=$$?; \
	wait $$types; typed=$$?; cat $(VENV)/.types; exit $$((tested | typed))
endef

test: lint $(DEEPSPEED)/.ready
	$(call TEST_AND_TYPE)
	$(DEEPSPEED_PYTEST) tests/test_deepspeed.py

coverage: lint $(DEEPSPEED)/.ready
	$(call TEST_AND_TYPE,--cov --cov-report=)
	$(DEEPSPEED_PYTEST) tests/test_deepspeed.py
	$(BIN)/python -m coverage report --fail-under=90
	$(BIN)/python -m coverage report --include="$(FULLY_COVERED)" --fail-under=100

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow --durations=10

test-long: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m long --durations=10

# Newest of everything, but for torch.
test-latest:
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager "$(TORCH)" --editable ".[dev]"
	OMP_NUM_THREADS=1 $(LATEST)/bin/python $(PYTEST); status=$$?; \
		$(LATEST)/bin/python .ci/versions.py differences; exit $$status

# Lowest of each direct dependency, but for torch.
test-lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet "$(TORCH)" packaging
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --editable .
	$(LOWEST)/bin/python .ci/versions.py lowest > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --editable ".[dev]"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(PYTEST)

# What DeepSpeed needs goes into an environment of its own, which finds all else where the other tests do.
$(DEEPSPEED)/.ready: $(READY)
	$(BIN)/python -m venv --clear $(DEEPSPEED)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(DEEPSPEED)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/layer.pth
	DS_BUILD_OPS=0 $(DEEPSPEED)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[deepspeed]"
	touch $@

test-deepspeed: $(DEEPSPEED)/.ready
	$(DEEPSPEED_PYTEST) -m deepspeed

# For older Pythons than that of $(LATEST), uv finds the newest that they can have.
pins:
	$(LATEST)/bin/python -m pip install --quiet uv
	$(LATEST)/bin/python .ci/versions.py installed > $(LATEST)/installed.txt
	$(LATEST)/bin/uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate --extra dev --extra deepspeed \
		--constraint $(LATEST)/installed.txt --output-file $(LATEST)/constraints.txt --upgrade pyproject.toml
	{ grep '^#' constraints.txt; grep -vE '^(torch|triton|(nvidia|cuda)-.*)==' $(LATEST)/constraints.txt; } \
		> $(LATEST)/pins.txt
	mv $(LATEST)/pins.txt constraints.txt

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY)
	$(BIN)/python -m mypy

benchmark: $(READY)
	$(BIN)/python -m benchmarks.step_overhead

benchmark-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu_speed

clean:
	rm -rf $(VENV) $(LATEST) $(LOWEST) $(DEEPSPEED) outputs
