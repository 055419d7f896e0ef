"""Resident memory of the judge's actor while groups about large images are judged one after the other.

    python -m tests.benchmarks.verl_images --groups 500

Each group has one image of three megapixels, which every sample carries, as verl's rows do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from typing import Any

import psutil
import ray
from PIL import Image

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.integrations.verl.actor import JudgeActorClient
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.streaming.scores import Sample
from mrjudge_reward.types import EngineFailure, Reply, Request


class Forgetful(ScriptedEngine):
    """Keeps no request; those of a test would hold every image."""

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        replies = super().label_logprobs(requests)
        self.requests.clear()
        return replies


def judge(config: JudgeConfig) -> Judge:
    """Named as ``factory``."""
    return Judge(Forgetful.by_utility(len), Choice(), verdict="logprobs")


def resident(_: Any) -> int:
    """Bytes of the process that runs this."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


async def measure(groups: int, size: int, kept_bytes: int) -> tuple[int, list[int]]:
    settings = VerlSettings(factory="tests.benchmarks.verl_images:judge", kept_bytes=kept_bytes, group_size=size)
    client = JudgeActorClient(settings.judge_config(), settings)
    seen = []
    start = await client.actor().__ray_call__.remote(resident)
    for number in range(groups):
        image = Image.effect_noise((2000, 1500), 100 + number % 50).convert("RGB")
        prompt = (Message("user", (ImagePart(image), TextPart(f"What is it? {number}"))),)
        members = (Sample(str(number), str(i), size, prompt, "x" * (i + 1), 1) for i in range(size))
        await asyncio.gather(*map(client.join, members))
        seen.append(await client.actor().__ray_call__.remote(resident))
    return start, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--kept-bytes", type=int, default=VerlSettings().kept_bytes)
    given = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    start, seen = asyncio.run(measure(given.groups, given.size, given.kept_bytes))
    mib = 2**20
    print(f"before {start / mib:.0f} MiB, most {max(seen) / mib:.0f}, last {seen[-1] / mib:.0f}; remembered at most "
          f"{given.kept_bytes / mib:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
