# make demo: environment, then the main job on the built-in corpus. make test: environment, then the tests.
# make docs: generated pages and pictures, then the documentation site into site/.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs clean
demo: $(STAMP)
	$(BIN)/lowrise train
	@printf '\nNext, with this environment active (. %s/bin/activate):\n' '$(VENV)'
	@printf '  %s\n' 'lowrise generate runs/RUN --prompt "def "    (RUN: the folder above)' \
		'lowrise train --data.source YOUR-TEXTS/ --run runs/mine' 'lowrise export runs/mine'

test: $(STAMP) lint
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/python docs/make_architecture.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/mkdocs build

# torch first and by its pin, so that no later requirement picks another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
