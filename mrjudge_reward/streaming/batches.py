"""A batch handed in by several workers, a share each: complete when every worker has sent its share.

===========================  ==========================================================================================
what comes                   what happens
===========================  ==========================================================================================
the last missing share       the batch is judged, group by group
copies at its end            made by padding to a multiple of the workers; they get the rewards of their originals
no last share                at the deadline those present are judged; all rows are flagged as partial
a worker's share once more   with the same rows it shares the rewards (the worker lost its connection); with other rows
                             the batch before it is given up: another one has begun
a group of another size      is judged as it is, flagged as partial
a prompt that stands twice   is one group where samples carry no identity of their group; this is said once
a judge that raises          all workers get the error; the next batch begins anew
===========================  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mrjudge_reward.errors import EngineError
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.scoring.stats import JudgeStats

from .queue import JudgingQueue, refuse, serve
from .scores import Sample, Scored, Scorer, group_of

logger = logging.getLogger(__name__)


@dataclass
class _Share:
    samples: Sequence[Sample]
    waiters: list[asyncio.Future[list[Scored]]] = field(default_factory=list)


@dataclass
class _Batch:
    workers: int
    shares: dict[int, _Share] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def waiters(self) -> list[asyncio.Future[list[Scored]]]:
        return [waiter for share in self.shares.values() for waiter in share.waiters]


class SharedBatches:
    """Collects the shares of a batch and rewards its samples. All methods belong to one event loop.

    Args:
        queue: judges.
        shape: how scores become rewards; None for what the judge's settings say.
        sizes: how large groups may be (training, validation) whose samples do not bring another size; groups of neither
            are flagged.
        deadline_s: seconds from a batch's first share until those present are judged.
    """

    def __init__(
        self,
        queue: JudgingQueue,
        *,
        shape: RewardShape | None = None,
        sizes: Iterable[int] = (),
        deadline_s: float = 1800.0,
    ) -> None:
        self._scorer = Scorer(queue, shape)
        self._sizes = frozenset(sizes)
        self._deadline_s = deadline_s
        self._batch: _Batch | None = None
        self._said_merged = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def stats(self) -> JudgeStats:
        """Of everything judged."""
        return self._scorer.stats

    async def join_share(self, samples: Sequence[Sample], worker: int, workers: int) -> list[Scored]:
        """Bring a worker's share of a batch and wait for its rewards.

        Args:
            worker: whose share, from 0; shares follow each other in the batch in this order.
            workers: how many shares there are.

        Raises:
            MRJudgeError: if the judge raised, or the batch was given up for another one.
        """
        loop = asyncio.get_running_loop()
        earlier = self._batch.shares.get(worker) if self._batch is not None else None
        if self._batch is not None and earlier is not None and _contents(earlier.samples) != _contents(samples):
            self._give_up(self._batch)
        if self._batch is None:
            self._batch = _Batch(workers)
            self._batch.timer = loop.call_later(self._deadline_s, self._close, self._batch)
        waiter: asyncio.Future[list[Scored]] = loop.create_future()
        self._batch.shares.setdefault(worker, _Share(samples)).waiters.append(waiter)
        if len(self._batch.shares) == workers:
            self._close(self._batch)
        return await waiter

    def _end(self, batch: _Batch) -> None:
        self._batch = None
        if batch.timer is not None:
            batch.timer.cancel()

    def _give_up(self, batch: _Batch) -> None:
        self._end(batch)
        refuse(batch.waiters, EngineError("another batch began before all workers had sent their share of this"))

    def _close(self, batch: _Batch) -> None:
        self._end(batch)
        if len(batch.shares) < batch.workers:
            logger.warning(
                "%d of %d shares after %g s; these are judged", len(batch.shares), batch.workers, self._deadline_s
            )
        task = asyncio.get_running_loop().create_task(self._judge(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(self, batch: _Batch) -> None:
        shares = [batch.shares[worker] for worker in sorted(batch.shares)]
        try:
            scored = await self._scored(
                [sample for share in shares for sample in share.samples], len(shares), len(shares) == batch.workers
            )
        except Exception as error:  # noqa: BLE001  told to all that wait
            refuse(batch.waiters, error)
            return
        results = iter(scored)
        for share in shares:
            own = [next(results) for _ in share.samples]
            serve(share.waiters, own)

    async def _scored(self, samples: Sequence[Sample], workers: int, complete: bool) -> list[Scored]:
        first = self._first_copy(samples, workers) if complete else len(samples)
        members = _by_group(samples[:first])
        self._say_if_merged(samples, members.values())
        results = await self._scorer.score(
            [group_of(key, [samples[index] for index in indices]) for key, indices in members.items()],
            [[samples[index].length for index in indices] for indices in members.values()],
            [not (complete and self._is_whole(samples, indices)) for indices in members.values()],
            [samples[indices[0]].validation for indices in members.values()],
        )
        scored = {
            index: result
            for indices, group in zip(members.values(), results, strict=True)
            for index, result in zip(indices, group, strict=True)
        }
        return [scored[index % first] for index in range(len(samples))]

    def _say_if_merged(self, samples: Sequence[Sample], members: Iterable[Sequence[int]]) -> None:
        """Once, that groups of one prompt were taken for one. Their rows lie mixed, in the order in which rollouts
        ended; judged together, their scores are on one scale at least."""
        several = self._sizes != {1} and not self._said_merged
        merged = [
            rows
            for rows in members
            if len(rows) not in self._sizes_of(samples[rows[0]]) and self._is_whole(samples, rows)
        ]
        if several and merged:
            self._said_merged = True
            logger.warning(
                "%d rows of a batch answer one prompt, which stands in it more than once; nothing says which of them belong "
                "together, so they are judged as one group (so for %d prompts of this batch). To have them judged apart, "
                "have rows carry a uid. This is said once.", len(merged[0]), len(merged),
            )  # fmt: skip

    def _first_copy(self, samples: Sequence[Sample], workers: int) -> int:
        """Where the copies made by padding begin.

        There may be several places from which on the batch repeats its beginning, if answers are equal; copies begin at
        the latest of them that leaves whole groups, if one does.
        """
        contents = _contents(samples)
        places = [
            first
            for first in range(max(1, len(samples) - workers + 1), len(samples) + 1)
            if all(contents[index] == contents[index % first] for index in range(first, len(samples)))
        ]
        for first in reversed(places):
            if all(self._is_whole(samples, indices) for indices in _by_group(samples[:first]).values()):
                return first
        return places[0] if places else 0

    def _is_whole(self, samples: Sequence[Sample], indices: Sequence[int]) -> bool:
        """Whether these samples are a group; where they only share a prompt, they may be several.

        Where single samples are groups too, any number would be several groups; only one sample passes for such.
        """
        first, count = samples[indices[0]], len(indices)
        sizes = self._sizes_of(first)
        if count in sizes:
            return True
        if first.lasting:
            return False
        return sizes == self._sizes == {1} or any(count % size == 0 for size in sizes if size > 1)

    def _sizes_of(self, sample: Sample) -> frozenset[int]:
        """How large a sample's group may be: what it says itself, if that is none of the sizes of the run; a sample that
        says nothing of its own says the size of training, in validation too."""
        return self._sizes if sample.size in self._sizes else frozenset({sample.size})


def _contents(samples: Sequence[Sample]) -> list[tuple[str, str | None, str]]:
    return [(sample.group, sample.member, sample.answer) for sample in samples]


def _by_group(samples: Sequence[Sample]) -> dict[str, list[int]]:
    members: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        members.setdefault(sample.group, []).append(index)
    return members
