# make demo: environment, then the main job on the built-in corpus. make test: environment, then the tests.
# make test-oldest, make test-newest: the tests on the oldest and the newest versions that pyproject.toml allows.
# make docs: generated pages and pictures, then the documentation site into site/.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TESTS := -m pytest -m "not slow and not gpu" -n 2 --dist loadgroup

.PHONY: demo test test-oldest test-newest lint docs clean
demo: $(STAMP)
	$(BIN)/lowrise train
	@printf '\nNext, with this environment active (. %s/bin/activate):\n' '$(VENV)'
	@printf '  %s\n' 'lowrise generate runs/RUN --prompt "def "    (RUN: the folder above)' \
		'lowrise train --data.source YOUR-TEXTS/ --run runs/mine' 'lowrise export runs/mine'

test: $(STAMP) lint
	$(BIN)/python $(TESTS)

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python $(TESTS)

test-newest: $(VENV)-newest/.installed
	$(VENV)-newest/bin/python $(TESTS)

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
	$(call install,$(VENV),--constraint constraints.txt)

$(VENV)-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(call install,$(VENV)-oldest,--constraint constraints-oldest.txt)

# What the index has today; torch is upgraded too, since the environment may be there.
$(VENV)-newest/.installed: pyproject.toml
	$(call install,$(VENV)-newest,--upgrade --upgrade-strategy eager)

define install
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip
	$(1)/bin/python -m pip install --quiet $(2) torch
	$(1)/bin/python -m pip install --quiet $(2) --editable ".[dev]"
	touch $(1)/.installed
endef

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist site .pytest_cache .mypy_cache .ruff_cache
