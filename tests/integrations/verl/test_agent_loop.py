"""What prompts carry after our agent-loop managers marked them; only the generating itself is faked."""

from __future__ import annotations

import asyncio
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager
from verl.utils import tensordict_utils

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl's trainer tells of every engine that is not installed
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ

    from mrjudge_reward.integrations.verl.agent_loop import (
        FIELD,
        GroupAgentLoopManager,
        GroupAgentLoopManagerV0,
        carried_fields,
    )
    from mrjudge_reward.integrations.verl.settings import VALIDATION, VerlSettings

ALWAYS = ("uid", "data_source", FIELD, VALIDATION)
ROLLOUT = SimpleNamespace(n=8, val_kwargs=SimpleNamespace(n=2))


def marked(monkeypatch: pytest.MonkeyPatch, prompts: TensorDict, carried: tuple[str, ...] = ()) -> TensorDict:
    """What reaches verl's own manager."""
    seen: list[TensorDict] = []
    monkeypatch.setattr(AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: seen.append(prompts))
    manager = object.__new__(GroupAgentLoopManager)
    manager.rollout_config, manager.carried = ROLLOUT, carried
    manager.generate_sequences(prompts)
    return seen[0]


def prompts(**fields: Any) -> TensorDict:
    chats = np.empty(3, dtype=object)
    chats[:] = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
    return tensordict_utils.get_tensordict(
        {"uid": np.array(["a", "b", "c"], dtype=object), "raw_prompt": chats, **fields}
    )


@pytest.mark.parametrize(
    ("fields", "settings", "sizes"),
    [
        ({}, {}, [8, 8, 8]),
        ({}, {"validate": True}, [2, 2, 2]),
        ({}, {"validate": False}, [8, 8, 8]),
        ({"__rollout_n__": [4, 2, 3]}, {"validate": True}, [4, 2, 3]),
        ({"__rollout_n__": np.array([4, 2, 3])}, {}, [4, 2, 3]),
        ({"__rollout_n__": np.array([4, 2, 3], dtype=object)}, {}, [4, 2, 3]),
        ({"__rollout_n__": torch.tensor([4, 2, 3])}, {}, [4, 2, 3]),
        ({}, {"__rollout_n__": 5}, [5, 5, 5]),  # verl's worker takes one for all as well
    ],
    ids=str,
)
def test_every_prompt_says_how_large_its_group_is(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], settings: dict[str, Any], sizes: list[int]
):
    batch = prompts(**fields)
    for key, value in settings.items():
        tensordict_utils.assign_non_tensor_data(batch, key, value)
    keys = set(batch.keys())
    found = marked(monkeypatch, batch)
    assert tensordict_utils.get(found, FIELD) == sizes
    assert set(found.keys()) == keys | {FIELD, VALIDATION}
    assert tensordict_utils.get(found, VALIDATION) == [settings.get("validate", False)] * 3
    read = []
    for chunk in found.chunk(2):  # as verl cuts it over its workers, and as a worker reads a row
        stack = chunk.get(FIELD)
        assert isinstance(stack, NonTensorStack)
        read += [stack[row].data for row in range(len(chunk))]
    assert read == sizes
    assert all(type(size) is int for size in read)


@pytest.mark.parametrize(("validate", "size"), [(False, 8), (True, 2)])
def test_with_the_v0_trainer_every_row_says_so(monkeypatch: pytest.MonkeyPatch, validate: bool, size: int):
    async def generate(self: Any, rows: DataProto) -> DataProto:
        return rows

    monkeypatch.setattr(AgentLoopManager, "generate_sequences", generate)
    manager = object.__new__(GroupAgentLoopManagerV0)
    manager.rollout_config = ROLLOUT
    rows = DataProto(
        batch=TensorDict({"x": torch.zeros(4, 1)}, batch_size=4),
        non_tensor_batch={"uid": np.array(list("aabb"), dtype=object)},
        meta_info={"validate": validate},
    )

    async def inside() -> DataProto:
        return await manager.generate_sequences(rows)

    for output in (manager.generate_sequences(rows), asyncio.run(inside())):
        assert output.non_tensor_batch[FIELD].tolist() == [size] * 4
        assert output.non_tensor_batch[VALIDATION].tolist() == [validate] * 4
        assert [chunk.non_tensor_batch[FIELD].tolist() for chunk in output.chunk(2)] == [[size] * 2] * 2


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ALWAYS),
        ({"reference_field": "reward_model.ground_truth"}, (*ALWAYS, "reward_model")),
        ({"anchor_field": "reward_model.earlier"}, (*ALWAYS, "reward_model")),
        (
            {"rubric_field": "rubric", "rule_weight": 1.0},
            ("uid", "data_source", FIELD, VALIDATION, "rubric", "reward_model", "extra_info"),
        ),
        (
            {"rubric_field": "extra_info.rubric", "rule_weight": {"a": 1.0}},
            ("uid", "data_source", FIELD, VALIDATION, "extra_info", "reward_model"),
        ),
    ],
    ids=str,
)
def test_prompts_carry_what_their_reward_may_need(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], names: tuple[str, ...]
):
    carried = carried_fields(VerlSettings(**settings))
    assert carried == names
    infos = np.empty(3, dtype=object)
    infos[:] = [{"rubric": "kind"}, {}, {"rubric": "brief"}]
    found = marked(monkeypatch, prompts(extra_info=infos), carried)
    chats = tensordict_utils.get(found, "raw_prompt")
    for row, chat in enumerate(chats):
        told = chat[0].pop("mrjudge")
        assert told == {"uid": "abc"[row], FIELD: 8, VALIDATION: False} | (
            {"extra_info": infos[row]} if "extra_info" in names else {}
        )
    assert list(chats) == [[{"role": "user", "content": text}] for text in ("one", "two", "three")]
