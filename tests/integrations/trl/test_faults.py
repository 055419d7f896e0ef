"""Real GRPO training against a judge server that misbehaves: no failure becomes a number, and none stops the run early."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.errors import JudgeUnreliableError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.types import Judgement
from tests.support import ROOT
from tests.support.judge_server import JudgeServer, seeded
from tests.support.trl_setup import grpo_like, logged, prompt_dataset, tiny_policy

FAULTS = ("500", "hang", "drop", "garbage", "half", "no_choices", "off_menu", "truncated", "wrong_count")


class SteppingServer(transformers.TrainerCallback):
    """Calls something at the end of each step."""

    def __init__(self, at_step: Callable[[int], None]) -> None:
        self.at_step = at_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at_step(state.global_step)


@pytest.fixture
def train(smol_tokenizer: Any, tmp_path: Path) -> Any:
    def run(config: JudgeConfig, steps: int, at_step: Callable[[int], None] = lambda _: None) -> Any:
        seen: list[Judgement] = []
        reward = JudgeReward(config, num_generations=4, name="judge")
        judge = reward.judge.judge

        def watched(groups: Any) -> list[Judgement]:
            seen.extend(judgements := judge(groups))
            return judgements

        reward.judge.judge = watched  # type: ignore[method-assign]
        trainer = GRPOTrainer(
            model=tiny_policy(smol_tokenizer),
            processing_class=smol_tokenizer,
            reward_funcs=reward,
            train_dataset=prompt_dataset(),
            callbacks=[SteppingServer(at_step)],
            args=GRPOConfig(**grpo_like(tmp_path, scale_rewards="none") | {"max_steps": steps}),
        )
        trainer.seen = seen
        trainer.table = trainer._logs["rewards"]["judge"]
        try:
            trainer.train()
        finally:
            reward.judge.close()
        return trainer

    return run


def config(base_url: str, **more: Any) -> JudgeConfig:
    settings: dict[str, Any] = {
        "model": "judge", "base_url": base_url, "verdict": "generate", "format": "choice",
        "schedule": "ring", "deadline_s": 2.0, "retries": 0,
        **more,
    }  # fmt: skip
    return JudgeConfig(**settings)


def test_training_goes_on_while_a_third_of_the_calls_fail(train: Any) -> None:
    with JudgeServer(faults=seeded(FAULTS, 1 / 3), hang_s=6.0) as server:
        trainer = train(config(server.base_url), steps=3)
    failed = logged(trainer, "judge/failed_rate")
    assert len(failed) == 3
    assert 0 < sum(failed) / 3 < 0.5
    rewards = list(trainer._logs["rewards"]["judge"])
    judged = [score for judgement in trainer.seen[-len(rewards) // 4 :] for score in judgement.scores_G]
    for judgement in trainer.seen:
        for index, score in enumerate(judgement.scores_G):
            games = [
                item for item in judgement.played if index in item.comparison.slots and not item.verdict.failed
            ]  # duplicates of a candidate share the comparisons of their twin
            twin = judgement.group.candidates.index(judgement.group.candidates[index])
            games += [item for item in judgement.played if twin in item.comparison.slots and not item.verdict.failed]
            if not games and index not in judgement.forfeits:
                assert score is None
    for reward, score in zip(rewards, judged, strict=True):
        assert math.isnan(reward) if score is None else reward == pytest.approx(score, abs=1e-5)


def test_a_judge_that_always_fails_stops_the_run_and_says_why(train: Any) -> None:
    with (
        JudgeServer(faults=lambda _: "400") as server,
        pytest.raises(JudgeUnreliableError, match=r"of the last \d+ judgements failed .*http 400"),
    ):
        train(config(server.base_url), steps=20)


def test_a_judge_that_starts_to_fail_in_mid_run_stops_it(train: Any) -> None:
    with JudgeServer() as server:

        def break_down(step: int) -> None:
            if step == 3:
                server.all_fail = "off_menu"

        with pytest.raises(JudgeUnreliableError, match="off-menu label"):
            train(config(server.base_url, failure_window=64), steps=40, at_step=break_down)


def test_a_server_killed_and_restarted_in_mid_run_is_found_again(train: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = [sys.executable, str(ROOT / "tests/support/judge_server.py"), "--port", str(port)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    servers = [start()]
    timers: list[threading.Timer] = []

    def kill(step: int) -> None:
        if step == 2:
            servers[-1].kill()
            servers[-1].wait()
            timers.append(threading.Timer(1.0, lambda: servers.append(start())))
            timers[-1].start()

    try:
        started = time.monotonic()
        trainer = train(config(f"http://127.0.0.1:{port}/v1", deadline_s=60.0), steps=3, at_step=kill)
        assert time.monotonic() - started > 1.0
    finally:
        for timer in timers:
            timer.join()
        for server in servers:
            server.kill()
            server.wait()
    assert len(servers) == 2
    assert logged(trainer, "judge/failed_rate") == [0.0] * 3
