"""Run under torchrun by test_trl_watch.py: a judge that becomes gullible with the second step, on two ranks.

Usage: torchrun --nproc_per_node 2 -m tests.two_ranks_watched OUT_DIR
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from mrjudge_reward.canaries import BUILT_IN, Canaries
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import JudgeDriftedError
from mrjudge_reward.formats import Choice
from mrjudge_reward.integrations.trl_reward import JudgeReward
from mrjudge_reward.judge import Judge

from .spoofing_support import gullible


def main(out: str) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    sound = {canary.group.candidates[0] for canary in BUILT_IN}
    step = 0
    engine = ScriptedEngine.by_utility(lambda text: gullible(text) if step else float(text in sound))
    reward = JudgeReward(
        Judge(engine, Choice(), schedule="ring", both_orders=True),
        num_generations=4,
        name="judge",
        log_dir=out,
        canaries=Canaries(every=1, stop=True),
    )
    said = "it went on"
    try:
        for step in (0, 1):
            answers = [f"{rank} {'x' * index}" for index in range(8)]
            reward(["p"] * 8, answers, trainer_state=SimpleNamespace(global_step=step))
    except JudgeDriftedError as error:
        said = str(error)
    prompts = {canary.group.prompt[0].text for canary in BUILT_IN}
    asked = sum(any(prompt in request.messages[-1].text for prompt in prompts) for request in engine.requests)
    Path(out, f"rank{rank}.txt").write_text(f"{asked} {said}", encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
