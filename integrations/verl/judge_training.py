"""Training the judge itself on verl: what its reply to a problem is worth.

.. code-block:: yaml

    reward:
      custom_reward_function:
        path: pkg://mrjudge_reward.integrations.verl.judge_training
        name: compute_score
      reward_manager:
        source: importlib
        name: MarkRewardManager
        module: {path: pkg://mrjudge_reward.integrations.verl.judge_training}

``recipes/verl/judge_rl_data.py`` writes the rows: each says in ``extra_info.problem`` what :func:`problem_of` needs. A
reply is verified by ``tasks.verify``, the very function of the other recipes: 0.9 accuracy + 0.1 format, and nothing for a
reply that was cut. verl gives a reward function the text alone, which cannot tell that; the manager reads it from the
tokens. Without the manager a cut reply counts as what it says, mostly no verdict.

What ``acc`` measures on validation rows is the accuracy of each task (verl groups by ``data_source``). The bonus for being
right in both orders, and the consistency check, are not to be had here: verl verifies one reply at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import Problem, verify
from mrjudge_reward.types import Group, Reply


def written_problem(problem: Problem, judge: Mapping[str, Any]) -> str:
    """What verifying needs to know of a problem, as text, so that all rows of a Parquet file have the same columns.

    Args:
        problem: any.
        judge: its task's settings of ``JudgeConfig``. The wording is left out, which a marker has no use for.
    """
    asked = {name: value for name, value in judge.items() if name != "template"}
    return json.dumps({"judge": asked, "gold": problem.gold_K, "scale": problem.item.scale})


@lru_cache(maxsize=65536)
def problem_of(written: str) -> Problem:
    """The problem of which :func:`written_problem` wrote; its texts are empty.

    Raises:
        InputError: if it is none.
        ConfigError: if its judge's settings are none.
    """
    try:
        values = json.loads(written)
        judge, gold, scale = values["judge"], values["gold"], values["scale"]
        low, high = map(float, scale)
        group = Group.of("", [""] * len(gold))
        item = Item(group, tuple(map(float, gold)), "problem", (low, high))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"extra_info.problem is none that judge_rl_data.py wrote: {written!r:.200}") from error
    return Problem(item, tuple(range(len(gold))), JudgeConfig(**judge).judge_format)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any = None, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Verify a judge's reply.

    Args:
        data_source: name of the task.
        solution_str: what the judge wrote.
        ground_truth: the right verdict, for people who read the rows; what is right is decided by ``extra_info``.
        extra_info: ``problem``, and ``cut`` where the manager found that the reply ran into the cap.

    Returns:
        ``score`` (0 to 1), ``acc`` (0 to 1) and ``formed`` (0 or 1).

    Raises:
        InputError: if the row has no problem.
    """
    info = extra_info or {}
    if not isinstance(info.get("problem"), str):
        raise InputError(f"a row of {data_source!r} has no extra_info.problem; see recipes/verl/judge_rl_data.py")
    reply = Reply(solution_str, "length" if info.get("cut") else "stop")
    verified = verify(problem_of(info["problem"]), reply)
    return {"score": verified.reward, "acc": verified.accuracy, "formed": float(verified.formed)}


class MarkRewardManager(NaiveRewardManager):  # type: ignore[misc]
    """verl's own manager, which also tells the reward function of a reply that ran into the cap."""

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Verify the last sequence of a sample."""
        data = data[-1:]
        # A copy: the rows of a group may share the mapping.
        info = dict(data.non_tensor_batch["extra_info"][0])
        info["cut"] = is_cut(data, self.config.data.max_response_length, self.tokenizer.eos_token_id)
        data.non_tensor_batch["extra_info"] = np.array([info], dtype=object)
        result: dict[str, Any] = await super().run_single(data)
        return result


def is_cut(data: DataProto, cap: int, end: int) -> bool:
    """Whether a response has all the tokens that it may have, and the last one is not the end of a turn.

    Args:
        data: one sample.
        cap: most tokens of a response.
        end: token that ends a turn.
    """
    responses = data.batch["responses"][0]
    length = int(data.batch["attention_mask"][0][-len(responses) :].sum())
    return length >= cap and int(responses[length - 1]) != end
