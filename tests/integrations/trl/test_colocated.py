"""TRL's GRPO with its policy engine in the trainer's process and a colocated judge beside it: real vLLM twice, on a CPU.

Who is awake when is real; memory is not, because vLLM frees none on a CPU (for that see test_gpu.py), and TRL's own engine
cannot be put to sleep there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.engines.vllm.setup import cpu_build
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig
from tests.support import ROOT
from tests.support.trl_setup import tiny_policy
from tests.support.vllm_on_cpu import ENVIRONMENT

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not cpu_build(),
    reason="needs vLLM's CPU build, which `make setup` installs",
)

A_STEP = [["policy generates", "asleep"], ["judging", "awake"], ["policy trains", "asleep"], ["step done", "asleep"]]


@pytest.fixture(scope="module")
def run(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two steps, then one whose reward raises."""
    out = tmp_path_factory.mktemp("colocated")
    tiny_policy(smol_tokenizer, heads=2).save_pretrained(out / "policy")
    smol_tokenizer.save_pretrained(out / "policy")
    environment = os.environ | ENVIRONMENT | {"MRJUDGE_LOCKS": str(out / "locks")}
    command = [
        sys.executable,
        "-m",
        "tests.support.trl_colocated_run",
        str(out / "policy"),
        str(out / "run.json"),
        "cpu",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def test_the_judge_is_awake_only_while_it_judges(run: Any):
    built = [["judge built", "asleep"], ["trainer built", "asleep"]]
    assert run["seen"] == [*built, *A_STEP, *A_STEP]


def test_a_reward_that_raises_leaves_the_judge_asleep_and_reaches_the_trainer(run: Any):
    assert run["error"] == "planted in the middle of a judgement"
    assert run["seen_with_error"] == [*A_STEP[:2], ["after the error", "asleep"]]


def test_rewards_are_those_that_the_judge_gives_the_same_groups_on_its_own(run: Any, smol_engine: Any):
    assert len(run["calls"]) == 2
    for call, again in zip(run["calls"], run["again"], strict=True):
        assert call["rewards"] == pytest.approx(again, abs=2e-3)
        alone = JudgeReward(JudgeConfig().build(smol_engine), num_generations=2, on_abstain="none")
        state = SimpleNamespace(global_step=call["step"])
        expected = alone(call["prompts"], call["completions"], call["completion_ids"], trainer_state=state)
        assert call["rewards"] == pytest.approx(expected, abs=2e-3)
        assert len(set(call["rewards"])) > 1
    assert run["trainer_rewards"] == pytest.approx(run["calls"][-1]["rewards"], abs=1e-5)
    assert run["failed"] == [0.0, 0.0]


def test_the_policy_trains_on_them_and_its_engine_follows(run: Any):
    assert all(gradient > 0.1 for gradient in run["gradients"])
    assert max(run["sampled_against_trained"]) < 1e-2, "TRL's engine samples from the weights that are trained"
    assert len(run["sampled_against_trained"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_judges_server_ends_with_the_run(run: Any):
    assert run["server"] > 0
    assert not Path(f"/proc/{run['server']}").exists()
