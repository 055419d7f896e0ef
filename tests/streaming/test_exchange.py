"""Outcomes that lie ready for a client until it fetches them: none is lost, none comes twice, one call waits at most."""

from __future__ import annotations

import asyncio

from mrjudge_reward.streaming.exchange import Desk, Outcome
from mrjudge_reward.streaming.scores import Scored
from tests.support.arriving import run


def outcome(number: int) -> Outcome:
    return number, Scored(0.0, {})


def test_a_call_returns_with_all_that_is_ready_and_waits_where_nothing_is():
    async def scenario() -> list[list[int]]:
        desk, found = Desk(), []
        desk.put(outcome(1))
        desk.put(outcome(2))
        found.append(await desk.collect())
        waiting = asyncio.ensure_future(desk.collect())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        for number in (3, 4):
            desk.put(outcome(number))  # in one turn of the loop, so in one answer
        found.append(await waiting)
        return [[number for number, _ in one] for one in found]

    assert run(scenario) == [[1, 2], [3, 4]]


def test_a_later_call_sends_the_one_before_home():
    async def scenario() -> None:
        desk = Desk()
        calls = [asyncio.ensure_future(desk.collect()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert [call.done() for call in calls] == [True, True, False]
        desk.put(outcome(7))
        assert [[number for number, _ in await call] for call in calls] == [[], [], [7]]

    run(scenario)


def test_of_many_outcomes_and_calls_in_any_order_each_outcome_is_given_once():
    async def scenario() -> None:
        desk, given = Desk(), []

        async def client() -> None:
            while len(given) < 200:
                given.extend(number for number, _ in await desk.collect())

        clients = [asyncio.ensure_future(client()) for _ in range(2)]
        for number in range(200):
            desk.put(outcome(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        while len(given) < 200:
            await asyncio.sleep(0)
        for one in clients:
            one.cancel()
        assert sorted(given) == list(range(200))

    run(scenario)
