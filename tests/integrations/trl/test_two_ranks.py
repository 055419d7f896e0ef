"""Two ranks under FSDP whose groups straddle them: judged once, and rewarded as one rank would reward them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.monitoring.run_log import read_run
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("vllm_hidden")


EACH = {2: "half a group each", 6: "a group and a half each"}


@pytest.fixture(scope="module")
def run(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote down."""
    out = tmp_path_factory.mktemp("ranks")
    for part in (*map(str, EACH), "failing", "watched"):
        (out / part).mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
    environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as `accelerate launch --use_fsdp` does
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.support.two_ranks", smol_path, str(out), *map(str, EACH),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(params=EACH, ids=EACH.get)
def ranks(request: pytest.FixtureRequest, run: Path) -> Any:
    return [json.loads((run / f"{request.param}/rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]


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


def test_an_error_on_one_rank_reaches_all_ranks(run: Path) -> None:
    """Otherwise the others would wait in the next collective until it times out."""
    caught = [json.loads((run / f"failing/rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    both = {
        "judge": "JudgeUnreliableError", "rows": "InputError", "unpicklable": "InputError", "other weights": "EngineError",
        "ddp_timeout": "ConfigError",
    }  # fmt: skip
    assert caught[0] == both | {"engine": "EngineError"}
    assert caught[1] == both | {"engine": "RuntimeError"}


def test_a_judge_in_each_rank_is_whole_and_gives_the_same_rewards_where_the_policy_is_sharded(
    run: Path, ranks: list[Any], smol_engine: Any
) -> None:
    """Also where the launcher asks transformers for zeros on all ranks but the first."""
    assert [(run / f"zeroed.rank{rank}").read_text() for rank in (0, 1)] == ["False", "True"]
    assert all(rank["sharded"] for rank in ranks)
    assert [rank["weights"] for rank in ranks] == [smol_engine.weights_checksum] * 2
    first, second = (rank["same_group"] for rank in ranks)
    assert first == second
    assert first[0] < first[1] < first[2]


def test_one_rank_judges_canaries_and_all_ranks_stop(run: Path) -> None:
    out = run / "watched"
    ranks = [(out / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    for said in ranks:
        assert "spoof fell from 1.00 to 0.00" in said
    canaries = [int(said.split()[0]) for said in ranks]
    assert canaries[0] > 0
    assert canaries[1] == 0
    log = read_run(out)
    assert [batch.stats.groups for batch in log.batches] == [4, 4], "two of each rank"
    assert len(list(out.glob("judge.rank*.jsonl"))) == 2
