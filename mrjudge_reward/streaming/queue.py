"""A judge behind an event loop: work that comes one by one is judged in batches, in threads, never in the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from mrjudge_reward.engines.cancelling import Cancellation
from mrjudge_reward.errors import EngineError, MRJudgeError
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.comparisons import Asked
from mrjudge_reward.judging.early import EarlyComparisons
from mrjudge_reward.types import Group, Judgement

from .log import StreamMonitor

logger = logging.getLogger(__name__)

LANES = 32
"""Batches judged side by side where the engine takes calls from several threads; elsewhere one."""

_CLOSED = "the judge was closed"


@dataclass(eq=False)
class _Work:
    done: asyncio.Future[list[Judgement]]
    asked: Sequence[Asked] = ()
    groups: Sequence[Group] = ()
    early: Sequence[EarlyComparisons | None] = field(default_factory=list)


class JudgingQueue:
    """Judges what is handed in. Work that comes while all lanes are busy goes into one batch.

    Args:
        build: makes the judge; called in a thread with the first work, and again if it raised.
        deadline_s: seconds that work may take, waiting for a lane included.
        log: of what is judged, with canaries that are judged along; None for neither.
    """

    def __init__(self, build: Callable[[], Judge], deadline_s: float, log: StreamMonitor | None = None) -> None:
        self.judge: Judge | None = None
        self.log = log if log is not None else StreamMonitor()
        self._build = build
        self._deadline_s = deadline_s
        self._waiting: list[_Work] = []
        self._busy = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(LANES, "mrjudge-lane")

    async def ask_early(self, asked: Sequence[Asked]) -> None:
        """Ask comparisons of groups that are still arriving, or nothing, which only makes the judge ready.

        What goes wrong here is logged, and will show again with the whole group.
        """
        try:
            await self._submit(_Work(asyncio.get_running_loop().create_future(), asked=asked))
        except Exception as error:  # noqa: BLE001
            logger.warning("asking early failed: %s: %s", type(error).__name__, error)

    async def judge_groups(
        self, groups: Sequence[Group], early: Sequence[EarlyComparisons | None] | None = None
    ) -> tuple[Judge, list[Judgement]]:
        """Judge groups in one batch.

        Returns:
            Who judged, and a judgement per group.

        Raises:
            MRJudgeError: whatever the judge raised; an ``EngineError`` if it took too long.
        """
        begun = list(early) if early is not None else [None] * len(groups)
        judgements = await self._submit(_Work(asyncio.get_running_loop().create_future(), (), groups, begun))
        assert self.judge is not None
        return self.judge, judgements

    async def _submit(self, work: _Work) -> list[Judgement]:
        if self._closed:
            raise EngineError(_CLOSED)
        self._waiting.append(work)
        asyncio.get_running_loop().call_soon(self._start)  # whatever else comes in this turn of the loop joins
        try:
            return await asyncio.wait_for(work.done, self._deadline_s)
        except TimeoutError:
            raise EngineError(f"the judge did not finish within {self._deadline_s:g} s (judge_deadline_s)") from None
        finally:
            if work in self._waiting:
                self._waiting.remove(work)

    def _start(self) -> None:
        several = self.judge is not None and self.judge.engine.concurrent_calls
        while self._waiting and self._busy < (LANES if several else 1):
            batch, self._waiting = self._waiting, []
            self._busy += 1
            task = asyncio.get_running_loop().create_task(self._serve(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, batch: list[_Work]) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._closed:
                raise EngineError(_CLOSED)
            judgements = iter(await loop.run_in_executor(self._threads, self._judge_governed, batch))
            for work in batch:
                answer = [next(judgements) for _ in work.groups]
                serve([work.done], answer)
        except asyncio.CancelledError:
            if not self._closed:
                raise
            refuse((work.done for work in batch), EngineError(_CLOSED))  # before a thread had taken it up
        except Exception as error:  # noqa: BLE001  told to all that wait for it
            refuse((work.done for work in batch), error)
        finally:
            self._busy -= 1
            self._start()

    def _judge_governed(self, batch: Sequence[_Work]) -> list[Judgement]:
        with Cancellation().governs():  # nobody ends these calls, so that one group needs no thread beside this one
            return self._judge(batch)

    def _judge(self, batch: Sequence[_Work]) -> list[Judgement]:
        try:
            if self.judge is None:
                self.judge = self._build()
            if asked := [pair for work in batch for pair in work.asked]:
                try:
                    self.judge.ask_early(asked)
                except Exception as error:  # noqa: BLE001  the same comparisons are asked again with their group
                    logger.warning("asking early failed: %s: %s", type(error).__name__, error)
            groups = [group for work in batch for group in work.groups]
            begun = [early for work in batch for early in work.early]
            due = self.log.come(len(groups))
            with self.judge.engine.session() if due else nullcontext():  # a colocated judge wakes once for both
                judgements = self.judge.judge(groups, begun) if groups else []
                if due:
                    self.log.check(self.judge)
            return judgements
        except MRJudgeError:
            raise
        except (Exception, SystemExit) as error:  # some of these a future cannot carry, or end the loop
            raise EngineError(f"the judge raised {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Release the judge. Work that waits is refused, and work in progress is not waited for."""
        self._closed = True
        refuse((work.done for work in self._waiting), EngineError(_CLOSED))
        self._waiting = []
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.judge is not None:
            self.judge.close()


def refuse(waiters: Iterable[asyncio.Future[Any]], error: Exception) -> None:
    """Tell all that still wait what went wrong."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)


def serve(waiters: Iterable[asyncio.Future[Any]], result: Any) -> None:
    """Give all that still wait what they wait for."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(result)
