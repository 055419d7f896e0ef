"""How test files are dealt to workers, and what tests share: the embedded model, a Ray cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# A shell that starts pytest in the background has it ignore interrupts, and some tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# So small a model gains nothing from threads, and on a busy machine threads that wait for each other cost 20 times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray takes 15 off its workers' priority, so that whatever else runs on the machine would starve them until tests time out.
os.environ.setdefault("RAY_worker_niceness", "0")


pytest_plugins = ["tests.support.timings"]

VERL = "tests/integrations/verl"
TRL = "tests/integrations/trl"
TOGETHER = {f"{VERL}/test_{name}.py": "ray" for name in ("streaming", "colocated", "faults")}
"""Files that go to one worker, because they share what is dear: fixture ``cluster``."""

LONG = (
    f"{VERL}/test_training.py", "tests/engines/vllm/test_engine.py",
    "tests/recipes/test_run_cpu.py", *TOGETHER,
    "tests/recipes/test_recipe_configs.py", f"{TRL}/test_colocated.py", "tests/recipes/test_policy_recipes.py",
    "tests/recipes/test_recipes.py", "tests/recipes/test_train_sft.py", "tests/recipes/test_seeing.py",
    "tests/recipes/test_train_rl.py", f"{TRL}/test_two_ranks.py", f"{TRL}/test_trainers.py", "tests/test_docs.py",
)  # fmt: skip
"""They come first, so that no worker is left with one when the other has finished."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first. A name with an address in it differs between workers, and these would collect other tests."""
    assert not (shifting := [item.nodeid for item in items if " at 0x" in item.nodeid]), shifting

    def place(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[0]
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal whole files to workers, as ``--dist loadfile`` does, and what belongs together to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Dealer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0]
            return TOGETHER.get(name, name)

    return Dealer(config, log)


@contextmanager
def in_front(folder: str) -> Iterator[None]:
    """Processes that are started meanwhile have this folder of tests/support/ on their path, before all others."""
    paths = [str(Path(__file__).parent / "support" / folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


@pytest.fixture(scope="module")
def vllm_hidden() -> Iterator[None]:
    """Processes that are started meanwhile find neither vLLM nor wandb, which TRL imports where it finds them."""
    with in_front("vllm_hidden"):
        yield


@pytest.fixture(scope="session")
def smol_path() -> str:
    from transformers.utils import logging

    from mrjudge_reward.engines.embedded import embedded_model_path

    logging.disable_progress_bar()
    return str(embedded_model_path())


@pytest.fixture(scope="session")
def smol_tokenizer(smol_path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smol_path)


@pytest.fixture(scope="session")
def smol_engine(smol_path: str) -> Any:
    from mrjudge_reward.engines.local.engine import TransformersEngine

    return TransformersEngine(smol_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster of this machine."""
    import ray

    with in_front("quick_workers"):
        ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
