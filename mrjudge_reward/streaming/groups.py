"""Groups that arrive one sample at a time: who belongs together, when a group is complete, who gets which reward.

A group that arrives knows nothing of any framework: samples go in, each with the identity of its
group and, where there is one, its own identity within it; rewards come out.

===========================  ==========================================================================================
what comes                   what happens
===========================  ==========================================================================================
the last missing member      the group is judged
a member that left           its session failed or gave no answer: as soon as all others are there they are judged, and
                             flagged as partial
no last member               at the deadline those present are judged; their rows are flagged as partial
a member once more           with the same answer it shares the reward; with another answer it takes the member's place
                             (whoever waits for the old one gets the group's mean, flagged as abstained)
a member of a judged group   known answer: the reward that was decided. New answer: it is judged together with the
                             others once more, and is the only one to get a reward from that; flagged as partial
samples without identities   the group counts as complete when it has enough different answers; if some are equal, which
                             may be copies made by padding, it is held open for a moment first
a judge that raises          all who wait get the error; who comes later begins anew. Where it raised over latecomers,
                             only these get the error
===========================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from mrjudge_reward.judging.comparisons import Asked
from mrjudge_reward.judging.early import EarlyComparisons
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.scoring.stats import JudgeStats

from .queue import JudgingQueue, refuse, serve
from .scores import INFO_KEYS, Sample, Scored, Scorer, group_of, image_bytes, prompt_bytes

__all__ = ["INFO_KEYS", "KEPT", "ArrivingGroups", "Sample", "Scored"]

logger = logging.getLogger(__name__)

KEPT = 1024
"""Judged groups that are remembered for latecomers, with their prompts and answers, at most."""

Waiter = asyncio.Future[Scored]


@dataclass(eq=False)
class _Seat:
    sample: Sample
    waiters: list[Waiter] = field(default_factory=list)
    replaced: list[Waiter] = field(default_factory=list)
    scored: Scored | None = None


@dataclass(eq=False)
class _Arriving:
    key: str
    size: int
    seats: dict[str, _Seat] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    taken: int = 0
    late: list[str] = field(default_factory=list)
    closed: bool = False
    judged: bool = False
    early: EarlyComparisons | None = None
    early_ended: bool = False
    asking: set[asyncio.Task[None]] = field(default_factory=set)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """What its texts and images take."""
        samples = [seat.sample for seat in self.seats.values()]
        shown = sum(image_bytes(part) for sample in samples for _, part in sample.images)
        texts = sum(len(sample.answer) for sample in samples)
        texts += sum(map(len, samples[0].anchors or ())) if samples else 0
        return shown + texts + (prompt_bytes(samples[0].prompt) if samples else 0)

    def seat_of(self, sample: Sample) -> _Seat | None:
        """The seat whose answer this sample brings again."""
        if sample.member is not None:
            seat = self.seats.get(sample.member)
            return seat if seat is not None and seat.sample.answer == sample.answer else None
        return next((seat for seat in self.seats.values() if seat.sample.answer == sample.answer), None)

    def take_seat(self, sample: Sample, waiter: Waiter) -> str:
        if self.seats:  # a prompt may hold images: all seats share the first one
            first = next(iter(self.seats.values())).sample
            sample = replace(sample, prompt=first.prompt, reference=first.reference, rubric=first.rubric)
            if sample.anchors == first.anchors:
                sample = replace(sample, anchors=first.anchors)
        name = sample.member if sample.member is not None else f"#{self.taken}"
        self.taken += 1
        self.absent.discard(name)
        old = self.seats.get(name)
        seat = self.seats[name] = _Seat(sample, [waiter])
        if old is not None:
            seat.replaced = old.replaced + old.waiters
        return name

    def drop_copies(self) -> None:
        """Equal answers without identity beyond the group's size share the seats of their twins."""
        kept: dict[str, _Seat] = {}
        extra = len(self.seats) - self.size
        for name, seat in self.seats.items():
            twin = next((other for other in kept.values() if other.sample.answer == seat.sample.answer), None)
            if extra > 0 and seat.sample.member is None and twin is not None:
                twin.waiters += seat.waiters
                extra -= 1
            else:
                kept[name] = seat
        self.seats = kept

    def stop_timers(self) -> None:
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()


class ArrivingGroups:
    """Collects samples into groups and rewards each. All methods belong to one event loop.

    Args:
        queue: judges.
        shape: how scores become rewards; None for what the judge's settings say.
        deadline_s: seconds from a group's first sample until those present are judged.
        settle_s: how long a group with equal answers without identity is held open, and latecomers are collected.
        as_it_arrives: ask the first comparisons of a group before it is complete.
        kept_bytes: of texts and images of judged groups that are remembered for latecomers; the oldest are forgotten.
    """

    def __init__(
        self,
        queue: JudgingQueue,
        *,
        shape: RewardShape | None = None,
        deadline_s: float = 1800.0,
        settle_s: float = 0.5,
        as_it_arrives: bool = True,
        kept_bytes: int = 2**29,
    ) -> None:
        self._queue = queue
        self._scorer = Scorer(queue, shape)
        self._deadline_s = deadline_s
        self._settle_s = settle_s
        self._as_it_arrives = as_it_arrives
        self._arriving: dict[str, _Arriving] = {}
        self._judged: deque[tuple[_Arriving, int]] = deque()
        self._kept_bytes, self._held_bytes = kept_bytes, 0
        self._warm = False
        self._asked: list[tuple[_Arriving, list[Asked]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def stats(self) -> JudgeStats:
        """Of everything judged."""
        return self._scorer.stats

    async def join(self, sample: Sample) -> Scored:
        """Bring a sample to its group and wait for its reward.

        Raises:
            MRJudgeError: if the judge raised.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._seat(sample, waiter)
        return await waiter

    def leave(self, group: str, member: str, size: int) -> None:
        """A member of a group of so many will not come; who is there already, or came and was judged, stays."""
        arriving = self._group(group, size)
        if not arriving.closed and member not in arriving.seats:
            arriving.absent.add(member)
            self._close_if_complete(arriving)

    # -- arriving -----------------------------------------------------------------------------------------------------

    def _group(self, key: str, size: int) -> _Arriving:
        arriving = self._arriving.get(key)
        if arriving is None:
            arriving = self._arriving[key] = _Arriving(key, size)
            arriving.timers["deadline"] = self._later(self._deadline_s, self._at_deadline, arriving)
            if not self._warm:  # the judge gets ready while rollouts go on
                self._warm = True
                self._spawn(self._queue.ask_early(()))
        return arriving

    def _seat(self, sample: Sample, waiter: Waiter) -> None:
        arriving = self._group(sample.group, sample.size)
        if sample.member is not None or arriving.closed:
            known = arriving.seat_of(sample)
            if known is not None:
                if known.scored is not None:
                    waiter.set_result(known.scored)
                else:
                    known.waiters.append(waiter)
                return
        again = sample.member in arriving.seats
        name = arriving.take_seat(sample, waiter)
        if arriving.closed:
            arriving.late.append(name)
            if arriving.judged:
                self._collect_late(arriving)
            return
        arriving.early_ended |= again
        self._ask_early(arriving, sample)
        self._close_if_complete(arriving)

    def _close_if_complete(self, arriving: _Arriving) -> None:
        present = len(arriving.seats) + len(arriving.absent)
        if present < arriving.size:
            return
        anonymous = [seat.sample.answer for seat in arriving.seats.values() if seat.sample.member is None]
        if present - len(anonymous) + len(set(anonymous)) >= arriving.size:
            self._close(arriving)
        else:
            if "settle" in arriving.timers:
                arriving.timers["settle"].cancel()
            arriving.timers["settle"] = self._later(self._settle_s, self._close, arriving)

    def _ask_early(self, arriving: _Arriving, newcomer: Sample) -> None:
        judge = self._queue.judge
        if not self._as_it_arrives or judge is None or judge.by_criterion or arriving.early_ended:
            return
        names = None if newcomer.member is None else [str(number) for number in range(arriving.size)]
        present = {seat.sample.member for seat in arriving.seats.values()}
        if not present <= (set(names) if names is not None else {None}):
            arriving.early_ended = True  # it is not known who will meet whom
            return
        arrived = [newcomer]
        if arriving.early is None:
            arriving.early = judge.early(
                newcomer.prompt,
                arriving.size,
                arriving.key,
                names,
                newcomer.reference,
                newcomer.rubric,
                newcomer.anchors,
            )
            arrived = [seat.sample for seat in arriving.seats.values()]
        asked = [pair for sample in arrived for pair in arriving.early.add(sample.member or "", sample.answer)]
        if asked:
            if not self._asked:
                asyncio.get_running_loop().call_soon(self._ask)
            self._asked.append((arriving, asked))

    def _ask(self) -> None:
        """What came in this turn of the loop, in one call. A group that is whole by now is judged as one."""
        asked, self._asked = [(arriving, pairs) for arriving, pairs in self._asked if not arriving.closed], []
        if asked:
            early = self._queue.ask_early([pair for _, pairs in asked for pair in pairs])
            task = asyncio.get_running_loop().create_task(early)
            for arriving, _ in asked:
                arriving.asking.add(task)

    def _at_deadline(self, arriving: _Arriving) -> None:
        logger.warning(
            "group %s: %d of %d members after %g s (deadline_s); these are judged, flagged as partial",
            arriving.key, len(arriving.seats), arriving.size, self._deadline_s,
        )  # fmt: skip
        self._close(arriving)

    # -- judging ------------------------------------------------------------------------------------------------------

    def _close(self, arriving: _Arriving) -> None:
        arriving.stop_timers()
        if not arriving.seats:  # all left
            del self._arriving[arriving.key]
            return
        if arriving.absent:
            logger.warning(
                "group %s: %d of %d members will not come (their sessions failed or gave no answer); the others are judged, "
                "flagged as partial", arriving.key, len(arriving.absent), arriving.size,
            )  # fmt: skip
        arriving.drop_copies()
        arriving.closed = True
        if not next(iter(arriving.seats.values())).sample.lasting:
            del self._arriving[arriving.key]  # the same prompt may come again at once
        self._spawn(self._judge(arriving, dict(arriving.seats)))

    async def _judge(self, arriving: _Arriving, seats: Mapping[str, _Seat]) -> None:
        try:
            if arriving.asking:
                await asyncio.wait(arriving.asking)
            scored = await self._score(arriving, seats, len(seats) < arriving.size, arriving.early)
        except Exception as error:  # noqa: BLE001  told to all that wait
            if self._arriving.get(arriving.key) is arriving:
                del self._arriving[arriving.key]
            _refuse([*seats.values(), *arriving.seats.values()], error)
            return
        finally:
            arriving.early = None
            arriving.asking.clear()
        _hand_out(seats.values(), scored, _mean(scored))
        arriving.judged = True
        if arriving.late:
            self._collect_late(arriving)
        if self._arriving.get(arriving.key) is arriving:
            self._remember(arriving)

    def _remember(self, judged: _Arriving) -> None:
        self._judged.append((judged, judged.held_bytes))
        self._held_bytes += judged.held_bytes
        while self._judged and (len(self._judged) > KEPT or self._held_bytes > self._kept_bytes):
            oldest, size = self._judged.popleft()
            self._held_bytes -= size
            if self._arriving.get(oldest.key) is oldest:
                del self._arriving[oldest.key]

    def _collect_late(self, arriving: _Arriving) -> None:
        if "late" not in arriving.timers:
            arriving.timers["late"] = self._later(self._settle_s, self._close_late, arriving)

    def _close_late(self, arriving: _Arriving) -> None:
        del arriving.timers["late"]
        late, arriving.late = set(arriving.late), []
        logger.warning("group %s: %d came after it was judged, and are judged with it", arriving.key, len(late))
        self._spawn(self._judge_late(arriving, dict(arriving.seats), late))

    async def _judge_late(self, arriving: _Arriving, seats: Mapping[str, _Seat], late: set[str]) -> None:
        newcomers = {name: seat for name, seat in seats.items() if name in late}
        try:
            scored = await self._score(arriving, seats, partial=True)
        except Exception as error:  # noqa: BLE001  told to all that wait
            for name, seat in newcomers.items():
                if arriving.seats.get(name) is seat:
                    del arriving.seats[name]
            _refuse(newcomers.values(), error)
            return
        results = dict(zip(seats, scored, strict=True))
        _hand_out(newcomers.values(), [results[name] for name in newcomers], _mean(scored))

    async def _score(
        self, arriving: _Arriving, seats: Mapping[str, _Seat], partial: bool, early: EarlyComparisons | None = None
    ) -> list[Scored]:
        samples = [seat.sample for seat in seats.values()]
        names = tuple(seats) if all(sample.member is not None for sample in samples) else None
        group = group_of(arriving.key, samples, names)
        lengths_G = [sample.length for sample in samples]
        (scored,) = await self._scorer.score([group], [lengths_G], [partial], [samples[0].validation], [early])
        return scored

    def _later(self, seconds: float, what: Callable[[_Arriving], None], arriving: _Arriving) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, what, arriving)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _mean(scored: Sequence[Scored]) -> Scored:
    """What is told to whoever waits for an answer that was replaced: nothing is known about it."""
    mean = fmean(result.reward for result in scored)
    unknown = {"judge_reward": mean, "judge_score": math.nan, "judge_games": 0.0, "judge_abstained": 1.0}
    return Scored(mean, {**scored[0].info, **unknown})


def _hand_out(seats: Iterable[_Seat], scored: Sequence[Scored], mean: Scored) -> None:
    for seat, result in zip(seats, scored, strict=True):
        seat.scored = result
        for waiters, reward in ((seat.waiters, result), (seat.replaced, mean)):
            serve(waiters, reward)
        seat.waiters, seat.replaced = [], []


def _refuse(seats: Iterable[_Seat], error: Exception) -> None:
    for seat in seats:
        refuse(seat.waiters + seat.replaced, error)
        seat.waiters, seat.replaced = [], []
