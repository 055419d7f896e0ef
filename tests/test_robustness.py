"""Interrupted, abandoned and overfilled: what a judge leaves behind, in real processes against a real server."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.cli import doctor
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import EngineError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.messages import ImagePart, Message, TextPart, as_messages
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Reply, Request
from tests.support.judge_server import JudgeServer, longest_wins

from .support import ROOT

SLOTS = 4
ENV = {**os.environ, "OPENAI_API_KEY": "none"}

PROGRAM = """
import sys, threading
from mrjudge_reward import Choice, Group, Judge
from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.openai.engine import OpenAIEngine
url, path, schedule = sys.argv[1:]
engine = OpenAIEngine("judge", url, max_concurrency=4, deadline_s=60.0)
judge = Judge(engine, Choice(), schedule=schedule, verdict="generate", audit=False, temperature=0, cache=ReplyCache(path))
groups = [Group.of(f"Question {g}?", [f"answer {i}" + "!" * (i * 3 % 5) for i in range(4)], str(g)) for g in range(6)]
try:
    found = judge.judge(groups)
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate() if t.name == "mrjudge-rounds"], flush=True)
    raise
finally:
    judge.close()
print(sum(one.calls for one in found), sum(one.cache_hits for one in found))
"""


def start(*command: str) -> subprocess.Popen[str]:
    """A process in a group of its own, so that what it starts and leaves behind can be seen."""
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENV,
        start_new_session=True,
    )  # fmt: skip


def interrupted_after(server: JudgeServer, answered: int, *command: str) -> tuple[int, str, str]:
    """Run a command whose server answers so many requests and then thinks for a minute, and interrupt it.

    Returns:
        Exit code, output and error output.
    """
    server.plan = lambda index: None if index < answered else "hang"
    running = start(*command)
    # A slot is free for another request when the reply to an earlier one has arrived.
    assert server.wait_until(lambda s: len(s.requests) == answered + SLOTS, within_s=60), running.communicate()
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    output, complaint = running.communicate(timeout=60)
    assert time.monotonic() - began < 30, "the deadline is a minute"
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
    server.plan = lambda index: None
    server.requests.clear()
    return running.returncode, output, complaint


def kept(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with closing(ReplyCache(path)) as cache:
        return len(cache)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["ring", "adaptive"])
def test_an_interrupted_program_ends_at_once_and_the_next_run_asks_only_the_rest(schedule: str, tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    with JudgeServer() as server:
        command = ("-c", PROGRAM, server.base_url, str(path), schedule)
        code, output, complaint = interrupted_after(server, 21, *command)
        assert code == -signal.SIGINT, "as Python ends by a KeyboardInterrupt that nobody caught"
        assert output == "interrupted []\n"
        assert complaint.rstrip().endswith("KeyboardInterrupt")
        assert kept(path) == 21
        again = start(*command)
        output, complaint = again.communicate(timeout=60)
        assert again.returncode == 0, complaint
        calls, hits = map(int, output.split())
        assert calls == len(server.requests)
        assert hits == 21
    assert kept(path) == calls + hits


def test_an_interrupted_rank_ends_with_code_130_and_the_same_command_asks_only_the_rest(tmp_path: Path) -> None:
    source, output, path = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "replies.sqlite"
    lines = [{"prompt": f"Question {g}?", "candidates": [f"{i}" * (1 + i * 3 % 5) for i in range(4)]} for g in range(8)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with JudgeServer() as server:
        settings = ["model=judge", f"base_url={server.base_url}", f"max_concurrency={SLOTS}", f"cache={path}"]
        settings += ["verdict=generate", "format=choice"]
        command = ["-m", "mrjudge_reward.cli", "rank", str(source), "-o", str(output), "--chunk", "4"]
        command += [word for setting in settings for word in ("--set", setting)]
        # 8 calls for each group, an audit among them: some are judged and others at work when the signal comes.
        code, _, complaint = interrupted_after(server, 50, *command)
        assert code == 130, complaint
        written = len(output.read_text(encoding="utf-8").splitlines())
        assert 0 < 8 * written <= 50, "each line that is written had all its verdicts"
        assert f"interrupted; {written} results are written, the same command goes on from there" in complaint
        assert "Traceback" not in complaint
        assert kept(path) == 50
        again = start(*command)
        _, complaint = again.communicate(timeout=60)
        assert again.returncode == 0, complaint
        assert kept(path) == 50 + len(server.requests) == 8 * len(lines)
    assert [json.loads(line)["best"] for line in output.read_text().splitlines()] == [3] * 8


# -- a server that is gone ----------------------------------------------------------------------------------------------


def test_a_server_that_died_costs_a_thousand_comparisons_one_deadline_and_no_verdict() -> None:
    with JudgeServer() as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=16, deadline_s=1.0, outage_wait_s=1.0)
        judge = Judge(engine, verdict="generate", schedule="adaptive", audit=False, alarm=FailureAlarm(1.0))
        assert judge.rank("Question?", ["one", "three"]).best == 1
    groups = [Group.of(f"Question {g}?", [f"answer {i}" for i in range(8)], str(g)) for g in range(63)]
    began = time.monotonic()
    judgements = judge.judge(groups)
    assert time.monotonic() - began < 30, "63 waves of slots would take a minute"
    judge.close()
    assert sum(len(judgement.played) for judgement in judgements) == 1008
    for judgement in judgements:
        assert judgement.scores_G == (None,) * 8
        assert all(isinstance(item.verdict.outcome, NoVerdict) for item in judgement.played)


def test_the_doctor_goes_past_a_proxy_to_a_server_on_this_machine_as_the_engine_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with JudgeServer() as server:
        found = doctor._server(JudgeConfig(model="judge", base_url=server.base_url))
    assert "cannot be reached" not in found.detail


# -- ten thousand comparisons ---------------------------------------------------------------------------------------------


class Forgetful(ScriptedEngine):
    """Keeps no list of its requests, which would hold every rendered prompt."""

    def _answer(self, request: Request) -> Reply | EngineFailure:
        self.shown = getattr(self, "shown", 0) + len(request.messages[-1].text)
        answer = super()._answer(request)
        self.requests.clear()
        return answer


def test_ten_thousand_comparisons_hold_each_rendered_prompt_once() -> None:
    def answer(group: int, index: int) -> str:
        return f"{index}: {group} " + "because of this and that, " * 80

    groups = [Group.of(f"Question {g}?", [answer(g, i) for i in range(8)], str(g)) for g in range(625)]
    engine = Forgetful(lambda _: "<answer>A</answer>")
    judge = Judge(engine, verdict="generate", schedule="ring", audit=False)
    tracemalloc.start()
    try:
        judgements = judge.judge(groups)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(judgement.calls for judgement in judgements) == 10_000
    # A comparison's own objects (slots, request, messages, key, reply, verdict) and its share of the guarded answers take
    # under 3 kB. A second copy of the rendered texts would take 5 kB more.
    assert peak < engine.shown + 10_000 * 3_500
    assert left < 10_000 * 1_000, "judgements keep the verdicts, and nothing of the prompts"


def test_ten_thousand_requests_in_one_call_cost_memory_for_those_in_flight() -> None:
    requests = [Request(as_messages(f"{number}: which is better? " + "x" * 4000)) for number in range(10_000)]
    with JudgeServer() as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=64, deadline_s=60.0)
        engine.generate(requests[:64])  # connections are open
        server.all_fail = "hang"
        failed: list[EngineError] = []

        def call() -> None:
            try:
                engine.generate(requests)
            except EngineError as error:
                failed.append(error)

        calling = threading.Thread(target=call)
        tracemalloc.start()
        try:
            calling.start()
            assert server.wait_until(lambda s: s.in_flight == 64, within_s=60)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            engine.close()
            calling.join()
    assert len(failed) == 1
    # The server's side of 64 requests is counted too. A task and its place in a queue for each request would be 15 MB.
    assert peak < 5e6


def test_images_of_a_long_call_are_not_all_encoded_at_once(tmp_path: Path) -> None:
    for number in range(100):
        Image.effect_noise((180, 180), 90).convert("RGB").save(tmp_path / f"{number}.png", compress_level=0)
    size = (tmp_path / "0.png").stat().st_size
    assert size > 90_000

    def ask(number: int, turn: int) -> Request:
        image = ImagePart(str(tmp_path / f"{number}.png"))
        return Request((Message("user", (image, TextPart(f"Which fits, {turn}?"))),))

    requests = [ask(number, turn) for number in range(100) for turn in range(2)]

    def answer(body: Any) -> str:
        server.requests.clear()  # the bodies, which are not what is measured
        return longest_wins(body)

    with JudgeServer(answer) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=2)
        engine.generate(requests[:2])  # connections are open
        tracemalloc.start()
        try:
            replies = engine.generate(requests)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            engine.close()
    assert all(isinstance(reply, Reply) for reply in replies)
    assert peak < 0.6 * 100 * math.ceil(size / 3) * 4, "all images as base64"
