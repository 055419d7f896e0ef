"""Run under torchrun by test_trl_two_ranks.py: the judge of rank 1 alone is unreachable.

Usage: torchrun --nproc_per_node 2 -m tests.two_ranks_failing OUT_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import MRJudgeError
from mrjudge_reward.formats import Choice
from mrjudge_reward.integrations.trl_reward import JudgeReward
from mrjudge_reward.judge import Judge
from mrjudge_reward.stats import FailureAlarm
from mrjudge_reward.types import Failure


def main(out: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    engine = ScriptedEngine(lambda _: Failure("down")) if rank == 1 else ScriptedEngine.by_utility(len)
    judge = Judge(engine, Choice(), schedule="ring", alarm=FailureAlarm(least=1))
    reward = JudgeReward(judge, num_generations=4)
    caught = "nothing"
    try:
        reward(["p"] * 6, [f"{rank}{'x' * i}" for i in range(6)])
    except MRJudgeError as error:
        caught = type(error).__name__
    Path(out, f"rank{rank}.txt").write_text(caught, encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
