"""A judge behind a queue, groups on top, and a loop that is clean when a test has ended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judge import Judge
from mrjudge_reward.messages import as_messages
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.rewards import RewardShape, reward_group
from mrjudge_reward.streaming.batches import SharedBatches
from mrjudge_reward.streaming.groups import ArrivingGroups
from mrjudge_reward.streaming.queue import JudgingQueue
from mrjudge_reward.streaming.scores import Sample, Scored
from mrjudge_reward.types import Group

T = TypeVar("T")

_open: list[World] = []

PROMPT = as_messages("Which fruit?")
TEXTS = ("one apple", "two pears", "three plums", "four figs", "five dates", "six limes", "seven kiwis", "eight nuts")


def taste(text: str) -> float:
    return (sum(map(ord, text)) * 37 % 101) / 20


def scripted(engine: ScriptedEngine | None = None, **settings: Any) -> Judge:
    """A judge with a taste and a position bias, so that who meets whom in which slots shows in the rewards."""
    defaults = {"schedule": "adaptive", "verdict": "read", "audit": True}
    return Judge(engine or ScriptedEngine.by_utility(taste, 0.7), Choice(), **(defaults | settings))  # type: ignore[arg-type]


def sample(member: int | str | None, answer: str, size: int = 4, group: str = "g", **fields: Any) -> Sample:
    fields = {"prompt": PROMPT, "length": len(answer)} | fields
    return Sample(group, None if member is None else str(member), size, answer=answer, **fields)


def direct(judge: Judge, answers: Sequence[str], names: Sequence[str] | None = None, key: str = "g") -> list[float]:
    """The rewards of a whole group that is given to the judge itself."""
    (judgement,) = judge.judge([Group.of(PROMPT, answers, key, names=names)])
    rewards = reward_group(judgement, RewardShape(), "group_mean", [len(answer) for answer in answers]).rewards_G
    return [reward for reward in rewards if reward is not None]


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


class World:
    """ArrivingGroups and batches over one queue."""

    def __init__(
        self,
        build: Callable[[], Judge] = scripted,
        *,
        judge_deadline_s: float = 30.0,
        sizes: Sequence[int] = (4,),
        batch_deadline_s: float = 30.0,
        shape: RewardShape | None = None,
        **settings: Any,
    ) -> None:
        self.queue = JudgingQueue(build, judge_deadline_s)
        _open.append(self)
        self.arriving = ArrivingGroups(self.queue, shape=shape, **({"deadline_s": 30.0, "settle_s": 0.03} | settings))
        self.batches = SharedBatches(self.queue, shape=shape, sizes=sizes, deadline_s=batch_deadline_s)

    async def ready(self) -> World:
        await self.queue.ask_early(())
        return self

    def send(self, *args: Any, **fields: Any) -> asyncio.Task[Scored]:
        given = args[0] if isinstance(args[0], Sample) else sample(*args, **fields)
        return asyncio.get_running_loop().create_task(self.arriving.join(given))

    @property
    def engine(self) -> ScriptedEngine:
        assert self.queue.judge is not None
        engine = self.queue.judge.engine
        assert isinstance(engine, ScriptedEngine)
        return engine


def run(scenario: Callable[[], Awaitable[T]], allowed_timers: int = 0) -> T:
    """Run in a loop of its own, which must end without tasks, timers or exceptions that nobody retrieved."""
    problems: list[str] = []

    async def checked() -> T:
        loop: Any = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(str(context)))
        result = await scenario()
        for _ in range(300):
            if len(asyncio.all_tasks()) == 1:
                break
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len([timer for timer in loop._scheduled if not timer.cancelled()]) == allowed_timers
        return result

    gc.freeze()  # what was there before need not be walked through after each run: with torch loaded that takes a second
    try:
        result = asyncio.run(checked())
        while _open:
            _open.pop().queue.close()
        gc.collect()
    finally:
        gc.unfreeze()
    assert not problems
    return result
