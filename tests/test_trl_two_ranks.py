"""Groups that straddle ranks: judged once, and rewarded as one rank would reward them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.config import JudgeConfig
from mrjudge_reward.integrations.trl_reward import JudgeReward

pytestmark = pytest.mark.usefixtures("vllm_hidden")

ROOT = Path(__file__).resolve().parent.parent


def torchrun(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module, *arguments
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module", params=[2, 6], ids=["half a group each", "a group and a half each"])
def ranks(request: pytest.FixtureRequest, smol_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun("tests.two_ranks", str(smol_path), str(out), str(request.param))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


def test_every_group_is_judged_once_over_all_ranks(ranks: list[Any]) -> None:
    for first, second in zip(ranks[0]["calls"], ranks[1]["calls"], strict=True):
        rows = len(first["prompts"]) + len(second["prompts"])
        judged = first["judged"] + second["judged"]
        assert len(judged) == len(set(judged)) == rows // 4


def test_rows_get_the_rewards_that_one_rank_would_give_them(ranks: list[Any], smol_engine: Any) -> None:
    for first, second in zip(ranks[0]["calls"], ranks[1]["calls"], strict=True):
        together = {
            name: first[name] + second[name] for name in ("prompts", "completions", "completion_ids", "rewards")
        }
        alone = JudgeReward(JudgeConfig().build(smol_engine), num_generations=4, on_abstain="none")
        rewards = alone(
            together["prompts"], together["completions"], together["completion_ids"],
            trainer_state=SimpleNamespace(global_step=first["step"]),
        )  # fmt: skip
        assert together["rewards"] == [
            reward if reward is None else pytest.approx(reward, abs=2e-3) for reward in rewards
        ]
        assert first["calls"] == second["calls"] == alone.last_stats.calls


def test_the_trainer_saw_those_rewards_in_that_order(ranks: list[Any]) -> None:
    expected = ranks[0]["calls"][-1]["rewards"] + ranks[1]["calls"][-1]["rewards"]  # it keeps the last batch
    for rank in ranks:
        assert rank["trainer_rewards"] == pytest.approx(expected, abs=1e-5)
        assert len(rank["metrics"]) == 2


def test_an_error_on_one_rank_reaches_all_ranks(smol_path: Path, tmp_path: Path) -> None:
    """Otherwise the others would wait in the next collective until it times out."""
    done = torchrun("tests.two_ranks_failing", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    caught = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert caught[0] == {"judge": "JudgeUnreliableError", "engine": "EngineError", "rows": "InputError"}
    assert caught[1] == {"judge": "JudgeUnreliableError", "engine": "RuntimeError", "rows": "InputError"}
