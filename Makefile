PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-slow lint benchmark docs fuzz

setup: $(VENV)/.dev

# One stamp per set of extras, renewed when pyproject.toml changes: the demo needs less than development.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[$*]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m gentok.demo

test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/site/public_api.py  # whether the public API breaks

benchmark: setup
	$(BIN)/python -m gentok.benchmark

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build -q -f .mkdocs.yml --strict  # outputs/site; warnings are errors

fuzz: setup
	$(BIN)/python tests/fuzz n=4000  # of every kind: about 50,000 in all, an hour or two; outputs/fuzz.json
