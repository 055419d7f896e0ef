"""The queue before a judge: batches, lanes, deadlines. Whatever the judge does, everyone gets an answer or an error."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, EngineError, JudgeUnreliableError
from mrjudge_reward.judge import Judge
from mrjudge_reward.streaming import queue as judging_queue
from mrjudge_reward.streaming.queue import JudgingQueue
from mrjudge_reward.types import EngineFailure, Group, Judgement, Reply, Request
from tests.support.arriving import PROMPT, TEXTS, numbers, run, scripted, taste

pytestmark = pytest.mark.timeout(60)


def group(key: str, size: int = 3) -> Group:
    return Group.of(PROMPT, [f"{text} of {key}" for text in TEXTS[:size]], key, names=numbers(size))


async def judged(queue: JudgingQueue, groups: list[Group]) -> list[Judgement]:
    return (await queue.judge_groups(groups))[1]


class Watched(ScriptedEngine):
    """An engine that takes its time and tells how many calls it had at once."""

    def __init__(self, concurrent: bool, barrier: threading.Barrier | None = None) -> None:
        super().__init__(ScriptedEngine.by_utility(taste).script)
        self.concurrent_calls = concurrent  # type: ignore[misc]
        self.barrier = barrier
        self.now = self.most = 0
        self._lock = threading.Lock()

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        if self.barrier is not None:
            self.barrier.wait(20)
        else:
            time.sleep(0.05)
        with self._lock:
            self.now -= 1
        return super()._serve(requests)


async def one_by_one(queue: JudgingQueue, groups: Sequence[Group]) -> list[list[Judgement]]:
    """Hand groups in, each in a turn of the loop of its own."""
    waiting = []
    for one in groups:
        waiting.append(asyncio.ensure_future(judged(queue, [one])))
        await asyncio.sleep(0.002)
    return await asyncio.gather(*waiting)


def test_what_comes_in_one_turn_of_the_loop_is_one_batch():
    judge = scripted(schedule="ring")

    async def scenario() -> list[list[Judgement]]:
        queue = JudgingQueue(lambda: judge, 30)
        await queue.ask_early(())
        return await asyncio.gather(*(judged(queue, [group(f"g{number}")]) for number in range(50)))

    found = run(scenario)
    engine: Any = judge.engine
    assert engine.batches == [50 * 6]
    for number, (judgement,) in enumerate(found):
        assert judgement.group.key == f"g{number}"
        assert judgement.scores_G == scripted(schedule="ring").judge([group(f"g{number}")])[0].scores_G


def test_lanes_run_side_by_side_where_the_engine_allows_it():
    engine = Watched(True, threading.Barrier(3))  # passes only with three calls in it at once

    async def scenario() -> None:
        queue = JudgingQueue(lambda: scripted(engine, schedule="ring"), 30)
        await queue.ask_early(())
        await one_by_one(queue, [group(f"g{number}") for number in range(3)])

    run(scenario)
    assert engine.most == 3


def test_there_is_one_lane_where_the_engine_does_not_allow_several():
    engine = Watched(False)

    async def scenario() -> list[list[Judgement]]:
        queue = JudgingQueue(lambda: scripted(engine, schedule="ring"), 30)
        await queue.ask_early(())
        return await one_by_one(queue, [group(f"g{number}") for number in range(12)])

    found = run(scenario)
    assert engine.most == 1
    assert len(engine.batches) < 12, "what waits for the lane goes into one batch"
    assert [judgement.group.key for (judgement,) in found] == [f"g{number}" for number in range(12)]


def test_never_more_lanes_than_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging_queue, "LANES", 2)
    engine = Watched(True)

    async def scenario() -> None:
        queue = JudgingQueue(lambda: scripted(engine, schedule="ring"), 30)
        await queue.ask_early(())
        await one_by_one(queue, [group(f"g{number}") for number in range(12)])

    run(scenario)
    assert engine.most <= 2


def test_the_judge_is_built_once_and_never_twice_at_a_time():
    built = 0

    def build() -> Judge:
        nonlocal built
        built += 1
        time.sleep(0.05)
        return scripted()

    async def scenario() -> None:
        queue = JudgingQueue(build, 30)
        await one_by_one(queue, [group(f"g{number}") for number in range(10)])

    run(scenario)
    assert built == 1


def exhausted() -> Judge:
    empty: Iterator[Judge] = iter(())
    return next(empty)


def exits() -> Judge:
    raise SystemExit(2)


def times_out() -> Judge:
    raise TimeoutError("socket")


def config_error() -> Judge:
    raise ConfigError("no such model")


@pytest.mark.parametrize(
    ("fails", "error", "message"),
    [
        (config_error, ConfigError, "no such model"),
        (times_out, EngineError, "the judge raised TimeoutError: socket"),
        (exhausted, EngineError, "the judge raised StopIteration"),  # no future can carry one
        (exits, EngineError, "the judge raised SystemExit: 2"),  # would end the loop
    ],
)
def test_a_judge_that_cannot_be_built_is_told_to_all_and_tried_again(fails: Any, error: Any, message: str):
    ways = [fails, fails, scripted]

    async def scenario() -> None:
        queue = JudgingQueue(lambda: ways.pop(0)(), 30)
        await queue.ask_early(())  # logged only
        waiting = [judged(queue, [group("a")]), judged(queue, [group("b")])]
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert type(outcome) is error
            assert message in str(outcome)
        (judgement,) = await judged(queue, [group("a")])
        assert judgement.scores_G == scripted().judge([group("a")])[0].scores_G

    run(scenario)


def test_a_judge_that_raises_is_told_to_all_of_its_batch_and_works_on(monkeypatch: pytest.MonkeyPatch):
    judge = scripted()
    errors: list[Exception] = [JudgeUnreliableError("noise"), RuntimeError("out of memory")]
    works = judge.judge

    def moody(*args: Any) -> list[Judgement]:
        if errors:
            raise errors.pop(0)
        return works(*args)

    monkeypatch.setattr(judge, "judge", moody)

    async def scenario() -> list[list[Any]]:
        queue = JudgingQueue(lambda: judge, 30)
        return [
            list(await asyncio.gather(*(judged(queue, [group(key)]) for key in "ab"), return_exceptions=True))
            for _ in range(3)
        ]

    first, second, third = run(scenario)
    assert [str(error) for error in first] == ["noise"] * 2
    assert all(isinstance(error, JudgeUnreliableError) for error in first)
    assert [str(error) for error in second] == ["the judge raised RuntimeError: out of memory"] * 2
    assert all(isinstance(error, EngineError) for error in second)
    assert [judgement.group.key for (judgement,) in third] == ["a", "b"]


@pytest.mark.parametrize("error", [EngineError("down"), ValueError("what?")], ids=["own", "foreign"])
def test_what_fails_ahead_does_not_fail_the_groups_of_its_batch(monkeypatch: pytest.MonkeyPatch, error: Exception):
    judge = scripted()

    def down(asked: Any) -> None:
        raise error

    monkeypatch.setattr(judge, "ask_early", down)

    async def scenario() -> list[Any]:
        queue = JudgingQueue(lambda: judge, 30)
        begun = judge.early(PROMPT, 3, "b", numbers(3))
        asked = [pair for name, text in zip("012", TEXTS, strict=False) for pair in begun.add(name, text)]
        assert asked
        return await asyncio.gather(queue.ask_early(asked), judged(queue, [group("a")]))

    _, (judgement,) = run(scenario)
    assert judgement.scores_G == scripted().judge([group("a")])[0].scores_G


def test_a_judge_that_hangs_ends_in_an_error_for_those_in_work_and_those_that_wait():
    let_go = threading.Event()
    judge = scripted(ScriptedEngine(lambda _: let_go.wait(20) and EngineFailure("late")), retries=0, audit=False)
    judge.engine.concurrent_calls = False  # type: ignore[attr-defined]

    async def scenario() -> None:
        queue = JudgingQueue(lambda: judge, 0.2)
        began = time.monotonic()
        asked = asyncio.ensure_future(judged(queue, [group("a")]))
        await asyncio.sleep(0.05)
        behind = asyncio.ensure_future(judged(queue, [group("b")]))
        for outcome in await asyncio.gather(asked, behind, return_exceptions=True):
            assert isinstance(outcome, EngineError)
            assert "within 0.2 s" in str(outcome)
        assert time.monotonic() - began < 5
        assert not queue._waiting
        let_go.set()
        await asyncio.sleep(0.1)
        (judgement,) = await judged(queue, [group("c")])
        assert judgement.scores_G == (None,) * 3, "the lane is free again"

    run(scenario)


def test_whoever_no_longer_waits_is_not_judged():
    engine = Watched(False)

    async def scenario() -> None:
        queue = JudgingQueue(lambda: scripted(engine, schedule="ring"), 30)
        working = asyncio.ensure_future(judged(queue, [group("a")]))
        await asyncio.sleep(0.005)
        cancelled = asyncio.ensure_future(judged(queue, [group("b")]))
        await asyncio.sleep(0)
        cancelled.cancel()
        await working
        await asyncio.gather(cancelled, return_exceptions=True)
        assert not queue._waiting

    run(scenario)
    assert not any("of b" in request.messages[-1].text for request in engine.requests)


def test_after_closing_everyone_is_refused_and_what_was_in_work_is_finished():
    engine = Watched(False)
    judge = scripted(engine)
    closed = []
    judge.close = lambda: closed.append(True)  # type: ignore[method-assign]

    async def scenario() -> None:
        queue = JudgingQueue(lambda: judge, 30)
        await queue.ask_early(())
        working = asyncio.ensure_future(judged(queue, [group("a")]))
        while not engine.most:  # no thread has taken it up
            await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(judged(queue, [group("b")]))
        await asyncio.sleep(0)
        queue.close()
        with pytest.raises(EngineError, match="closed"):
            await waiting
        with pytest.raises(EngineError, match="closed"):
            await judged(queue, [group("c")])
        await queue.ask_early(())  # logged
        assert len((await working)[0].scores_G) == 3

    run(scenario)
    assert closed


@pytest.mark.parametrize("handed_over", [False, True], ids=["before it is handed to the threads", "after"])
def test_work_that_no_thread_has_taken_up_is_refused_when_the_queue_is_closed(handed_over: bool):
    async def scenario() -> None:
        queue = JudgingQueue(scripted, 30)
        free = threading.Event()
        held = [queue._threads.submit(free.wait, 20) for _ in range(judging_queue.LANES)]
        handed = asyncio.ensure_future(judged(queue, [group("a")]))
        while not (queue._threads._work_queue.qsize() if handed_over else queue._busy):
            await asyncio.sleep(0)
        queue.close()
        began = time.monotonic()
        with pytest.raises(EngineError, match="closed"):
            await handed
        assert time.monotonic() - began < 15, "the deadline is half a minute"
        free.set()
        assert all(call.result() for call in held)

    run(scenario)


def test_no_groups_are_no_work():
    async def scenario() -> list[Judgement]:
        return await judged(JudgingQueue(scripted, 30), [])

    assert run(scenario) == []
