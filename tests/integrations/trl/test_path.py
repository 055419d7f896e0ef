"""The path of one reward from TRL, as CONTRIBUTING.md tells it."""

from __future__ import annotations

from mrjudge_reward import Choice, Judge, ScriptedEngine
from mrjudge_reward.integrations.trl import JudgeReward
from tests.support.path import Path, written_path


def test_a_reward_takes_the_path_that_is_written_down():
    decide, called = written_path("TRL")
    reward = JudgeReward(Judge(ScriptedEngine.by_utility(len), Choice(), seed=1), num_generations=4)
    prompts = ["Which?"] * 4
    reward(prompts=prompts, completions=["a", "bb", "ccc", "dddd"])  # what is asked once a judge
    with Path() as path:
        rewards = reward(prompts=prompts, completions=["e", "ff", "ggg", "hhhh"])
    assert sorted(map(float, rewards)) == rewards  # type: ignore[arg-type]
    assert path.of(decide) == decide
    assert path.entered_again(decide) == set()
    assert sorted(path.files) == sorted(decide + called)
    assert len(decide) <= 14
