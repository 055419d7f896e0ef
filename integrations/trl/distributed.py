"""What ranks of a distributed run tell each other. With one rank all of it is a plain function call."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.engines.engine_config import ONLY
from mrjudge_reward.errors import ConfigError, EngineError, InputError, MRJudgeError

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where torch.distributed is not in use."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value: T, world: int) -> list[T]:
    """The values of all ranks, in rank order. Every rank must call it.

    Raises:
        InputError: on every rank, if the value of one cannot be pickled. It would leave alone, and the others would wait
            for it in the collective.
    """
    if world == 1:
        return [value]
    import torch.distributed as dist

    packed: bytes | InputError
    try:
        packed = pickle.dumps(value)
    except Exception as error:  # noqa: BLE001  whatever an object's own __reduce__ raises
        packed = InputError(
            f"rank {dist.get_rank()} cannot send what it has to the others: {type(error).__name__}: {error}"
        )
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, packed)
    for share in shares:
        if isinstance(share, InputError):
            raise share
    return [pickle.loads(share) for share in shares]


def gather_results(work: Callable[[], T], world: int) -> list[T]:
    """Do this rank's work and gather the results of all ranks.

    If the work fails on any rank, whatever the exception, every rank raises: a rank that left alone would keep the
    others waiting in their next collective until it times out.

    Raises:
        MRJudgeError: another rank's error; one that is not of this package comes as an ``EngineError`` that names it,
            because foreign exceptions may not survive the journey. This rank's own error is raised as it is.
    """
    own: Exception | None = None
    told: T | MRJudgeError
    try:
        told = work()
    except Exception as error:  # noqa: BLE001  told to all ranks, and raised below
        own = error
        told = error if isinstance(error, MRJudgeError) else EngineError(f"{type(error).__name__}: {error}")
    results = gather(told, world)
    if own is not None:
        raise own
    for result in results:
        if isinstance(result, MRJudgeError):
            raise result
    return [result for result in results if not isinstance(result, MRJudgeError)]


def check_timeout(trainer: Any, judge: JudgeSettings, world: int) -> None:
    """Whether ranks wait for each other at least as long as one comparison of the judge may take.

    Ranks wait in a collective while one of them still judges. Its time-out, the trainer's ``ddp_timeout``, ends the run.

    Raises:
        ConfigError: if they do not.
    """
    waits = getattr(getattr(trainer, "args", None), "ddp_timeout", None)
    if world == 1 or waits is None or judge.engine_name not in ONLY["deadline_s"]:
        return
    takes = judge.deadline_s * (1 + judge.retries) + judge.outage_wait_s
    if takes > waits:
        raise ConfigError(
            f"one comparison may take {takes:g} s: deadline_s {judge.deadline_s:g}, 1 + {judge.retries} tries, and "
            f"outage_wait_s {judge.outage_wait_s:g}. The other ranks wait ddp_timeout = {waits:g} s, and then the run ends: "
            "raise ddp_timeout in the trainer's config above that, or lower the judge's"
        )
