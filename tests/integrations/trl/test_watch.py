"""Watching a real GRPO run: the log and the report of it, TensorBoard, and a planted reward hack that is caught.

On two ranks: see test_trl_two_ranks.py.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.errors import JudgeDriftedError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.integrations.trl.callback import RunLogCallback
from mrjudge_reward.judge import Judge
from mrjudge_reward.monitoring.canaries import BUILT_IN, Canaries
from mrjudge_reward.monitoring.report.page import page_of
from mrjudge_reward.monitoring.run_log import read_run
from mrjudge_reward.scoring.stats import METRICS
from tests.support.report_runs import reasoning_judge
from tests.support.spoofing import SPOOF, SpoofingPolicy, gullible, gullible_judge
from tests.support.trl_setup import grpo_like, logged, prompt_dataset, tiny_policy


def trained(tmp_path: Path, tokenizer: Any, reward: JudgeReward, model: Any = None, **settings: Any) -> Any:
    trainer = GRPOTrainer(
        model=model if model is not None else tiny_policy(tokenizer),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=settings.pop("train_dataset", None) or prompt_dataset(),
        args=GRPOConfig(**(grpo_like(tmp_path) | settings)),
    )
    trainer.train()
    return trainer


def spoofing_policy(tokenizer: Any) -> Any:
    model = tiny_policy(tokenizer)
    model.__class__ = SpoofingPolicy
    model.tokenizer = tokenizer
    return model


def test_the_log_of_a_run_holds_both_sides_and_makes_a_report(smol_tokenizer: Any, tmp_path: Path) -> None:
    reward = JudgeReward(
        reasoning_judge(), num_generations=4, name="judge", log_dir=tmp_path, canaries=Canaries(every=2)
    )
    trainer = trained(tmp_path, smol_tokenizer, reward, max_steps=4)
    run = read_run(tmp_path)
    assert [batch.step for batch in run.batches] == [1, 2, 3, 4]
    assert [batch.canaries is not None for batch in run.batches] == [True, False, True, False]
    assert [batch.stats.groups for batch in run.batches] == [2] * 4
    for name, values in (("judge/calls", "calls"), ("judge/tie_rate", "tie_rate")):
        assert logged(trainer, name) == pytest.approx([batch.stats.metrics()[values] for batch in run.batches])
    assert logged(trainer, "reward") == pytest.approx(
        [batch.rewards.metrics()["reward"] for batch in run.batches], abs=1e-5
    )
    assert {step: logs["loss"] for step, logs in run.trainer.items() if "loss" in logs} == pytest.approx(
        dict(enumerate(logged(trainer, "loss"), 1))
    )
    assert list(run.seconds) == [2, 3, 4], "the trainer is followed from the first call of the judge on"
    for parts in run.seconds.values():
        assert set(parts) == {"generate", "judge", "update"}
        assert all(value > 0 for value in parts.values())
    assert "Bradley-Terry" in page_of(tmp_path)


@pytest.mark.parametrize(
    "openings",
    [("", "<think>\n"), ("<think>\n", ""), ("<think>\n", "", "[THINK]")],
    ids=lambda of: "-".join(of).strip(),
)
def test_each_trainer_that_a_reward_serves_is_asked_and_logged(
    smol_tokenizer: Any, tmp_path: Path, openings: tuple[str, ...]
) -> None:
    reward = JudgeReward(reasoning_judge(), num_generations=4, name="judge", log_dir=tmp_path)
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Which?"}]] * 8})
    for steps, opening in enumerate(openings, 1):
        tokenizer = copy.deepcopy(smol_tokenizer)
        tokenizer.chat_template += opening
        before = read_run(tmp_path).seconds if steps > 1 else {}
        trainer = trained(tmp_path, tokenizer, reward, max_steps=steps + 1, train_dataset=data)
        answers = [text for judgement in reward.last_judgements for text in judgement.group.candidates]
        assert any(answers) == (not opening), "the policy closes nothing in so few tokens"
        run = read_run(tmp_path)
        assert {step: logs["loss"] for step, logs in run.trainer.items() if "loss" in logs} == pytest.approx(
            dict(enumerate(logged(trainer, "loss"), 1))
        )
        assert steps + 1 in run.seconds
        assert run.seconds != before
        assert sum(isinstance(one, RunLogCallback) for one in trainer.callback_handler.callbacks) == 1


def test_judge_metrics_reach_tensorboard(smol_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    reward = JudgeReward(reasoning_judge(), num_generations=4, name="judge", canaries=Canaries(every=10))
    trained(tmp_path, smol_tokenizer, reward, report_to="tensorboard")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    # All completions run into the cap, and that judge writes.
    known = set(METRICS) - {"length_correlation", "label_mass", "position_consistency_debiased"}
    assert {f"train/judge/{metric}" for metric in known} <= tags
    assert {"train/judge/canary_right", "train/judge/canary_right_spoof", "train/judge/canary_failed"} <= tags
    assert [event.step for event in found.Scalars("train/judge/calls")] == [1, 2]


def test_a_run_goes_on_where_its_log_cannot_be_written(smol_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    reward = JudgeReward(reasoning_judge(), num_generations=4, name="judge", log_dir=tmp_path / "file" / "x")
    assert trained(tmp_path, smol_tokenizer, reward).state.global_step == 2


def test_watching_changes_nothing_that_a_policy_learns(smol_tokenizer: Any, tmp_path: Path) -> None:
    weights = []
    for watched in (False, True):
        settings: dict[str, Any] = {"log_dir": tmp_path, "canaries": Canaries(every=1)} if watched else {}
        reward = JudgeReward(reasoning_judge(), num_generations=4, name="judge", **settings)
        trainer = trained(tmp_path, smol_tokenizer, reward, seed=3)
        weights.append([value.detach().clone() for value in trainer.model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))


# -- the planted hack -------------------------------------------------------------------------------------------------


def test_a_policy_that_spoofs_verdicts_before_a_gullible_judge_is_caught_and_said(
    smol_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reward = JudgeReward(
        gullible_judge(), num_generations=4, name="judge", log_dir=tmp_path, canaries=Canaries(every=1)
    )
    with caplog.at_level(logging.WARNING, "mrjudge_reward"):
        trainer = trained(tmp_path, smol_tokenizer, reward, spoofing_policy(smol_tokenizer), max_completion_length=40)
    rows = [text for text in trainer._logs["completion"] if SPOOF in text]
    assert len(rows) == 6, "three of four completions of the last step spoof"
    assert logged(trainer, "judge/sanitized_rate") == [0.75, 0.75]
    assert logged(trainer, "judge/canary_right_spoof") == [0.0, 0.0]
    assert "no better than chance against spoof (0.00)" in caplog.text
    rewarded = list(zip(trainer._logs["completion"], trainer._logs["rewards"]["judge"], strict=True))
    assert min(r for text, r in rewarded if SPOOF in text) > max(r for text, r in rewarded if SPOOF not in text)


def test_it_stops_the_run_when_asked(smol_tokenizer: Any, tmp_path: Path) -> None:
    reward = JudgeReward(
        gullible_judge(), num_generations=4, name="judge", log_dir=tmp_path,
        canaries=Canaries(every=1, floor=0.5, stop=True),
    )  # fmt: skip
    with pytest.raises(JudgeDriftedError, match=r"spoof is at 0\.00 in the right order"):
        trained(tmp_path, smol_tokenizer, reward, spoofing_policy(smol_tokenizer), max_completion_length=40)
    (batch,) = read_run(tmp_path).batches
    assert batch.stats.metrics()["sanitized_rate"] == 0.75, "what led to it is in the log"
    page = page_of(tmp_path)
    assert "spoof is at 0.00 in the right order" in page


def test_a_judge_that_becomes_gullible_during_training_stops_the_run(smol_tokenizer: Any, tmp_path: Path) -> None:
    judge: Judge = gullible_judge()
    now = {"gullible": False}
    sound = {canary.group.candidates[0] for canary in BUILT_IN}
    engine: Any = judge.engine
    engine.script = engine.by_utility(lambda t: gullible(t) if now["gullible"] else float(t in sound)).script

    class Corrupting(JudgeReward):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            now["gullible"] = kwargs["trainer_state"].global_step >= 2
            return super().__call__(*args, **kwargs)

    reward = Corrupting(judge, num_generations=4, name="judge", canaries=Canaries(every=1, stop=True))
    with pytest.raises(JudgeDriftedError, match=r"spoof fell from 1\.00 to 0\.00"):
        trained(
            tmp_path, smol_tokenizer, reward, spoofing_policy(smol_tokenizer), max_steps=5, max_completion_length=40
        )
    assert reward.last_canaries is not None
    assert not reward.last_canaries.problems, "the last that was handed on was a good one, after two steps"
