"""The judge actor: where the reward workers of a verl run meet, one per run, named, in Ray."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from mrjudge_reward.errors import ConfigError, EngineError, JudgeUnreliableError, MRJudgeError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.streaming.batches import SharedBatches
from mrjudge_reward.streaming.exchange import Desk, Outcome
from mrjudge_reward.streaming.groups import ArrivingGroups
from mrjudge_reward.streaming.log import StreamMonitor
from mrjudge_reward.streaming.queue import JudgingQueue, refuse, serve
from mrjudge_reward.streaming.scores import Sample, Scored

from .settings import VerlSettings

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANY = 100_000
"""Calls that may wait in the judge actor at once; each sample of a step may be one."""

GATHER_S = 0.02
"""Least seconds between two calls by which a worker brings samples; what comes meanwhile goes into one. Rollouts take
seconds, and a call costs more than all else that is done to a sample."""

LIVES = 3
"""Judge actors that may die under a waiting sample before it fails."""


def build_judge(config: JudgeConfig, settings: VerlSettings) -> Judge:
    """The judge of a run.

    Raises:
        ConfigError: if the factory cannot be imported, raises, or gives something else, or a judge with which anchors would
            do nothing.
    """
    factory = settings.factory
    if factory is None:
        return config.build()
    module, _, name = factory.partition(":")
    try:
        make: Callable[[JudgeConfig], Judge] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"factory {factory!r} cannot be imported: {error}") from error
    try:
        judge = make(config)
    except MRJudgeError:
        raise
    except Exception as error:
        raise ConfigError(f"factory {factory!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(judge, Judge):
        raise ConfigError(f"factory {factory!r} must return a Judge; got {type(judge).__name__}")
    settings.check_anchors(judge.settings.reward_shape)
    return judge


class JudgeActor:
    """Judges groups in a process of its own. Its methods are coroutines, so calls wait without holding a thread."""

    def __init__(self, judge: JudgeConfig, settings: VerlSettings, stepped: bool) -> None:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("mrjudge_reward").setLevel(logging.INFO)
        self._stopped: JudgeUnreliableError | None = None
        self._log = StreamMonitor(settings.log_dir, settings.watched(), stepped)
        queue = JudgingQueue(lambda: build_judge(judge, settings), settings.judge_deadline_s, self._log)
        # A judge of a factory may have a shape of its own.
        shape = judge.reward_shape if judge.reward_shape != RewardShape() else None
        deadline_s = settings.deadline_s
        self._groups = ArrivingGroups(
            queue,
            shape=shape,
            deadline_s=deadline_s,
            settle_s=settings.settle_s,
            as_it_arrives=settings.as_it_arrives,
            kept_bytes=settings.kept_bytes,
        )
        sizes = [size for size in (settings.group_size, settings.validation_group_size) if size is not None]
        self._desks: dict[str, Desk] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._batches = SharedBatches(queue, shape=shape, sizes=sizes, deadline_s=deadline_s)

    async def exchange(self, client: str, coming: Sequence[tuple[int, Sample]]) -> list[Outcome]:
        """Bring samples, numbered by their client, and wait until any of this client's are rewarded: ``ArrivingGroups.join``
        in few calls."""
        desk = self._desks.setdefault(client, Desk())
        for number, sample in coming:
            task = asyncio.get_running_loop().create_task(self._join(desk, number, sample))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await desk.collect()

    async def _join(self, desk: Desk, number: int, sample: Sample) -> None:
        try:
            desk.put((number, await self._unless_stopped(lambda: self._groups.join(sample))))
        except MRJudgeError as error:
            desk.put((number, error))
        except Exception as error:  # noqa: BLE001  told to the sample that it happened to
            desk.put((number, EngineError(f"the judge actor: {error!r}")))

    async def leave(self, group: str, member: str, size: int) -> None:
        """See ``ArrivingGroups.leave``."""
        self._groups.leave(group, member, size)

    async def join_share(self, samples: Sequence[Sample], worker: int, workers: int) -> list[Scored]:
        """See ``SharedBatches.join_share``."""
        return await self._unless_stopped(lambda: self._batches.join_share(samples, worker, workers))

    async def _unless_stopped(self, work: Callable[[], Awaitable[T]]) -> T:
        """verl's V1 trainer goes on without groups whose scoring raised; only when all do, the run ends."""
        if self._stopped is not None:
            raise self._stopped
        try:
            return await work()
        except JudgeUnreliableError as error:
            if self._stopped is None:
                logger.error("no more groups are judged in this run: %s", error)
            self._stopped = error
            raise

    async def end_step(self, number: int, trained: bool) -> dict[str, float]:
        """See ``StreamMonitor.end_step``."""
        return self._log.end_step(number, trained)

    async def metrics(self) -> dict[str, float]:
        """What was judged since the actor began: ``METRICS``, and how many groups and judgements that were."""
        stats = self._log.stats
        return {**stats.metrics(), "groups": float(stats.groups), "comparisons": float(stats.comparisons)}


@dataclass(eq=False)
class _Waiting:
    """A sample in a reward worker: which actor it was brought to, and how many died under it."""

    sample: Sample
    scored: asyncio.Future[Scored]
    actor: Any = None
    deaths: int = 0


class JudgeActorClient:
    """A reward worker's way to the judge actor.

    The first worker to call makes the actor. If it dies, the next call makes another one, and samples that waited in the
    dead one are brought to it again; all waiting members of a group do so, so the group meets once more.

    Args:
        judge, settings: of the run; the same in all workers.
        served: see ``VerlSettings.judge_config``; part of the actor's name.
        stepped: see ``StreamMonitor``.

    Raises:
        ConfigError: if Ray does not take the actor options.
    """

    def __init__(
        self, judge: JudgeConfig, settings: VerlSettings, served: Mapping[str, Any] | None = None, stepped: bool = True
    ) -> None:
        self.name = settings.actor_name(served)
        self._judge = judge
        self._settings, self._stepped = settings, stepped
        self._patience_s = settings.deadline_s + 2 * settings.judge_deadline_s + 60
        self._handle: Any = None
        self._id = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._outbox: list[int] = []
        self._calls, self._sent_at = 0, -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        options = {"num_cpus": 0, **settings.actor_options}
        try:
            self._maker: Any = ray.remote(JudgeActor).options(
                name=self.name, get_if_exists=True, max_concurrency=MANY, **options
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"actor_options {settings.actor_options}: {error}") from error

    def actor(self) -> Any:
        """The handle of the actor, which is made if there is none."""
        if self._handle is None:
            self._handle = self._maker.remote(self._judge, self._settings, self._stepped)
        return self._handle

    async def join(self, sample: Sample) -> Scored:
        """Bring a sample to its group and wait for its reward.

        Raises:
            MRJudgeError: what the judge raised; an ``EngineError`` if the actor cannot live.
        """
        number = next(self._numbers)
        scored: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(sample, scored)
        self._send_soon([number])
        try:
            return await asyncio.wait_for(scored, self._patience_s)
        except TimeoutError:
            raise self._unanswered() from None
        finally:
            del self._waiting[number]

    async def leave(self, group: str, member: str, size: int) -> None:
        """Say that a member of a group will not come; raises as ``join`` does."""
        await self._call(lambda actor: actor.leave.remote(group, member, size))

    async def join_share(self, samples: Sequence[Sample], worker: int, workers: int) -> list[Scored]:
        """Bring a share of a batch; raises as ``join`` does."""
        return await self._call(lambda actor: actor.join_share.remote(samples, worker, workers))

    async def _call(self, ask: Callable[[Any], Awaitable[T]]) -> T:
        last: Exception | None = None
        for life in range(LIVES):
            actor = None
            try:
                actor = self.actor()
                return await asyncio.wait_for(ask(actor), self._patience_s)
            except RayTaskError as error:
                raise _cause_of(error) from error
            except (RayActorError, ValueError) as error:  # a name that is just being given up raises ValueError
                last = error
                self._forget(actor, error)
                await asyncio.sleep(0.5 * 2**life)
            except (TimeoutError, GetTimeoutError):
                raise self._unanswered() from None
            except RayError as error:
                raise _unreachable(error) from error
        raise _died(last) from last

    # -- samples, many in a call --------------------------------------------------------------------------------------

    def _send_soon(self, numbers: Sequence[int]) -> None:
        if not self._outbox:
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._sent_at + GATHER_S), self._send)
        self._outbox += numbers

    def _send(self) -> None:
        numbers, self._outbox = self._outbox, []
        coming = {number: one for number in numbers if (one := self._waiting.get(number)) is not None}
        if coming or any(one.actor is not None and not one.scored.done() for one in self._waiting.values()):
            self._calls += 1
            loop = asyncio.get_running_loop()
            self._sent_at = loop.time()
            task = loop.create_task(self._exchange(coming))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _exchange(self, coming: Mapping[int, _Waiting]) -> None:
        """Hand in samples, and give out what has become ready."""
        actor = None
        try:
            actor = self.actor()
            for one in coming.values():
                one.actor = actor
            samples = [(number, one.sample) for number, one in coming.items()]
            for number, outcome in await actor.exchange.remote(self._id, samples):
                waiting = self._waiting.get(number)
                if waiting is not None and isinstance(outcome, Exception):
                    refuse([waiting.scored], outcome)
                elif waiting is not None:
                    serve([waiting.scored], outcome)
        except RayTaskError as error:  # first, for it is of its cause's class too
            refuse((one.scored for one in coming.values()), _cause_of(error))
        except (RayActorError, ValueError) as error:
            lost = {n: one for n, one in self._waiting.items() if one.actor is actor} if actor is not None else coming
            self._forget(actor, error)
            self._bring_again(lost, error)
        except RayError as error:
            refuse((one.scored for one in self._waiting.values()), _unreachable(error))
        except Exception as error:  # noqa: BLE001  told to those that were on their way, e.g. one that cannot be pickled
            refuse((one.scored for one in coming.values()), EngineError(f"not brought to the judge actor: {error!r}"))
        finally:
            self._calls -= 1
        if not self._calls and not self._outbox:
            self._send()  # one call at least is there while samples wait

    def _bring_again(self, lost: Mapping[int, _Waiting], error: Exception) -> None:
        """To another actor, a little later."""
        for one in lost.values():
            one.actor, one.deaths = None, one.deaths + 1
            if one.deaths == LIVES:
                refuse([one.scored], _died(error))
        left = [number for number, one in lost.items() if one.deaths < LIVES]
        if left:
            pause_s = 0.25 * 2 ** max(lost[number].deaths for number in left)
            asyncio.get_running_loop().call_later(pause_s, self._send_soon, left)

    def _forget(self, actor: Any, error: Exception) -> None:
        if self._handle is actor:  # or another sample has made a new one already
            self._handle = None
            logger.warning("the judge actor died (%s); its waiting samples go to a new one", _in_short(error))

    def _unanswered(self) -> EngineError:
        return EngineError(f"no answer of the judge actor within {self._patience_s:g} s")


def _cause_of(error: RayTaskError) -> Exception:
    cause: Exception = error.cause
    return cause if isinstance(cause, MRJudgeError) else EngineError(f"the judge actor: {cause!r}")


def _unreachable(error: Exception) -> EngineError:
    return EngineError(f"the judge actor cannot be reached: {_in_short(error)}")


def _died(error: Exception | None) -> EngineError:
    return EngineError(
        f"the judge actor died {LIVES} times under the same sample, so the sample was not judged: {error}. "
        "See the actor's log; a judge inside it may have run out of memory"
    )


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
