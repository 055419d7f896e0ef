"""Over-generation and selection inside real GRPO."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward import (
    Choice,
    ConfigError,
    EngineFailure,
    FailureAlarm,
    InputError,
    Judge,
    JudgeConfig,
    ScriptedEngine,
)
from mrjudge_reward.integrations.trl import SelectingRollout
from mrjudge_reward.integrations.trl.reward import JudgeReward
from mrjudge_reward.integrations.trl.rows import JUDGED, JudgedRow
from tests.support.trl_setup import PROMPTS, grpo_like, logged, prompt_dataset, tiny_policy

pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")


def letters(text: str) -> float:
    return sum(char in "aeiou" for char in text)


def scripted(script: Any = None) -> Judge:
    engine = ScriptedEngine(script) if script else ScriptedEngine.by_utility(letters)
    return Judge(engine, Choice(), schedule="ring", alarm=FailureAlarm(1.0))


class Watched(JudgeReward):
    """Keeps what the trainer passed and what it got."""

    def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
        rewards = super().__call__(*args, **columns)
        self.calls = [*getattr(self, "calls", []), (columns, rewards)]
        return rewards


def trained(tokenizer: Any, reward: JudgeReward, out: Path, rollout: SelectingRollout, **more: Any) -> Any:
    trainer = GRPOTrainer(
        model=tiny_policy(tokenizer),
        processing_class=tokenizer,
        reward_funcs=reward,
        rollout_func=rollout,
        train_dataset=more.pop("train_dataset", prompt_dataset()),
        eval_dataset=more.pop("eval_dataset", None),
        args=GRPOConfig(**grpo_like(out, **more)),
    )
    trainer.train()
    return trainer


def test_grpo_trains_on_the_extremes_of_more_completions_and_nothing_is_judged_twice(
    smol_tokenizer: Any, tmp_path: Path
):
    judge = scripted()
    reward = Watched(judge, num_generations=4, name="judge")
    rollout = SelectingRollout(reward, candidates=10)
    trainer = trained(smol_tokenizer, reward, tmp_path, rollout)
    assert len(judge.engine.batches) == 2  # type: ignore[attr-defined]  # one for each step, in the rollout
    assert [len(judgement.group.candidates) for judgement in reward.last_judgements] == [10, 10]
    for columns, rewards in reward.calls:
        assert len(rewards) == 8
        assert columns[JUDGED][0].judgement is columns[JUDGED][3].judgement
        assert columns[JUDGED][0].judgement is not columns[JUDGED][4].judgement
        for block in (0, 4):
            scores = columns[JUDGED][block].judgement.scores_G
            known = sorted(score for score in scores if score is not None)
            assert sorted(rewards[block : block + 4]) == [*known[:2], *known[-2:]]  # type: ignore[type-var]
    assert len(logged(trainer, "judge/calls")) == 2
    assert all(calls > 0 for calls in logged(trainer, "judge/calls")), "the cost of the rollout's judging is logged"
    assert logged(trainer, "judge/failed_rate") == [0.0, 0.0]
    assert all(norm > 0 for norm in logged(trainer, "grad_norm"))


def test_chat_prompts_and_evaluation_of_another_group_size(smol_tokenizer: Any, tmp_path: Path):
    judge = scripted()
    reward = Watched(judge, num_generations=4, num_generations_eval=2, name="judge")
    chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in PROMPTS]})
    trainer = trained(
        smol_tokenizer, reward, tmp_path, SelectingRollout(reward, candidates=6, how="spread"), train_dataset=chats,
        eval_dataset=chats, num_generations_eval=2, per_device_eval_batch_size=8, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    assert len(logged(trainer, "eval_judge/calls")) == 1
    assert len(logged(trainer, "judge/calls")) == 2
    in_training = [JUDGED in columns for columns, _ in reward.calls]
    assert in_training == [True, True, False, False]  # in evaluation two batches, judged by the reward as ever
    assert reward.calls[0][0][JUDGED][0].judgement.group.prompt[0].role == "user"


@pytest.mark.parametrize("end", ["", " <think>\n", "[THINK]"])
def test_what_a_plain_text_opened_is_reasoning_for_the_rollout_and_the_reward(
    smol_tokenizer: Any, tmp_path: Path, end: str
):
    reward = Watched(scripted(), num_generations=4, name="judge")
    rollout = SelectingRollout(reward, candidates=6)
    data = Dataset.from_dict({"prompt": [text + end for text in PROMPTS]})
    trained(smol_tokenizer, reward, tmp_path, rollout, train_dataset=data, max_steps=1)
    candidates = [text for judgement in rollout.last_judgements for text in judgement.group.candidates]
    assert any(candidates) == (not end), "the policy closes nothing in so few tokens"


def test_a_judge_that_fails_leaves_rows_without_reward_and_steps_without_gradient(smol_tokenizer: Any, tmp_path: Path):
    reward = Watched(
        scripted(lambda request: EngineFailure("timeout", transient=False)), num_generations=4, name="judge"
    )
    trainer = trained(smol_tokenizer, reward, tmp_path, SelectingRollout(reward, candidates=6), max_steps=1)
    assert reward.calls[0][1] == [None] * 8
    assert logged(trainer, "judge/failed_rate") == [1.0]
    assert logged(trainer, "grad_norm") == [0.0]


def stub(**more: Any) -> Any:
    return SimpleNamespace(**{"model": SimpleNamespace(training=True), "num_generations": 4, "tools": None, **more})


def test_what_cannot_be_selected_is_refused_with_the_way_out():
    reward = JudgeReward(scripted(), num_generations=4)
    with pytest.raises(ConfigError, match="3 candidates leave nothing to choose 4 from"):
        SelectingRollout(reward, candidates=3)
    with pytest.raises(ConfigError, match="how must be one of extremes, spread"):
        SelectingRollout(reward, candidates=8, how="best")  # type: ignore[arg-type]
    needs: list[dict[str, Any]] = [
        {"rubric_column": "r"}, {"reference_column": "r.text"}, {"anchor_column": "r"}, {"judged_if": "open"},
        {"judged_if": bool},
    ]  # fmt: skip
    for column in needs:
        with pytest.raises(ConfigError, match=f"knows nothing of the reward's {next(iter(column))}: leave it out"):
            SelectingRollout(JudgeReward(scripted(), num_generations=4, **column), candidates=8)
    with pytest.raises(ConfigError, match="layout 'halves'"):
        SelectingRollout(JudgeReward(scripted(), num_generations=2, layout="halves"), candidates=8)
    rollout = SelectingRollout(reward, candidates=8)
    with pytest.raises(ConfigError, match="no whole groups of 4: per_device_train_batch_size"):
        rollout(["p"] * 6, stub())
    with pytest.raises(ConfigError, match="no whole groups of 4"):
        rollout(["p"] * 2 + ["q"] * 6, stub())
    with pytest.raises(ConfigError, match="num_generations is 8, the reward's 4"):
        rollout(["p"] * 8, stub(num_generations=8))
    with pytest.raises(ConfigError, match="with tools"):
        rollout(["p"] * 4, stub(tools=[print]))
    images = stub(_tokenize_prompts=lambda prompts: ([[1]] * len(prompts), [["image"]] * len(prompts), {}))
    with pytest.raises(ConfigError, match="no images back"):
        rollout(["p"] * 4, images)


def test_a_text_that_the_rollout_did_not_judge_is_noticed():
    reward = JudgeReward(scripted(), num_generations=2)
    judgement = reward.judge.rank("p", ["aa", "b", "c"])
    rows = [JudgedRow(judgement, 0), JudgedRow(judgement, 2)]
    rewards = reward(["p", "p"], ["aa", "<think>x</think> c"], **{JUDGED: rows})
    assert rewards == [judgement.scores_G[0], judgement.scores_G[2]]
    with pytest.raises(InputError, match="row 1 is not the text that the rollout judged"):
        reward(["p", "p"], ["aa", "b"], **{JUDGED: rows})


def test_a_rollout_goes_through_pickle_with_its_reward():
    rollout = SelectingRollout(JudgeReward(JudgeConfig(), num_generations=4), candidates=8, how="spread")
    copy = pickle.loads(pickle.dumps(rollout))
    assert (copy.candidates, copy.how, copy.reward.num_generations) == (8, "spread", 4)
