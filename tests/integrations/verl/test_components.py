"""A rubric's criteria as verl's GDPO takes them: keys of a row, each normalised by itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from verl.trainer.ppo import core_algos

from mrjudge_reward.errors import InputError
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.rubrics.reading import rubric_at
from tests.streaming.test_criteria import KEYS, rows


def test_gdpo_normalises_each_criterion_by_itself():
    found = rows()
    columns = {key: np.array([row.info[key] for row in found], dtype=object) for key in KEYS}
    mask = torch.ones(4, 3)
    advantages, _ = core_algos.compute_gdpo_outcome_advantage(
        token_level_rewards=torch.zeros(4, 3), response_mask=mask, index=np.array(["g"] * 4, dtype=object),
        config={"gdpo_reward_keys": list(KEYS), "gdpo_reward_weights": [2.0, 1.0]}, non_tensor_batch=columns,
        batch={"prompts": torch.zeros(4, 2), "attention_mask": torch.ones(4, 5, dtype=torch.long)},
    )  # fmt: skip
    parts = torch.tensor([[float(value) for value in columns[key]] for key in KEYS])
    normal = (parts - parts.mean(1, keepdim=True)) / (parts.std(1, keepdim=True) + 1e-6)
    summed = (torch.tensor([2.0, 1.0])[:, None] * normal).sum(0)
    whole = summed[:, None].expand(4, 3)
    expected = (whole - whole.mean()) / whole.var().sqrt()
    assert torch.allclose(advantages, expected, atol=1e-3)
    assert advantages[:, 0].argmax() == 0


CRITERIA = [{"criterion": "Names it.", "points": 5, "tags": ["a"]}]


@pytest.mark.parametrize(
    "value",
    [CRITERIA, np.array(CRITERIA, dtype=object), {"criteria": CRITERIA}, tuple(CRITERIA)],
    ids=lambda v: type(v).__name__,
)
def test_a_row_s_rubric_may_be_criteria(value: Any):
    row = {"extra_info": {"rubric": value, "text": "Be kind.", "json": json.dumps(CRITERIA)}}
    assert rubric_at(row, "extra_info.rubric", by_criteria=True) == Rubric((Criterion("criterion 1", "Names it.", 5),))
    assert rubric_at(row, "extra_info.text", by_criteria=True) == "Be kind."
    assert rubric_at(row, "extra_info.json", by_criteria=True) == json.dumps(CRITERIA), "JSON text is read by the judge"
    assert rubric_at(row, "extra_info.none", by_criteria=True) is None
    with pytest.raises(InputError, match=r"extra_info\.bad, criterion 1: points must be"):
        rubric_at(
            {"extra_info": {"bad": [{"criterion": "Names it.", "points": 0}]}}, "extra_info.bad", by_criteria=True
        )
