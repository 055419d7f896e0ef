"""Groups that arrive one sample at a time: who belongs together, when a group is complete, who gets which reward.

A *cohort* is a group still arriving. It knows nothing of any framework: samples go in, each with the identity of its
group and, where there is one, its own identity within it; rewards come out.

===========================  ==========================================================================================
what comes                   what happens
===========================  ==========================================================================================
the last missing member      the group is judged
no last member               at the deadline those present are judged; their rows are flagged as partial
a member once more           with the same answer it shares the reward; with another answer it takes the member's place
                             (whoever waits for the old one gets the group's mean, flagged as abstained)
a member of a judged group   known answer: the reward that was decided. New answer: it is judged together with the
                             others once more, and is the only one to get a reward from that; flagged as partial
samples without identities   the group counts as complete when it has enough different answers; if some are equal, which
                             may be copies made by padding, it is held open for a moment first
a batch in shares            complete when every worker has sent its share; copies at its end are recognised
a judge that raises          all who wait get the error; who comes later begins anew
===========================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mrjudge_reward.ahead import Ahead
from mrjudge_reward.errors import EngineError
from mrjudge_reward.ratings import RATINGS
from mrjudge_reward.rewards import RewardShape, reward_group
from mrjudge_reward.stats import JudgeStats
from mrjudge_reward.tally import position_consistency
from mrjudge_reward.types import Group, Judgement, Message

from .judging_queue import JudgingQueue

logger = logging.getLogger(__name__)

INFO_KEYS = (
    "judge_score",
    "judge_games",
    "judge_position_consistency",
    "judge_failed",
    "judge_abstained",
    "judge_partial",
    "judge_seconds",
)
"""What is told of every row, always all of it, each a float: its score (the group's mean where it has none), games it
took part in, share of mirrored comparisons of its group that agree (NaN where none was mirrored), share of its group's
comparisons that failed, whether (1 or 0) its score is unknown, whether its group was not whole, seconds of judging."""

KEPT = 4096
"""Judged groups that are remembered for latecomers."""


@dataclass(frozen=True)
class Sample:
    """One completion on its way to its group.

    Attributes:
        cohort: identity of the group.
        member: identity within the group; None where the framework gives none.
        size: how many belong to the group.
        prompt, reference, rubric: as in ``Group``; those of the first sample count.
        answer: the final answer.
        length: of the completion, in tokens.
        lasting: whether the identity belongs to this group alone. One made of the prompt does not: the same prompt may
            come again.
    """

    cohort: str
    member: str | None
    size: int
    prompt: tuple[Message, ...]
    answer: str
    length: int
    reference: str | None = None
    rubric: str | None = None
    lasting: bool = True


@dataclass(frozen=True)
class Scored:
    """A reward, and the values of ``INFO_KEYS``."""

    reward: float
    info: dict[str, float]


Waiter = asyncio.Future[Scored]


@dataclass
class _Seat:
    sample: Sample
    waiters: list[Waiter] = field(default_factory=list)
    replaced: list[Waiter] = field(default_factory=list)
    scored: Scored | None = None


@dataclass
class _Cohort:
    key: str
    size: int
    seats: dict[str, _Seat] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    closed: bool = False
    judged: bool = False
    ahead: Ahead | None = None
    ahead_ended: bool = False
    asking: set[asyncio.Task[None]] = field(default_factory=set)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)

    def seat_of(self, sample: Sample) -> _Seat | None:
        """The seat whose answer this sample brings again."""
        if sample.member is not None:
            seat = self.seats.get(sample.member)
            return seat if seat is not None and seat.sample.answer == sample.answer else None
        return next((seat for seat in self.seats.values() if seat.sample.answer == sample.answer), None)

    def take_seat(self, sample: Sample, waiter: Waiter) -> str:
        name = sample.member if sample.member is not None else f"#{len(self.seats)}"
        old = self.seats.get(name)
        seat = self.seats[name] = _Seat(sample, [waiter])
        if old is not None:
            seat.replaced = old.replaced + old.waiters
        return name

    def without_copies(self) -> dict[str, _Seat]:
        """The seats, less equal answers without identity beyond the group's size; those sit with their twins."""
        kept: dict[str, _Seat] = {}
        extra = len(self.seats) - self.size
        for name, seat in self.seats.items():
            twin = next((other for other in kept.values() if other.sample.answer == seat.sample.answer), None)
            if extra > 0 and seat.sample.member is None and twin is not None:
                twin.waiters += seat.waiters
                extra -= 1
            else:
                kept[name] = seat
        return kept

    def stop_timers(self) -> None:
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()


@dataclass
class _Batch:
    """A whole batch, handed in by several workers."""

    shares: dict[int, tuple[Sequence[Sample], asyncio.Future[list[Scored]]]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Cohorts:
    """Collects samples into groups and rewards each. All methods belong to one event loop.

    Args:
        queue: judges.
        shape: how scores become rewards.
        sizes: how large groups may be (training, validation); only for batches, to flag groups of another size.
        deadline_s: seconds from a group's first sample until those present are judged.
        settle_s: how long a group with equal answers without identity is held open, and latecomers are collected.
        as_it_arrives: ask the first comparisons of a group before it is complete.
    """

    def __init__(
        self,
        queue: JudgingQueue,
        *,
        shape: RewardShape = RewardShape(),
        sizes: Iterable[int] = (),
        deadline_s: float = 1800.0,
        settle_s: float = 0.5,
        as_it_arrives: bool = True,
    ) -> None:
        self.stats = JudgeStats()
        self._queue = queue
        self._shape = shape
        self._sizes = frozenset(sizes)
        self._deadline_s = deadline_s
        self._settle_s = settle_s
        self._as_it_arrives = as_it_arrives
        self._cohorts: OrderedDict[str, _Cohort] = OrderedDict()
        self._batch: _Batch | None = None
        self._warm = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- one by one ---------------------------------------------------------------------------------------------------

    async def join(self, sample: Sample) -> Scored:
        """Bring a sample to its group and wait for its reward.

        Raises:
            MRJudgeError: if the judge raised.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._seat(sample, waiter)
        return await waiter

    def _seat(self, sample: Sample, waiter: Waiter) -> None:
        cohort = self._cohorts.get(sample.cohort)
        if cohort is None:
            cohort = self._cohorts[sample.cohort] = _Cohort(sample.cohort, sample.size)
            cohort.timers["deadline"] = self._later(self._deadline_s, self._at_deadline, cohort)
            if not self._warm:  # the judge gets ready while rollouts go on
                self._warm = True
                self._spawn(self._queue.ask_ahead(()))
        if sample.member is not None or cohort.closed:
            known = cohort.seat_of(sample)
            if known is not None:
                if known.scored is not None:
                    waiter.set_result(known.scored)
                else:
                    known.waiters.append(waiter)
                return
        again = sample.member in cohort.seats
        name = cohort.take_seat(sample, waiter)
        if cohort.closed:
            cohort.late.append(name)
            if cohort.judged:
                self._collect_late(cohort)
            return
        cohort.ahead_ended |= again
        self._ask_ahead(cohort, sample)
        if len(cohort.seats) < cohort.size:
            return
        anonymous = [seat.sample.answer for seat in cohort.seats.values() if seat.sample.member is None]
        if len(cohort.seats) - len(anonymous) + len(set(anonymous)) >= cohort.size:
            self._close(cohort)
        else:
            if "settle" in cohort.timers:
                cohort.timers["settle"].cancel()
            cohort.timers["settle"] = self._later(self._settle_s, self._close, cohort)

    def _ask_ahead(self, cohort: _Cohort, newcomer: Sample) -> None:
        judge = self._queue.judge
        if not self._as_it_arrives or judge is None or cohort.ahead_ended:
            return
        names = [str(number) for number in range(cohort.size)]
        named = newcomer.member is not None
        if named and newcomer.member not in names:
            cohort.ahead_ended = True
            return
        arrived = [newcomer]
        if cohort.ahead is None:
            cohort.ahead = judge.ahead(
                newcomer.prompt, cohort.size, cohort.key, names if named else None, *_criteria(cohort)
            )
            arrived = [seat.sample for seat in cohort.seats.values()]
        asked = [pair for sample in arrived for pair in cohort.ahead.add(sample.member or "", sample.answer)]
        if asked:
            task = asyncio.get_running_loop().create_task(self._queue.ask_ahead(asked))
            cohort.asking.add(task)

    def _at_deadline(self, cohort: _Cohort) -> None:
        logger.warning(
            "group %s: %d of %d members after %g s (deadline_s); these are judged, flagged as partial",
            cohort.key, len(cohort.seats), cohort.size, self._deadline_s,
        )  # fmt: skip
        self._close(cohort)

    def _close(self, cohort: _Cohort) -> None:
        cohort.stop_timers()
        cohort.closed = True
        if not next(iter(cohort.seats.values())).sample.lasting:
            self._cohorts.pop(cohort.key, None)  # the same prompt may come again at once
        self._spawn(self._judge_cohort(cohort))

    async def _judge_cohort(self, cohort: _Cohort) -> None:
        seats = cohort.without_copies()
        if cohort.asking:
            await asyncio.wait(cohort.asking)
        try:
            group = self._group(cohort, seats)
            (judgement,) = await self._queue.judge_groups([group], [cohort.ahead])
            scored = self._scores(judgement, [seat.sample.length for seat in seats.values()], len(seats) < cohort.size)
        except Exception as error:  # noqa: BLE001  told to all that wait
            self._fail(cohort, error)
            return
        finally:
            cohort.ahead = None
        _hand_out(seats.values(), scored)
        cohort.judged = True
        while len(self._cohorts) > KEPT and (oldest := next(iter(self._cohorts.values()))).judged and not oldest.late:
            self._cohorts.pop(oldest.key)
        if cohort.late:
            self._collect_late(cohort)

    def _collect_late(self, cohort: _Cohort) -> None:
        if "late" not in cohort.timers:
            cohort.timers["late"] = self._later(
                self._settle_s, lambda cohort: self._spawn(self._judge_late(cohort)), cohort
            )

    async def _judge_late(self, cohort: _Cohort) -> None:
        names, cohort.late = cohort.late, []
        cohort.timers.pop("late", None)
        logger.warning("group %s: %d came after it was judged, and are judged with it", cohort.key, len(names))
        seats = dict(cohort.seats)
        try:
            (judgement,) = await self._queue.judge_groups([self._group(cohort, seats)])
            scored = self._scores(judgement, [seat.sample.length for seat in seats.values()], partial=True)
        except Exception as error:  # noqa: BLE001  told to all that wait
            self._fail(cohort, error)
            return
        late = [(seat, result) for (name, seat), result in zip(seats.items(), scored, strict=True) if name in names]
        _hand_out([seat for seat, _ in late], [result for _, result in late])

    def _fail(self, cohort: _Cohort, error: Exception) -> None:
        cohort.stop_timers()
        if self._cohorts.get(cohort.key) is cohort:
            del self._cohorts[cohort.key]
        for seat in cohort.seats.values():
            for waiter in seat.waiters + seat.replaced:
                if not waiter.done():
                    waiter.set_exception(error)

    @staticmethod
    def _group(cohort: _Cohort, seats: Mapping[str, _Seat]) -> Group:
        samples = [seat.sample for seat in seats.values()]
        names = tuple(seats) if all(sample.member is not None for sample in samples) else None
        answers = tuple(sample.answer for sample in samples)
        return Group(samples[0].prompt, answers, cohort.key, *_criteria(cohort), names)

    # -- a batch in shares ----------------------------------------------------------------------------------------------

    async def join_share(self, samples: Sequence[Sample], worker: int, workers: int) -> list[Scored]:
        """Bring a worker's share of a batch and wait for its rewards.

        Args:
            worker: whose share, from 0; shares follow each other in the batch in this order.
            workers: how many shares there are.

        Raises:
            MRJudgeError: if the judge raised, or the batch was given up for another one.
        """
        loop = asyncio.get_running_loop()
        if self._batch is not None and worker in self._batch.shares:
            self._give_up_batch(self._batch)
        if self._batch is None:
            self._batch = _Batch()
            self._batch.timer = loop.call_later(self._deadline_s, self._close_batch, self._batch, workers)
        waiter: asyncio.Future[list[Scored]] = loop.create_future()
        self._batch.shares[worker] = (samples, waiter)
        if len(self._batch.shares) == workers:
            self._close_batch(self._batch, workers)
        return await waiter

    def _give_up_batch(self, batch: _Batch) -> None:
        self._batch = None
        if batch.timer is not None:
            batch.timer.cancel()
        for _, waiter in batch.shares.values():
            if not waiter.done():
                waiter.set_exception(EngineError("another batch began before all workers had sent their share of this"))

    def _close_batch(self, batch: _Batch, workers: int) -> None:
        self._batch = None
        if batch.timer is not None:
            batch.timer.cancel()
        if len(batch.shares) < workers:
            logger.warning("%d of %d shares after %g s; these are judged", len(batch.shares), workers, self._deadline_s)
        self._spawn(self._judge_batch(batch, whole=len(batch.shares) == workers))

    async def _judge_batch(self, batch: _Batch, whole: bool) -> None:
        shares = [batch.shares[worker] for worker in sorted(batch.shares)]
        samples = [sample for share, _ in shares for sample in share]
        members = _by_cohort(samples)
        copies = 0
        if whole and not all(self._is_whole(len(indices)) for indices in members.values()):
            copies = _copied_tail(samples, len(shares))
            members = _by_cohort(samples[: len(samples) - copies])
        groups = []
        for key, indices in members.items():
            head = samples[indices[0]]
            answers = tuple(samples[index].answer for index in indices)
            groups.append(Group(head.prompt, answers, key, head.reference, head.rubric))
        try:
            judgements = await self._queue.judge_groups(groups)
            scored: dict[int, Scored] = {}
            for indices, judgement in zip(members.values(), judgements, strict=True):
                partial = not (whole and self._is_whole(len(indices)))
                lengths = [samples[index].length for index in indices]
                scored |= dict(zip(indices, self._scores(judgement, lengths, partial), strict=True))
        except Exception as error:  # noqa: BLE001  told to all that wait
            for _, waiter in shares:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        first = len(samples) - copies
        scored |= {first + number: scored[number % first] for number in range(copies)}
        results = iter(scored[index] for index in range(len(samples)))
        for share, waiter in shares:
            own = [next(results) for _ in share]
            if not waiter.done():
                waiter.set_result(own)

    # -- both -----------------------------------------------------------------------------------------------------------

    def _scores(self, judgement: Judgement, lengths: Sequence[int], partial: bool) -> list[Scored]:
        stats = JudgeStats.of([judgement])
        self.stats += stats
        assert self._queue.judge is not None
        neutral = 0.0 if self._shape.centre else RATINGS[self._queue.judge.rating].neutral or 0.0
        rewards = reward_group(judgement, self._shape, "group_mean", lengths, neutral)
        known = [score for score in judgement.scores_G if score is not None]
        middle = sum(known) / len(known) if known else neutral
        agreeing, mirrored = position_consistency(judgement.glances or judgement.played)
        if stats.failed or stats.abstained:
            logger.warning(
                "group %s: %d of %d judgements failed, %d of %d completions without a score; %s",
                judgement.group.key, stats.failed, stats.comparisons, stats.abstained, stats.candidates,
                ", ".join(f"{reason} ({count})" for reason, count in stats.reasons.most_common(3)) or "no comparison",
            )  # fmt: skip
        scored = []
        for index, (reward, score) in enumerate(zip(rewards.rewards_G, judgement.scores_G, strict=True)):
            assert reward is not None
            values = (
                middle if score is None else score,
                judgement.games_G[index],
                agreeing / mirrored if mirrored else math.nan,
                stats.failed / max(1, stats.comparisons),
                float(index in rewards.abstained),
                float(partial),
                judgement.seconds,
            )
            scored.append(Scored(reward, dict(zip(INFO_KEYS, values, strict=True))))
        return scored

    def _is_whole(self, count: int) -> bool:
        """Whether so many samples of one prompt are one or several groups; where single samples are groups, only one."""
        if self._sizes == {1}:
            return True
        return count in self._sizes or any(count % size == 0 for size in self._sizes if size > 1)

    def _later(self, seconds: float, what: Callable[[_Cohort], None], cohort: _Cohort) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, what, cohort)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _criteria(cohort: _Cohort) -> tuple[str | None, str | None]:
    first = next(iter(cohort.seats.values())).sample
    return first.reference, first.rubric


def _hand_out(seats: Iterable[_Seat], scored: Sequence[Scored]) -> None:
    mean = sum(result.reward for result in scored) / len(scored)
    for seat, result in zip(seats, scored, strict=True):
        seat.scored = result
        for waiter in seat.waiters:
            if not waiter.done():
                waiter.set_result(result)
        for waiter in seat.replaced:
            if not waiter.done():
                waiter.set_result(Scored(mean, {**result.info, "judge_abstained": 1.0}))
        seat.waiters, seat.replaced = [], []


def _by_cohort(samples: Sequence[Sample]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        members.setdefault(sample.cohort, []).append(index)
    return members


def _copied_tail(samples: Sequence[Sample], workers: int) -> int:
    """How many samples at the end repeat the batch from its beginning, as padding to a multiple of the workers does."""
    contents = [(sample.cohort, sample.member, sample.answer) for sample in samples]
    for first in range(max(1, len(samples) - workers + 1), len(samples)):
        if all(contents[index] == contents[index % first] for index in range(first, len(samples))):
            return len(samples) - first
    return 0
