# Two commands for a bare machine: `make quickstart` and `make test`. Both install into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STEPS ?=
SEED ?= 0

.PHONY: quickstart install test lint slow clean

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

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
