"""Streaming through verl's own reward loop, on a real Ray: every sample gets the reward of its whole group."""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto

from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.streaming.groups import INFO_KEYS
from tests.support.verl_judges import count_score, scripted_judge
from tests.support.verl_setup import WORKERS, Rollout, Streaming, expected, made_reward_loop, rollouts, verl_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl's trainer tells of every engine that is not installed
    from verl.trainer.ppo.ray_trainer import compute_advantage

    from mrjudge_reward.integrations.verl.agent_loop import GroupAgentLoopWorker

pytestmark = pytest.mark.timeout(300)

JUDGE = scripted_judge(JudgeConfig())
SETTINGS = {"factory": "tests.support.verl_judges:scripted_judge", "deadline_s": 120.0}


def rewards(scored: Mapping[Rollout, Any]) -> dict[Rollout, float]:
    return {rollout: output.reward_score for rollout, output in scored.items()}


def info(output: Any) -> dict[str, float]:
    return output.extra_fields["reward_extra_info"]


@pytest.fixture(scope="module", params=[1, WORKERS], ids=lambda workers: f"{workers}-workers")
def stream(request: Any, cluster: None, smol_path: str, smol_tokenizer: Any) -> Iterator[Streaming]:
    overrides = (f"reward.num_workers={request.param}", "actor_rollout_ref.rollout.n=4")
    config = verl_config(smol_path, SETTINGS, *overrides, "actor_rollout_ref.rollout.val_kwargs.n=2")
    with made_reward_loop(config) as manager:
        yield Streaming(manager, smol_tokenizer)


@pytest.mark.parametrize(("groups", "size"), [(5, 2), (200, 4), (5, 8)])
def test_streamed_rows_get_the_rewards_of_their_group(stream: Streaming, groups: int, size: int):
    made = rollouts(groups, size, {"__rollout_n__": size})
    scored = stream.all(made, seed=size)
    assert rewards(scored) == pytest.approx(expected(made, JUDGE))
    for output in scored.values():
        assert tuple(info(output)) == INFO_KEYS
        assert all(type(value) is float for value in info(output).values())
        assert info(output)["judge_abstained"] == info(output)["judge_partial"] == info(output)["judge_failed"] == 0
        assert info(output)["judge_position_consistency"] in (0, 1) or size > 2
    assert len({round(output.reward_score, 9) for output in scored.values()}) > 4, "rewards do differ"


@pytest.mark.parametrize("stream", [pytest.param(1, marks=pytest.mark.scale), WORKERS], indirect=True)
def test_two_thousand_samples_wait_at_once(stream: Streaming):
    made = rollouts(250, 8, {"mrjudge_group_size": 8})
    assert rewards(stream.all(made, seed=1)) == pytest.approx(expected(made, JUDGE))


def test_validation_has_groups_of_its_own_size(stream: Streaming):
    training = rollouts(5, 4, {"extra_info": {"split": "train"}}) + rollouts(5, 4)
    validation = rollouts(5, 2, {"extra_info": {"split": "test"}})
    scored = stream.all(training + validation, seed=2)
    assert rewards(scored) == pytest.approx(expected(training + validation, JUDGE))


def test_a_member_that_comes_again_shares_its_reward(stream: Streaming):
    made = rollouts(5, 4)
    again = [Rollout(r.uid, r.session, r.prompt, r.answer, r.fields) for r in made[::3]]
    scored = stream.all(made + again, seed=3)
    want = expected(made, JUDGE)
    assert rewards({rollout: scored[rollout] for rollout in made}) == pytest.approx(want)
    assert [scored[r].reward_score for r in again] == pytest.approx([want[r] for r in made[::3]])
    later = [Rollout(r.uid, r.session, r.prompt, r.answer, r.fields) for r in made[1::4]]
    scored = stream.all(later)
    assert [scored[r].reward_score for r in later] == pytest.approx([want[r] for r in made[1::4]])


def test_equal_answers_of_a_group_share_a_score_and_do_not_stand_in_for_each_other(stream: Streaming):
    made = rollouts(6, 4)
    made[1] = Rollout(made[0].uid, 1, made[0].prompt, made[0].answer, {})
    made[6:8] = [Rollout(made[4].uid, session, made[4].prompt, made[4].answer, {}) for session in (2, 3)]
    want = expected(made, JUDGE)
    assert rewards(stream.all(made, seed=4)) == pytest.approx(want)
    assert want[made[0]] == want[made[1]]


def test_without_session_ids_groups_are_counted(stream: Streaming):
    """The V0 trainer passes a uid and nothing else."""
    made = rollouts(20, 4)
    made[1] = Rollout(made[0].uid, 1, made[0].prompt, made[0].answer, {})
    v0 = Streaming.__new__(Streaming)
    vars(v0).update(vars(stream), sessions=False)
    assert rewards(v0.all(made, seed=5)) == pytest.approx(expected(made, JUDGE, names=False))


@pytest.mark.parametrize("how", ["raises", "gives nothing"])
def test_siblings_of_a_session_that_failed_are_rewarded_at_once(
    stream: Streaming, monkeypatch: pytest.MonkeyPatch, how: str
):
    """verl's own worker says nothing of it, so that they waited for the deadline."""
    made = rollouts(1, 8, {"mrjudge_group_size": 8})
    failing, there = made[3], made[:3] + made[4:]

    async def run_agent_loop(worker: Any, *_: Any, **session: Any) -> Any:
        if how == "raises":
            raise RuntimeError("the environment died")
        return await worker._agent_loop_postprocess([], False, **session)

    monkeypatch.setattr(GroupAgentLoopWorker.__bases__[-1], "_run_agent_loop", run_agent_loop)
    worker = object.__new__(GroupAgentLoopWorker)
    worker.reward_loop_worker_handles = stream.worker.reward_loop_worker_handles
    session = {"uid": failing.uid, "session_id": failing.session, "raw_prompt": [], **failing.fields}

    async def fail() -> float:
        with pytest.raises(RuntimeError, match="died") if how == "raises" else nullcontext():
            await worker._run_agent_loop({}, {}, agent_name="single", **session)
        return time.monotonic()

    async def both() -> tuple[float, list[Any]]:
        scoring = asyncio.gather(*map(stream.score, there))
        await asyncio.sleep(0.3)
        assert not scoring.done()
        failed = await fail()
        return failed, await scoring

    failed, outputs = asyncio.run(both())
    assert time.monotonic() - failed < 1
    assert rewards(dict(zip(there, outputs, strict=True))) == pytest.approx(expected(there, JUDGE))
    assert all(info(output)["judge_partial"] == 1 for output in outputs)


def test_the_judge_is_mixed_with_a_verifiable_reward_per_data_source(
    cluster: None, smol_path: str, smol_tokenizer: Any
):
    weights = {
        "judge_weight": {"sums": 0.0, "default": 0.5},
        "rule_weight": {"sums": 1.0, "essays": 0.25, "fruit": 0.0},
    }
    config = verl_config(
        smol_path, SETTINGS | weights, "reward.num_workers=2", "actor_rollout_ref.rollout.n=4",
        "reward.custom_reward_function.path=pkg://tests.support.verl_judges",
        "reward.custom_reward_function.name=count_score",
    )  # fmt: skip
    made = {source: rollouts(3, 4, {"data_source": source}) for source in ("sums", "essays", "fruit")}
    with made_reward_loop(config) as manager:
        scored = Streaming(manager, smol_tokenizer).all([rollout for one in made.values() for rollout in one], seed=6)
    for source, of_source in made.items():
        judged = expected(of_source, JUDGE)
        for rollout in of_source:
            rule = count_score(source, rollout.answer, "")
            parts = {
                "sums": (0.0, rule),
                "essays": (0.5 * judged[rollout], 0.25 * rule),
                "fruit": (0.5 * judged[rollout], 0),
            }
            output = scored[rollout]
            assert output.reward_score == pytest.approx(sum(parts[source]))
            told = {} if source == "fruit" else {"acc": rule}  # what verl's own manager tells of a score
            assert list(info(output)) == [*told, *INFO_KEYS, "rule_reward", "rule_score"]
            assert info(output).items() >= told.items()
            assert info(output)["judge_reward"] == pytest.approx(0.0 if source == "sums" else judged[rollout])
            assert info(output)["rule_reward"] == (0.0 if source == "fruit" else rule)
            assert math.isnan(info(output)["judge_score"]) == (source == "sums")
            assert info(output)["rule_score"] == pytest.approx(math.nan if source == "fruit" else rule, nan_ok=True)
    check_gdpo({rollout.uid: [info(scored[r]) for r in one if r.uid == rollout.uid]
                for one in made.values() for rollout in one})  # fmt: skip


def check_gdpo(infos_of: Mapping[str, list[dict[str, float]]]) -> None:
    """verl normalises judge and rule by themselves, in each group, with nothing but what was told of the rows."""
    rows = [(uid, info) for uid, infos in infos_of.items() for info in infos]
    keys, weights = ["judge_reward", "rule_reward"], [1.0, 0.5]
    ones = torch.ones(len(rows), 1)
    batch = {
        "token_level_rewards": ones,
        "response_mask": ones,
        "prompts": ones,
        "attention_mask": ones.repeat(1, 2).long(),
    }
    told = {key: np.array([info[key] for _, info in rows]) for key in keys}
    data = DataProto.from_dict(batch, {"uid": np.array([uid for uid, _ in rows], dtype=object), **told})
    config = OmegaConf.create({"gdpo_reward_keys": keys, "gdpo_reward_weights": weights})
    found = compute_advantage(data, adv_estimator="gdpo", config=config).batch["advantages"][:, 0]
    parts = torch.tensor([[[info[key] for info in infos] for infos in infos_of.values()] for key in keys])
    parts = (parts - parts.mean(dim=2, keepdim=True)) / (parts.std(dim=2, keepdim=True) + 1e-6)
    total = (weights[0] * parts[0] + weights[1] * parts[1]).flatten()
    assert parts[0].count_nonzero() > 0
    torch.testing.assert_close(found, (total - total.mean()) / total.std(), rtol=1e-3, atol=1e-3)
