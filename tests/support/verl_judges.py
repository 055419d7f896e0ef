"""Judges that a judge actor builds by their name (``mrjudge.factory``); its process then imports nothing of verl."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.images import opened
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.types import EngineFailure, Reply, Request

from .arriving import scripted, taste
from .criteria_judge import ThreeCriteriaEngine
from .tool_runs import recording_engine


def scripted_judge(config: JudgeConfig) -> Judge:
    """A judge with a taste and a position bias, so that who meets whom in which slots shows in the rewards."""
    return scripted()


def centred_judge(config: JudgeConfig) -> Judge:
    """The scripted judge, which subtracts the group's mean and prefers what is short."""
    return scripted(ScriptedEngine.by_utility(lambda _: 1.0), rating="win_rate", centre=True, length_weight=0.5)


def referring_judge(config: JudgeConfig) -> Judge:
    """A judge by three criteria that says nothing where it is not shown two references. Its calls are counted in the file
    that ``MRJUDGE_TEST_CALLS`` names."""
    engine = ThreeCriteriaEngine(config.build_engine(), Path(os.environ["MRJUDGE_TEST_CALLS"]))
    script = engine.script

    def referring(request: Request) -> Any:
        shown = "Reference 1 of 2: one\nReference 2 of 2: two" in request.messages[-1].text
        return script(request) if shown else EngineFailure("no references", transient=False)

    engine.script = referring
    return config.build(engine)


def slow_judge(config: JudgeConfig) -> Judge:
    """The scripted judge, a fifth of a second per call of its engine."""
    judge = scripted_judge(config)
    serve = judge.engine._serve  # type: ignore[attr-defined]

    def slowly(requests: Sequence[Any]) -> Any:
        time.sleep(0.2)
        return serve(requests)

    judge.engine._serve = slowly  # type: ignore[attr-defined]
    return judge


def deadly_judge(config: JudgeConfig) -> Judge:
    """A judge that takes its process with it."""
    return Judge(ScriptedEngine(lambda _: os._exit(1)), Choice(), schedule="ring")


def failing_judge(config: JudgeConfig) -> Judge:
    """A judge that gives no verdict where the prompt asks for none."""

    def script(request: Request) -> str | EngineFailure:
        if "no verdict" in request.messages[-1].text:
            return EngineFailure("refused", transient=False)
        shown = shown_candidates(request)
        return f"<answer>{max(shown, key=lambda label: taste(shown[label]))}</answer>"

    return Judge(ScriptedEngine(script), Choice(), schedule="ring", alarm=FailureAlarm(1.0))


def seeing_judge(config: JudgeConfig) -> Judge:
    """A judge that prefers answers holding the colour of the first image of the prompt, and fails without an image."""

    def script(request: Request) -> str | EngineFailure:
        images = [image for message in request.messages for image in message.images]
        if not images:
            return EngineFailure("no image", transient=False)
        colour = {(255, 0, 0): "red", (0, 0, 255): "blue"}[opened(images[0].image).getpixel((0, 0))]
        shown = shown_candidates(request)
        return f"<answer>{max(shown, key=lambda label: colour in shown[label])}</answer>"

    return Judge(ScriptedEngine(script), Choice(), schedule="all_pairs", alarm=FailureAlarm(1.0))


def count_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **_: Any) -> float:
    """A verifiable reward, as verl calls one."""
    return len(solution_str.split()) + len(data_source) / 10 + len(ground_truth) / 100


class RecordingEngine(ScriptedEngine):
    """Prefers what was looked up, and writes down what it is shown, in the file that ``MRJUDGE_TEST_SEEN`` names."""

    def _answer(self, request: Request) -> Reply | EngineFailure:
        with open(os.environ["MRJUDGE_TEST_SEEN"], "a", encoding="utf-8") as file:
            file.write(json.dumps([request.messages[-1].text]) + "\n")
        return super()._answer(request)


def recording_judge(config: JudgeConfig) -> Judge:
    """A judge of tool users."""
    return config.build(RecordingEngine(recording_engine().script, reads=True))
