"""What a row is told of each criterion, where a judge judges all prompts by the same ones."""

from __future__ import annotations

import asyncio

import pytest

from mrjudge_reward import Judge, ScriptedEngine
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.streaming.scores import INFO_KEYS, Scored, criterion_keys, unjudged
from mrjudge_reward.types import EngineFailure, Request
from tests.support.arriving import World, run
from tests.support.criteria_judge import ByUtilities, shown_criteria

LONG, EXCLAIMS = "Is long.", "Exclaims."
RUBRIC = [
    {"title": "long", "description": LONG, "weight": 2},
    {"title": "no shouting", "description": EXCLAIMS, "weight": -1},
]
KEYS = ("judge_criterion_long", "judge_criterion_no_shouting")
ANSWERS = ["so long", "oh", "no!", "well, well!"]
HONEST = ByUtilities({LONG: lambda text: len(text) - 4.5, EXCLAIMS: lambda text: 2 * text.count("!") - 1})


def judge() -> Judge:
    return Judge(ScriptedEngine(HONEST), criteria="absolute", verdict="generate", rubric=RUBRIC)


def half_deaf() -> Judge:
    """It gives no verdict on the length of one answer."""

    def script(request: Request) -> str | EngineFailure:
        lost = any(LONG in told for told in shown_criteria(request).values()) and "\noh\n" in request.messages[-1].text
        return EngineFailure("timeout", transient=False) if lost else HONEST(request)

    return Judge(
        ScriptedEngine(script), criteria="absolute", verdict="generate", rubric=RUBRIC, max_failed_fraction=1.0
    )


def rows(build: object = judge) -> list[Scored]:
    async def scenario() -> list[Scored]:
        world = World(build)  # type: ignore[arg-type]
        return list(await asyncio.gather(*(world.send(number, answer) for number, answer in enumerate(ANSWERS))))

    return run(scenario)


def test_every_row_carries_its_reward_by_each_criterion_and_groups_begin_whole():
    found = rows()
    assert all(tuple(row.info) == (*INFO_KEYS, *KEYS) for row in found)
    assert [tuple(row.info[key] for key in KEYS) for row in found] == [(1, 0), (0, 0), (0, -1), (1, -1)]
    assert [row.reward for row in found] == pytest.approx([2 / 3, 0, -1 / 3, 1 / 3])


def test_an_unknown_reward_is_the_criterion_s_mean_in_its_group():
    found = rows(half_deaf)
    assert found[1].info[KEYS[0]] == pytest.approx(2 / 3)
    assert found[1].info[KEYS[1]] == 0


def test_a_row_that_is_not_judged_has_the_same_keys():
    settings = JudgeSettings(model="m", criteria="absolute", rubric=RUBRIC)
    assert tuple(unjudged(settings).info) == (*INFO_KEYS, *KEYS)
    assert tuple(unjudged(JudgeSettings(model="m")).info) == INFO_KEYS
    assert criterion_keys(JudgeSettings(model="m", criteria="absolute")) == {}, "each prompt has criteria of its own"
