"""Over-generate and select, in TRL's GRPO: M completions a prompt, the judge keeps the most informative G.

::

    reward = JudgeReward(judge, num_generations=8)
    trainer = GRPOTrainer(
        reward_funcs=reward,
        rollout_func=SelectingRollout(reward, candidates=16),
        args=GRPOConfig(num_generations=8, ...),
        ...
    )

The judge ranks all M in one judging, ``select`` keeps G, and the scores travel with them to the reward function as an extra
field: nothing is judged twice, and the scores are those of the larger field. Cost: M instead of G generations and
judgements a prompt; the update costs what it did.

What TRL does (trl 1.16, ``trainer/grpo_trainer.py``, ``_generate`` and ``_generate_and_score_completions``):

* ``rollout_func(prompts, trainer)`` gets this rank's prompts, each as often as it has rows here (the docstring says "no
  duplication"; the rows do come repeated), and must return as many ``prompt_ids``, ``completion_ids`` and ``logprobs``
  (None, or a list per token). Other fields reach reward functions as columns. It sees no other column of the data set, so
  a reward with ``reference_column``, ``rubric_column``, ``anchor_column`` or ``judged_if`` is refused here.
* A group that straddles ranks cannot be chosen on either, so ``per_device_train_batch_size * steps_per_generation`` must
  be a multiple of ``num_generations``.
* It is called in evaluation too. There nothing is selected, and the reward judges as ever.
* Images do not come back from a ``rollout_func``, and tools are called after it, on texts that the judge has not seen.
  Both are refused.
* ``RLOOTrainer`` has no ``rollout_func``. In TRL the function is experimental; generation itself is left to the trainer's
  own ``_tokenize_prompts`` and ``_generate_single_turn``, with or without vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.reasoning import decode_marked, hidden_tokens
from mrjudge_reward.reranker import How, select
from mrjudge_reward.types import Group, Judgement

from .distributed import gather_results, rank_and_world
from .reward import JudgeReward
from .rows import JUDGED, JudgedRow, Prompt


class SelectingRollout:
    """A ``rollout_func`` that generates more than it returns. Picklable as its reward is.

    Args:
        reward: the trainer's own reward function; its judge chooses.
        candidates: completions generated per prompt in training (M), at least ``num_generations``.
        how: ``"extremes"`` or ``"spread"``, see ``select``.
        seed: of the order in which equal scores are taken.

    Attributes:
        last_judgements: of the latest training rollout on this rank, all M candidates.

    Raises:
        ConfigError: if there are fewer candidates than are kept, or the reward needs columns of the data set.
    """

    def __init__(self, reward: JudgeReward, *, candidates: int, how: How = "extremes", seed: int = 0) -> None:
        if candidates < reward.num_generations:
            raise ConfigError(f"{candidates} candidates leave nothing to choose {reward.num_generations} from")
        for name in ("reference_column", "rubric_column", "anchor_column", "judged_if"):
            if getattr(reward.reader, name) is not None:
                raise ConfigError(
                    f"a rollout sees prompts alone, so it knows nothing of the reward's {name}: leave it out"
                )
        if reward.layout != "blocks":
            raise ConfigError(f"a rollout returns groups in blocks; the reward has layout {reward.layout!r}")
        select([0.0], 1, how)  # says what is wrong with ``how`` before a model is loaded
        self.reward = reward
        self.candidates = candidates
        self.how: How = how
        self.seed = seed
        self.last_judgements: list[Judgement] = []
        self._calls = 0

    def __call__(self, prompts: Sequence[Prompt], trainer: Any) -> dict[str, Any]:
        """Generate, and in training judge and select.

        Args:
            prompts: this rank's rows, repeated.
            trainer: TRL's.

        Returns:
            ``prompt_ids``, ``completion_ids``, ``logprobs`` per row, and in training what the judge found out.

        Raises:
            ConfigError: for tools or images, a group that straddles ranks, or a trainer of another group size.
            JudgeUnreliableError: if too many judgements failed (on any rank, then on all).
        """
        if getattr(trainer, "tools", None):
            raise ConfigError("with tools the judge would choose before they are called; leave out rollout_func")
        if not trainer.model.training:
            return _generated(list(prompts), trainer, trainer.num_generations_eval)
        size = self.reward.num_generations
        if trainer.num_generations != size:
            raise ConfigError(f"the trainer's num_generations is {trainer.num_generations}, the reward's {size}")
        heads = list(prompts[::size])
        if len(prompts) % size or any(prompt != heads[row // size] for row, prompt in enumerate(prompts)):
            raise ConfigError(
                f"this rank's {len(prompts)} rows hold no whole groups of {size}: "
                "per_device_train_batch_size * steps_per_generation must be a multiple of num_generations"
            )
        output = _generated([prompt for prompt in heads for _ in range(self.candidates)], trainer, self.candidates)
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        hidden = hidden_tokens(tokenizer)
        texts = [decode_marked(tokenizer, ids, hidden) for ids in output["completion_ids"]]
        rank, world = rank_and_world()
        key = f"rollout/{int(getattr(trainer.state, 'global_step', 0))}/{self._calls}/{rank}"
        self._calls += 1
        opened = self.reward.reader.opened(trainer, heads)
        groups = [
            Group.of(
                prompt,
                [
                    self.reward.reader.answer_of(text, opened[block])
                    for text in texts[block * self.candidates : (block + 1) * self.candidates]
                ],
                f"{key}/{block}",
            )
            for block, prompt in enumerate(heads)
        ]
        rows: list[int] = []
        judged: list[JudgedRow] = []

        def choose() -> None:
            self.last_judgements = self.reward.judge.judge(groups)
            for block, judgement in enumerate(self.last_judgements):
                for index in select(judgement.scores_G, size, self.how, digest(self.seed, judgement.group.key)):
                    rows.append(block * self.candidates + index)
                    judged.append(JudgedRow(judgement, index))

        gather_results(choose, world)  # an error on one rank is an error on all
        kept = {name: None if column is None else [column[row] for row in rows] for name, column in output.items()}
        return {**kept, JUDGED: judged}


def _generated(prompts: list[Prompt], trainer: Any, copies: int) -> dict[str, Any]:
    """A completion for each prompt, which come in ``copies``; the sampled tokens' log-probabilities where vLLM wrote."""
    prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
    if images is not None:
        raise ConfigError("TRL takes no images back from a rollout_func; leave it out for prompts with images")
    completion_ids, logprobs = trainer._generate_single_turn(prompt_ids, None, fields, copies)
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}
