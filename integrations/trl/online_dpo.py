"""OnlineDPO with a judge that may abstain.

TRL's ``OnlineDPOTrainer`` (1.16, ``experimental/online_dpo``) turns a missing reward into 0 and, where both rewards of a
pair are equal, prefers the first completion. A failed or tied judgement would thus train the policy towards whatever
came first. This trainer takes such pairs out of the loss.

How: the loss reads log-probabilities only where ``completion_mask`` is set. The mask that the forward pass received is
kept, and the rows of undecided pairs are cleared in it once the rewards are known. Their log-ratio is then 0 in policy and
reference alike: a constant in the loss without any gradient, as a zero advantage is in GRPO.
"""

from __future__ import annotations

from typing import Any

from trl.experimental.online_dpo import OnlineDPOTrainer

from .reward import JudgeReward


class JudgeOnlineDPOTrainer(OnlineDPOTrainer):  # type: ignore[misc]
    """``OnlineDPOTrainer`` for ``JudgeReward(..., num_generations=2, layout="halves")``.

    Logs ``judge/*`` metrics like the other trainers, and ``judge/undecided_pairs``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._judges = [func for func in self.reward_funcs if isinstance(func, JudgeReward)]
        for judge in self._judges:
            judge.pairs_can_be_left_out = True

    def _forward(
        self, model: Any, prompt_ids: Any, prompt_mask: Any, completion_ids: Any, completion_mask: Any, *rest: Any
    ) -> Any:
        self._completion_mask = completion_mask
        return super()._forward(model, prompt_ids, prompt_mask, completion_ids, completion_mask, *rest)

    def _calculate_rewards_from_functions(
        self, prompts: Any, completions: Any, completion_ids_list: Any, **reward_kwargs: Any
    ) -> Any:
        rewards = super()._calculate_rewards_from_functions(prompts, completions, completion_ids_list, **reward_kwargs)
        half = len(rewards) // 2
        undecided = {index for index in range(half) if rewards[index] == rewards[index + half]}
        for judge in self._judges:
            undecided |= {row % half for row in judge.abstained_rows}
            for name, value in judge.last_stats.metrics().items():
                self.stats.setdefault(f"{judge.__name__}/{name}", []).append(value)
        for index in undecided:
            self._completion_mask[[index, index + half]] = 0
        self.stats.setdefault("judge/undecided_pairs", []).append(float(len(undecided)))
        return rewards
