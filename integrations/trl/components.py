"""A judge's criteria as reward functions of their own, for TRL: one judging, a reward per criterion.

::

    reward = JudgeReward(JudgeConfig(criteria="absolute", rubric="rubric.yaml", ...), num_generations=8)
    parts = reward.components()
    args = GRPOConfig(
        multi_objective_aggregation="normalize_then_sum",  # GDPO, arXiv 2601.05242: each criterion is normalised by itself
        reward_weights=[part.weight for part in parts], ...
    )
    GRPOTrainer(reward_funcs=parts, args=args, ...)

Whichever of them the trainer calls first has the batch judged; the others take their part of that. A pitfall's sign is
turned, so that all weights are positive. The gate of an essential criterion, contrast and the length term shape the total
alone; a criterion that was left out of a group (``rubric_dropout``) is unknown there.

What is unknown is None with ``normalize_then_sum``, which leaves it out of the criterion's baseline and counts it as the
mean; else it is the criterion's mean in its group, as everywhere (``on_abstain``).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judging.tournament import digest

if TYPE_CHECKING:
    from .reward import JudgeReward
    from .rows import Completion, Prompt

KEPT = 256
"""Batches of which some criterion's part was not fetched yet; older ones are judged anew."""


class _Shared:
    """Judges each batch once for all its criteria. Picklable; what is under way stays behind."""

    def __init__(self, reward: JudgeReward, names: Sequence[str]) -> None:
        self.reward, self.names = reward, tuple(names)
        self._lock = threading.Lock()
        self._batches: dict[int, tuple[Future[dict[str, list[float | None]]], set[str]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"reward": self.reward, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def part(self, name: str, batch: int, call: dict[str, Any]) -> list[float | None]:
        """The rewards by a criterion; a criterion that asks for the same batch twice has it judged twice."""
        with self._lock:
            judged, waiting = self._batches.get(batch, (None, set()))
            mine = judged is None or name not in waiting
            if mine:
                judged, waiting = Future(), set(self.names)
                self._batches.pop(batch, None)
                self._batches[batch] = judged, waiting
                if len(self._batches) > KEPT:
                    del self._batches[next(iter(self._batches))]
            waiting.discard(name)
            if not waiting and self._batches.get(batch, (None,))[0] is judged:
                del self._batches[batch]
        assert judged is not None
        if mine:
            try:
                rewards, criteria = self.reward.judged(**call)
            except BaseException as error:
                with self._lock:
                    self._batches.pop(batch, None)
                judged.set_exception(error)
                raise
            judged.set_result({one: criteria.get(one, [None] * len(rewards)) for one in self.names})
        return judged.result()[name]


class CriterionReward:
    """The reward function of one criterion; see the module. Made by ``JudgeReward.components``.

    Attributes:
        criterion: its name in the rubric.
        weight: of the rubric, without a pitfall's sign: for ``reward_weights``.
    """

    def __init__(self, shared: _Shared, criterion: str, key: str, weight: float) -> None:
        self.shared, self.criterion, self.weight = shared, criterion, weight
        self.__name__ = f"{shared.reward.__name__}_{key}"

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of this rank's rows by the criterion; arguments and errors are those of ``JudgeReward``."""
        trainer: Any = getattr(log_metric, "__self__", None)
        training = bool(trainer.model.training) if hasattr(trainer, "model") else True
        step = getattr(trainer_state, "global_step", None)
        call = {
            "prompts": prompts, "completions": completions, "completion_ids": completion_ids,
            "trainer_state": trainer_state, "log_metric": log_metric, **columns,
        }  # fmt: skip
        return list(self.shared.part(self.criterion, digest(training, step, list(prompts), list(completions)), call))


def components(reward: JudgeReward) -> list[CriterionReward]:
    """A reward function per criterion of the run's rubric.

    Raises:
        ConfigError: if the judge does not judge by criteria that are the same for all prompts.
    """
    settings = reward.judge_settings
    if not settings.by_criterion or settings.rubric is None:
        raise ConfigError(
            "components need criteria that are the same for all prompts: set criteria ('comparative' or 'absolute') and "
            "rubric in the judge's config"
        )
    if reward.layout != "blocks":
        raise ConfigError("components are for GRPO and RLOO; OnlineDPO takes one reward")
    shared = _Shared(reward, settings.rubric.names)
    named = zip(settings.rubric.criteria, settings.rubric.keys, strict=True)
    return [CriterionReward(shared, one.name, key, abs(float(one.weight))) for one, key in named]
