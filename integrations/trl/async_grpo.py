"""The judge in TRL's AsyncGRPO: groups judged side by side, with their step and their metrics.

::

    trainer = AsyncGRPOTrainer(reward_funcs=JudgeReward(config, num_generations=8), ...)
    judge_side_by_side(trainer)
    trainer.train()

What TRL does (trl 1.16, ``experimental/async_grpo/async_rollout_worker.py``): a spawned process without a GPU generates and
scores. It hands reward functions one group after the other, in a thread, without a trainer state or loggers. So a judge of
ten seconds a group bounds the run, all calls seem to be of one step, and no metric of the judge arrives. The process has no
GPU: the judge must be a server (``base_url``).

Here several groups are scored at a time, a call's step is the version of the weights that generated, metrics go the way
of the worker's own, and prompts that an environment made different are known as such. ``on_abstain="auto"`` leaves None
where the judge is the only reward; TRL then leaves the row out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker, _AsyncRolloutLoop

from mrjudge_reward.errors import ConfigError

from .components import CriterionReward
from .reward import JudgeReward

LANES = 16
"""Groups that are scored at a time."""

_version: ContextVar[int] = ContextVar("version")
"""Of the weights that generated the group that is being scored."""


class _Caller:
    """Stands where a reward function looks for its trainer: how it generates, who else rewards, and where metrics go."""

    def __init__(self, loop: JudgingRolloutLoop, rewards: int) -> None:
        self.num_generations = loop.num_generations
        self.processing_class = loop.tokenizer
        self.chat_template = loop.chat_template
        self.chat_template_kwargs = loop.chat_template_kwargs
        self.eos_token_ids = loop.eos_token_ids
        self.reward_funcs = range(rewards)
        self.metrics: dict[str, float] = {}

    def log_metric(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self.metrics[name] = value


class JudgingRolloutLoop(_AsyncRolloutLoop):  # type: ignore[misc]
    """TRL's loop, which scores several groups at a time and passes on what a judge reports."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        given: list[Any] = settings["reward_funcs"]
        rewards = len(given) + len(self._env_reward_types)
        self.reward_funcs = [
            self._reporting(reward, rewards) if isinstance(reward, JudgeReward | CriterionReward) else reward
            for reward in given
        ]

    def _reporting(self, reward: JudgeReward | CriterionReward, rewards: int) -> Callable[..., list[float | None]]:
        def score(**columns: Any) -> list[float | None]:
            if self.environment_factories is not None:  # TRL keeps them to itself here; prompts may differ all the same
                columns = {"environments": [True] * len(columns["prompts"])} | columns
            caller = _Caller(self, rewards)
            state = SimpleNamespace(global_step=_version.get())
            scores = reward(**columns, trainer_state=state, log_metric=caller.log_metric)
            self._loop.call_soon_threadsafe(self._push_metrics, caller.metrics)  # of the loop's thread alone
            return scores

        return score

    async def _score_group(self, group: Any) -> Any:
        _version.set(group.model_version)  # the threads of the group's rewards see it, and no other lane's
        return await super()._score_group(group)

    async def _score_loop(self, stop_event: asyncio.Event) -> None:
        async def lane() -> None:
            await super(JudgingRolloutLoop, self)._score_loop(stop_event)
            if not stop_event.is_set():  # it has taken the mark of the end, which is for all lanes
                await self._groups_to_score.put(None)

        await asyncio.gather(*(lane() for _ in range(LANES)))


def judge_side_by_side(trainer: Any) -> None:
    """Have an ``AsyncGRPOTrainer`` that was not started yet score several groups at a time. For every rank.

    Raises:
        ConfigError: if its rollouts come from a worker of another kind.
    """
    worker = trainer.rollout_worker
    if worker is None:  # not the main process
        return
    if not isinstance(worker, AsyncRolloutWorker) or worker._loop_cls is not _AsyncRolloutLoop:
        raise ConfigError(f"the trainer's rollouts come from {type(worker).__name__}, which scores in its own way")
    worker._loop_cls = JudgingRolloutLoop
