"""OnlineDPO with a judge that may abstain.

TRL's ``OnlineDPOTrainer`` (1.16, ``experimental/online_dpo``) turns a missing reward into 0 and, where both rewards of a
pair are equal, prefers the first completion. A failed or tied judgement would thus train the policy towards whatever
came first. This trainer takes such pairs out of the loss.

How: the loss reads log-probabilities only where ``completion_mask`` is set. The mask that the forward pass received is
kept, and the rows of undecided pairs are cleared in it once the rewards are known. Their log-ratio is then 0 in policy and
reference alike: a constant in the loss without any gradient, as a zero advantage is in GRPO.

TRL also keeps from a reward function who calls it, and passes padding as part of each completion. Here a judge gets the
trainer's ``log_metric``, as GRPO's does, and all reward functions get a completion's own tokens.
"""

from __future__ import annotations

from functools import partial
from itertools import compress
from statistics import fmean
from typing import Any

from trl.experimental.online_dpo import OnlineDPOTrainer

from .reward import JudgeReward


class JudgeOnlineDPOTrainer(OnlineDPOTrainer):  # type: ignore[misc]
    """``OnlineDPOTrainer`` for ``JudgeReward(..., num_generations=2, layout="halves")``.

    Logs ``judge/*`` metrics like the other trainers, and ``judge/undecided_pairs``: pairs that are tied in total, or that a
    judge was asked about and could not tell apart.
    """

    reward_funcs: list[Any]
    continues_turns = True
    """A prompt that ends in a turn of the assistant is one that the policy goes on with."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._told: dict[str, list[float]] = {}
        self._judges = [func for func in self.reward_funcs if isinstance(func, JudgeReward)]
        for judge in self._judges:
            judge.pairs_can_be_left_out = True
        self.reward_funcs = [
            partial(func, log_metric=self.log_metric) if func in self._judges else func for func in self.reward_funcs
        ]

    def log_metric(self, name: str, value: float) -> None:
        """Log a metric with the next losses, as its mean since the last."""
        self._told.setdefault(name, []).append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See ``Trainer.log``."""
        if "loss" in logs:
            logs = logs | {name: fmean(values) for name, values in self._told.items()}
            self._told = {}
        super().log(logs, start_time)

    def _forward(
        self, model: Any, prompt_ids: Any, prompt_mask: Any, completion_ids: Any, completion_mask: Any, *rest: Any
    ) -> Any:
        self._completion_mask = completion_mask
        return super()._forward(model, prompt_ids, prompt_mask, completion_ids, completion_mask, *rest)

    def _calculate_rewards_from_functions(
        self, prompts: Any, completions: Any, completion_ids_list: Any, **reward_kwargs: Any
    ) -> Any:
        masks = self._completion_mask.bool().tolist()
        own = [list(compress(*row)) for row in zip(completion_ids_list, masks, strict=True)]
        rewards = super()._calculate_rewards_from_functions(prompts, completions, own, **reward_kwargs)
        half = len(rewards) // 2
        undecided = {index for index in range(half) if rewards[index] == rewards[index + half]}
        for judge in self._judges:
            undecided |= {row % half for row in judge.abstained_rows}
        for index in undecided:
            self._completion_mask[[index, index + half]] = 0
        self.log_metric("judge/undecided_pairs", len(undecided))
        return rewards
