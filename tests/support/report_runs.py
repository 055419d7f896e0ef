"""Runs to report on, made by the real reward with a scripted judge, and a real browser to look at reports."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.types import EngineFailure, Request

HOSTILE = (
    "<script>window.hacked=1</script>",
    '<img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script><!--",
    "\"><svg onload='window.hacked=1'> ' onfocus=window.hacked=1 autofocus \u2028 \u2029 &lt;b&gt; \ud800",
)
"""Answers that would act if a page took them for markup."""

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def reasoning_judge(**settings: Any) -> Judge:
    """A judge that writes why it prefers the longer answer, and fails on answers that ask it to."""

    def script(request: Request) -> str | EngineFailure:
        shown = shown_candidates(request)
        if any("fail here" in text for text in shown.values()):
            return EngineFailure("no verdict", "it said nothing", transient=False)
        best = max(shown, key=lambda label: len(shown[label]))
        return f"<think>Response {best} says more: <b>{len(shown[best])}</b> characters.</think><answer>{best}</answer>"

    return Judge(
        ScriptedEngine(script), Choice(), schedule="ring", both_orders=True, alarm=FailureAlarm(1.0), **settings
    )


def log_run(
    folder: Path, steps: int, answers: Sequence[str] | None = None, prompt: str = "Describe the sea.", **settings: Any
) -> JudgeReward:
    """Judge a group per step and log it; without answers, ones that grow longer over the run."""
    reward = JudgeReward(
        settings.pop("judge", None) or reasoning_judge(),
        num_generations=len(answers) if answers else 4,
        name="judge",
        log_dir=folder,
        **settings,
    )
    draw = random.Random(0)
    for step in range(steps):
        given = answers or [f"answer {i} " + "and more " * draw.randrange(1, 3 + step // 4) for i in range(4)]
        reward([prompt] * len(given), list(given), trainer_state=SimpleNamespace(global_step=step))
    return reward


@contextlib.contextmanager
def browser(dark: bool = False) -> Iterator[Any]:
    """Headless Chromium with an empty profile, that keeps its console and network logs."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    profile = tempfile.mkdtemp(prefix="mrjudge-chromium-")
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}", "--window-size=1280,1600"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise RuntimeError("these tests drive Chromium: run `make chromium`")
    options.binary_location = chromium
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        window.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield window
    finally:
        window.quit()
        shutil.rmtree(profile, ignore_errors=True)
