"""The path of one reward from verl, as CONTRIBUTING.md tells it: all of it but Ray, which carries samples to the actor."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from mrjudge_reward.integrations.verl.actor import JudgeActor
from tests.support.arriving import run
from tests.support.path import Path, written_path

from .test_reward_manager import manager, rows


@pytest.mark.parametrize("as_it_arrives", [False, True])
def test_a_reward_takes_the_path_that_is_written_down(as_it_arrives: bool, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "mrjudge_reward")  # as the actor sets it in its process; put back afterwards
    decide, called = written_path("verl")
    mine = manager(factory="tests.support.verl_judges:scripted_judge", as_it_arrives=as_it_arrives)
    actor = JudgeActor(mine.settings.judge_config(None), mine.settings, stepped=False)
    mine.client._handle = SimpleNamespace(exchange=SimpleNamespace(remote=actor.exchange))

    async def rewards_of(uid: str) -> list[float]:
        samples = [rows(list(range(size)), uid=uid, session_id=size, mrjudge_group_size=4) for size in (1, 2, 3, 4)]
        scored = await asyncio.gather(*map(mine.run_single, samples))
        return [one["reward_score"] for one in scored]

    async def twice() -> list[float]:
        await rewards_of("first")  # the judge is built, and what is asked once a judge
        path.begin()
        return await rewards_of("second")

    with Path() as path:
        rewards = run(twice)
    actor._groups._queue.close()
    assert len(set(rewards)) == 4
    if not as_it_arrives:
        early = "mrjudge_reward/judging/early.py"
        assert path.of(decide) == decide
        assert sorted(path.files) == sorted({*decide, *called} - {early})
    else:  # the judge is entered before the queue
        assert sorted(path.files) == sorted(decide + called)
    assert path.entered_again(decide) == set()
    assert len(decide) <= 14
