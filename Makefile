# make quickstart   set up, then train a tiny model until it sees without zooming (minutes on two cores)
# make test         set up, then run the tests
# make check        linter, type checker, rules of the house
# make gpu          tests that need a GPU, then a short real training step on it
# Nothing is installed twice: a stamp in .venv remembers what was installed from which pyproject.toml.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
VENV := .venv
BIN := $(VENV)/bin
RECIPE := tiny/vision_opd

.PHONY: quickstart test test-slow check gpu clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.foveate-base
	$(BIN)/foveate train $(RECIPE) --run runs/quickstart

test: $(VENV)/.foveate-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.foveate-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.foveate-dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p foveate
	$(BIN)/python -m pytest -q tests/test_rules.py tests/test_packaging.py

gpu: $(VENV)/.foveate-dev
	$(BIN)/python -m pytest -m gpu
	$(BIN)/foveate doctor
	$(BIN)/foveate train $(RECIPE) steps=3 eval=null checkpoint.best_view=null model.device=cuda --run runs/gpu --fresh

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
		{ echo "foveate needs Python 3.11 or newer; found $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.foveate-base: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.foveate-dev: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -e ".[dev]"
	touch $(VENV)/.foveate-base $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
