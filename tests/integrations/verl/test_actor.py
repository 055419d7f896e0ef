"""The judge actor, without Ray around it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.integrations.verl.actor import JudgeActor, build_judge
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import JudgeConfig
from tests.support.arriving import sample


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The actor sets it in its process; put back afterwards."""
    caplog.set_level(logging.INFO, "mrjudge_reward")


CENTRED = "tests.support.verl_judges:centred_judge"


@pytest.mark.parametrize(
    ("config", "level", "weight"),
    [
        ({}, 0.0, 0.5),
        ({"centre": True}, 0.0, 0.0),
        ({"length_weight": 1.0}, 0.5, 1.0),
        ({"centre": True, "length_weight": 2.0}, 0.0, 2.0),
        ({"rating": "borda"}, 0.0, 0.5),
    ],
)
def test_a_judge_of_a_factory_keeps_its_shape_unless_the_run_sets_one(
    config: dict[str, Any], level: float, weight: float
) -> None:
    async def scenario() -> list[float]:
        actor = JudgeActor(JudgeConfig(model="x", **config), VerlSettings(factory=CENTRED), False)
        answers = [sample(None, "x" * (2 + place)) for place in range(4)]
        return [scored.reward for scored in await actor.join_share(answers, 0, 1)]

    rewards = asyncio.run(scenario())
    assert rewards == pytest.approx([level - weight * (place - 1.5) / 3.5 for place in range(4)])


def test_anchors_that_a_judge_of_a_factory_takes_out_again_are_refused() -> None:
    build_judge(JudgeConfig(model="x"), VerlSettings(factory=CENTRED))
    with pytest.raises(ConfigError, match="anchor_field='a' gives rewards a level, and centre takes it out again"):
        build_judge(JudgeConfig(model="x"), VerlSettings(factory=CENTRED, anchor_field="a"))
