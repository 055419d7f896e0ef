"""A judge whose verdicts mean nothing: the control of what a policy, or a choice of the best, owes to the judge."""

from __future__ import annotations

from random import Random

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.tournament import digest
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.types import Request


def random_judge(seed: int) -> Judge:
    """A judge whose verdicts depend on the seed and on what it is shown, and on nothing in it."""

    def script(request: Request) -> dict[str, float]:
        draw = Random(digest(seed, *(message.text for message in request.messages)))
        return {label: 1 - draw.random() for label in request.labels}  # above 0

    return Judge(ScriptedEngine(script, identity=f"random, seed {seed}"), Choice(), verdict="logprobs", seed=seed)
