"""The real embedded model, loaded once for all tests that need one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# So small a model gains nothing from threads, and on a busy machine threads that wait for each other cost 20 times.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray takes 15 off its workers' priority, so that whatever else runs on the machine would starve them until tests time out.
os.environ.setdefault("RAY_worker_niceness", "0")


LONGEST = (
    "test_verl_training.py", "test_vllm_engine.py", "test_verl_streaming.py", "test_verl_colocated.py",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where workers share the files among them (`make test`), the longest come first, or one would wait for the other."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def smol_path() -> str:
    from transformers.utils import logging

    from mrjudge_reward.embedded import embedded_model_path

    logging.disable_progress_bar()
    return str(embedded_model_path())


@pytest.fixture(scope="session")
def smol_tokenizer(smol_path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smol_path)


@pytest.fixture(scope="session")
def smol_engine(smol_path: str) -> Any:
    from mrjudge_reward.engines.transformers import TransformersEngine

    return TransformersEngine(smol_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster of this machine."""
    import ray

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
