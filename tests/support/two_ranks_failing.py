"""The part of two_ranks.py in which rank 1 alone fails, in one of several ways."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch.distributed as dist

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.types import EngineFailure, Reply, Request


class BrokenEngine(ScriptedEngine):
    """Raises where an engine should not."""

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        raise RuntimeError("device-side assert")


class OtherWeights(ScriptedEngine):
    """Says that it loaded other weights than its neighbour."""

    weights_checksum = "c0ffee"


def main(out: Path) -> None:
    rank = dist.get_rank()
    good = ScriptedEngine.by_utility(len)
    bad = {
        "judge": ScriptedEngine(lambda _: EngineFailure("down")), "engine": BrokenEngine(lambda _: ""), "rows": good,
        "unpicklable": good, "other weights": OtherWeights.by_utility(len),
    }  # fmt: skip
    caught = {}
    for name, engine in bad.items():
        judge = Judge(engine if rank == 1 else good, Choice(), schedule="ring", retries=0, alarm=FailureAlarm(least=1))
        prompts: list[Any] = ["p"] * 6 if rank == 0 or name != "rows" else ["p"] * 5
        if rank == 1 and name == "unpicklable":
            prompts = [[{"role": "user", "content": [{"type": "image", "image": lambda: None}]}]] * 6
        try:
            JudgeReward(judge, num_generations=4)(prompts, [f"{rank}{'x' * i}" for i in range(6)])
        except Exception as error:  # noqa: BLE001  the test looks at which it was
            caught[name] = type(error).__name__
    trainer = SimpleNamespace(args=SimpleNamespace(ddp_timeout=120))  # less than a request may take
    served = JudgeReward(JudgeConfig(model="judge", base_url="http://127.0.0.1:9/v1"), num_generations=4)
    try:
        served(["p"] * 6, list("abcdef"), log_metric=MethodType(lambda *_: None, trainer))
    except ConfigError as error:
        caught["ddp_timeout"] = type(error).__name__
    (out / f"rank{rank}.json").write_text(json.dumps(caught), encoding="utf-8")
