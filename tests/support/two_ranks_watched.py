"""The part of two_ranks.py in which a judge becomes gullible with the second step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import JudgeDriftedError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import Judge
from mrjudge_reward.monitoring.canaries import BUILT_IN, Canaries
from mrjudge_reward.prompting.formats import Choice

from .spoofing import gullible


def main(out: Path) -> None:
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
    (out / f"rank{rank}.txt").write_text(f"{asked} {said}", encoding="utf-8")
