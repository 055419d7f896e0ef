"""GRPO on tools and environments, in TRL's own loop: what the judge is shown of calls and results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward import JudgeConfig, ScriptedEngine
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.monitoring.run_log import read_run
from tests.support.tool_runs import (
    QUESTIONS,
    Sampler,
    chat_template,
    expected,
    recording_engine,
    report,
    shown,
    weather,
)
from tests.support.trl_setup import grpo_like, logged, tiny_policy


class ScriptedTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, whose policy samples and then says what the script says."""

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        sampled, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        assert len(sampled) == len(prompt_ids)
        return [self.say(ids) for ids in prompt_ids], logprobs


class Game:
    """An environment that tells each rollout something of its own."""

    made = 0

    def reset(self, **_: Any) -> str:
        Game.made += 1
        return f" The secret is {Game.made % 4}."

    def weather(self, city: str) -> str:
        """
        Looks the weather up.

        Args:
            city: the city.

        Returns:
            What it is like.
        """
        return report(city)


@pytest.fixture
def tokenizer(smol_path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from transformers import AutoTokenizer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    made = AutoTokenizer.from_pretrained(smol_path)
    made.chat_template = chat_template()
    return made


def trained(tokenizer: Any, out: Path, system: str = "", **settings: Any) -> tuple[Any, JudgeReward, ScriptedEngine]:
    engine = recording_engine()
    judge = JudgeConfig(model="x", audit=False).build(engine)
    reward = JudgeReward(judge, num_generations=4, name="judge", log_dir=out)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    if system:
        chats = [[{"role": "system", "content": system}, *chat] for chat in chats]
    trainer = ScriptedTrainer(
        model=tiny_policy(tokenizer), processing_class=tokenizer, reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": chats}),
        args=GRPOConfig(**grpo_like(out) | {"max_steps": 1, "max_completion_length": 200}), **settings,
    )  # fmt: skip
    trainer.say = Sampler(tokenizer)
    trainer.train()
    return trainer, reward, engine


def test_the_judge_is_shown_calls_and_results_of_a_real_run(tokenizer: Any, tmp_path: Path) -> None:
    trainer, reward, engine = trained(tokenizer, tmp_path, tools=[weather])
    assert logged(trainer, "tools/call_frequency") == [0.75], "three calls of four completions"
    assert shown(engine.requests) == {f"What is the weather in {city}?": expected(city) for city in ("Oslo", "Rome")}
    for judgement in reward.last_judgements:
        looked_up, invented, refused, twice = judgement.scores_G
        assert looked_up == twice > invented == refused, "a looked-up answer against an invented one of the same words"
        assert judgement.forfeits == judgement.sanitized == judgement.cut == ()
    assert logged(trainer, "judge/sanitized_rate") == [0.0], "what a tool returns is not the policy's attack"
    logged_groups = [group for batch in read_run(tmp_path).batches for group in batch.groups]
    lengths = [one.length for group in logged_groups for one in group.candidates]
    assert logged(trainer, "completions/mean_length") == [sum(lengths) / 8], "TRL counts what the policy wrote, too"


def test_an_environment_that_tells_each_rollout_something_else_is_told_beside_it(
    tokenizer: Any, tmp_path: Path
) -> None:
    Game.made = 0
    _, reward, engine = trained(tokenizer, tmp_path, system="You play.", environment_factory=Game)
    assert [None in judgement.scores_G for judgement in reward.last_judgements] == [False, False]
    text = engine.requests[0].messages[-1].text
    assert "system: You play." in text
    contexts = {one.split("\n", 2)[1] for found in shown(engine.requests).values() for one in found}
    assert contexts == {
        f"user: What is the weather in {city}? The secret is {n}." for city in ("Oslo", "Rome") for n in range(4)
    }
