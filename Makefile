# Two commands for a bare machine: `make quickstart` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STEPS ?=
SEED ?= 0
CHAOS_SEED ?= 0
STUDY ?= vlm
ONLY ?=

.PHONY: quickstart install test lint slow bench prove chaos clean

quickstart: $(STAMP)
	$(BIN)/mmrl quickstart vlm --seed $(SEED) $(if $(STEPS),--steps $(STEPS))

install: $(STAMP)

$(STAMP): pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some minutes, about 7 GB on Linux"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n 2 --dist worksteal

slow: $(STAMP)
	$(BIN)/pytest -m slow

# 20 random kills, then 1,000 random configurations and record files; some 15 minutes. docs/faults.md
chaos: $(STAMP)
	MMRL_CHAOS_SEED=$(CHAOS_SEED) OMP_NUM_THREADS=1 $(BIN)/pytest -m slow tests/faults/test_chaos.py
	MMRL_FUZZ_EXAMPLES=1000 OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults/test_fuzz_configs.py tests/faults/test_fuzz_records.py

# Learning studies over seeds with controls, into docs/results.md; about half an hour. Stopped, it goes on where it was.
prove: $(STAMP)
	$(BIN)/python studies/prove.py --study $(STUDY)

# Beside the peers, which only this target installs; one part again: make bench ONLY="step cost"
bench: .venv/.benchmark
	$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY))

.venv/.benchmark: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
