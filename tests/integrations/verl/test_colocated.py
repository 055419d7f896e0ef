"""verl's colocated path, on a real Ray: a batch that is padded and cut over workers is judged by its groups."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
from verl.experimental.reward_loop import reward_loop as verl_reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopManager

from mrjudge_reward.integrations.verl.reward_manager import prompt_hash
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import as_messages
from mrjudge_reward.streaming.groups import INFO_KEYS
from tests.support.verl_judges import scripted_judge
from tests.support.verl_setup import (
    WORKERS,
    Rollout,
    ServedModel,
    as_batch,
    colocated,
    expected,
    made_reward_loop,
    rollouts,
    verl_config,
)

pytestmark = pytest.mark.timeout(300)

JUDGE = scripted_judge(JudgeConfig())
SETTINGS = {"factory": "tests.support.verl_judges:scripted_judge", "deadline_s": 120.0}


@pytest.fixture(scope="module", params=[1, 2, WORKERS], ids=lambda workers: f"{workers}-workers")
def batches(request: Any, cluster: None, smol_path: str) -> Iterator[RewardLoopManager]:
    overrides = (f"reward.num_workers={request.param}", "actor_rollout_ref.rollout.n=4", *colocated(smol_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verl_reward_loop, "RewardModelManager", ServedModel)
        with made_reward_loop(verl_config(smol_path, SETTINGS, *overrides)) as manager:
            yield manager


def scores_of(output: Any) -> list[float]:
    return [float(row.sum()) for row in output.batch["rm_scores"]]


@pytest.mark.parametrize(("groups", "size"), [(6, 2), (201, 4), (6, 8)])
@pytest.mark.parametrize("fields", [(), ("uid",)], ids=["V1", "V0"])
def test_a_batch_cut_into_shares_is_judged_by_its_groups(
    batches: RewardLoopManager, smol_tokenizer: Any, groups: int, size: int, fields: tuple[str, ...]
):
    made = rollouts(groups, size)
    random.Random(size).shuffle(made)
    output = batches.compute_rm_score(as_batch(made, smol_tokenizer, *fields))
    keys = group_keys(made, fields)
    want = {}
    for uid, key in keys.items():
        want |= expected([rollout for rollout in made if rollout.uid == uid], JUDGE, names=False, key=key)
    assert scores_of(output) == pytest.approx([want[rollout] for rollout in made], abs=1e-6)
    assert output.meta_info["reward_extra_keys"] == list(INFO_KEYS)
    assert not any(output.non_tensor_batch["judge_abstained"])
    # rollout.n is 4; rows of one prompt may be two groups, rows of one uid may not.
    assert output.non_tensor_batch["judge_partial"].any() == (size != 4 if fields else size == 2)
    assert batches.reward_model_manager.calls[-2:] == ["wake_up", "sleep"]


def group_keys(made: list[Rollout], fields: tuple[str, ...]) -> dict[str, str]:
    """uid → identity of its group; where verl passes no uid, the hash of its prompt."""
    if "uid" in fields:
        return {rollout.uid: rollout.uid for rollout in made}
    return {rollout.uid: f"prompt-{prompt_hash(as_messages(rollout.prompt))}" for rollout in made}


def test_the_same_prompt_twice_and_again_in_the_next_batch(batches: RewardLoopManager, smol_tokenizer: Any):
    made = rollouts(2, 4)
    twice = [Rollout("other", r.session, made[0].prompt, f"{r.answer} more", {}) for r in made[:4]]
    first = batches.compute_rm_score(as_batch([*made, *twice], smol_tokenizer))
    whole = [Rollout("one", i, r.prompt, r.answer, {}) for i, r in enumerate([*made[:4], *twice])]
    (key,) = set(group_keys(made[:4], ()).values())
    want = expected(whole, JUDGE, names=False, key=key)
    assert scores_of(first)[:4] == pytest.approx([want[r] for r in whole[:4]], abs=1e-6)
    assert scores_of(first)[8:] == pytest.approx([want[r] for r in whole[4:]], abs=1e-6)
    again = batches.compute_rm_score(as_batch(made[:4], smol_tokenizer))
    alone = expected(made[:4], JUDGE, names=False, key=key)
    assert scores_of(again) == pytest.approx([alone[r] for r in made[:4]], abs=1e-6)


@pytest.mark.parametrize("rows", [2, 3])
def test_a_batch_smaller_than_the_workers(batches: RewardLoopManager, smol_tokenizer: Any, rows: int):
    made = rollouts(1, 4)[:rows]
    output = batches.compute_rm_score(as_batch(made, smol_tokenizer, "uid"))
    want = expected(made, JUDGE, names=False)
    assert scores_of(output) == pytest.approx([want[r] for r in made], abs=1e-6)
    # Padding may make four rows of them, as of a whole group with equal answers: no way to tell, nor a need.
    workers = len(batches.reward_loop_workers)
    padded = [made[index % rows] for index in range(rows + -rows % workers)]
    looks_whole = len(padded) >= 4 and all(padded[index] is padded[index % 4] for index in range(4, len(padded)))
    assert output.non_tensor_batch["judge_partial"].all() == (not looks_whole)


def test_a_batch_of_equal_answers(batches: RewardLoopManager, smol_tokenizer: Any):
    same = [Rollout(r.uid, r.session, r.prompt, "one answer", {}) for r in rollouts(1, 4)]
    output = batches.compute_rm_score(as_batch(same, smol_tokenizer, "uid"))
    assert scores_of(output) == [0.0] * 4
    assert all(math.isnan(value) for value in output.non_tensor_batch["judge_position_consistency"])
