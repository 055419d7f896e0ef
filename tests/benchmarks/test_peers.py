"""The benchmark against other patterns: these against the loopback server, and a run of the script on a vLLM of its own.

`make test` runs it on the server that engines/vllm/test_engine.py has.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from mrjudge_reward import Group
from mrjudge_reward.engines.vllm.setup import cpu_build
from tests.support.judge_server import JudgeServer

from . import peers
from .test_benchmarks import printed_by

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not cpu_build(),
    reason="needs vLLM's CPU build, which `make setup` installs",
)
GROUPS = [Group.of(f"Question {g}?", ["six", "three", "seventeen", "four"], str(g)) for g in range(2)]


def found_by(name: str, server: JudgeServer, written: int = 32) -> Any:
    """What a pattern brings back from a server."""

    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            return await peers.PATTERNS[name](peers.PlainClient(client, "judge", written), GROUPS)

    return asyncio.run(run())


def scores(answers: Any, read: bool) -> list[float]:
    found: list[float] = peers.share_of_wins(answers, 4, read).round(6).tolist()
    return found


@pytest.mark.parametrize(
    ("name", "calls", "at_once"),
    [("one by one", 6, 1), ("all, gathered", 12, 24), ("ring, gathered", 4, 8), ("listwise, once", 1, 2)],
)
def test_a_pattern_makes_its_calls_one_by_one_or_all_at_once_and_finds_who_wins(name: str, calls: int, at_once: int):
    with JudgeServer(delay_s=0.5 if at_once > 1 else 0.0) as server:
        found = found_by(name, server)
        assert len(server.requests) == calls * len(GROUPS)
        assert server.most_in_flight == at_once
    for answers in found:
        assert len(answers) == calls
        won = scores(answers, read=False)
        assert won[2] == max(won) == 1
        assert won[0] == min(won) == 0


def test_no_more_calls_are_in_flight_than_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "CONCURRENCY", 3)
    with JudgeServer(delay_s=0.02) as server:
        found_by("all, gathered", server)
        assert server.most_in_flight == 3


@pytest.mark.parametrize("name", ["one by one", "all, gathered", "ring, gathered", "listwise, once"])
def test_a_pattern_turns_failed_verdicts_into_equal_shares(name: str):
    with JudgeServer(faults=lambda call: "off_menu") as server:
        found = found_by(name, server)
    assert all(answer.parsed is None and answer.missing for answers in found for _, answer in answers)
    size = 4 if name == "listwise, once" else 2
    assert scores(found[0], read=False) == [1 / size] * 4


def test_a_read_call_gives_the_share_of_each_label_and_zero_for_one_that_was_not_seen():
    with JudgeServer() as server:  # A has .7, B .2, C .1; a D is not among the likely
        ((pair, answer), *_), _ = found_by("one by one", server, written=0)
        assert pair == (0, 1)
        assert answer.shares_K == pytest.approx([7 / 9, 2 / 9])
        assert (answer.parsed, answer.missing) == (0, False)
        ((_, everyone),), _ = found_by("listwise, once", server, written=0)
        assert everyone.shares_K == pytest.approx([0.7, 0.2, 0.1, 0.0])
        assert everyone.missing, "it counts as a failed verdict"
        bodies: list[Mapping[str, Any]] = server.requests
        assert all(body["messages"][-1] == {"role": "assistant", "content": "<answer>"} for body in bodies)
        assert {body["max_tokens"] for body in bodies} == {1}


def assert_both_tables(printed: str, written: Any) -> None:
    tables = {how: {row["name"]: row for row in rows} for how, rows in written.items()}
    theirs = {"one by one": 3, "all, gathered": 6, "ring, gathered": 3, "listwise, once": 1}
    ours = {"ours, all_pairs": 6, "ours, adaptive": 6, "ours, ring": 6, "ours, listwise": 4}
    read, wrote = tables["read"], tables["written"]
    assert {name: row["calls"] for name, row in read.items()} == theirs | ours
    ours_written = {name: ours[name] for name in ("ours, adaptive", "ours, listwise")}
    assert {name: row["calls"] for name, row in wrote.items()} == theirs | ours_written
    for table, repeats in ((read, 2), (wrote, 1)):
        assert all(len(row["seconds"]) == repeats for row in table.values())
    assert all(printed.count(f"\n{name} ") == 1 + (name in wrote) for name in read)
    assert read["ours, all_pairs"]["taus"]["read"] == [1.0, 1.0], "the reference itself"
    assert all(set(read[name]["taus"]) == {"read", "parsed"} for name in theirs)
    for row in wrote.values():
        if row["failed"]["parsed"] == row["verdicts"]:
            scored = 0 if row["name"] in ours else row["candidates"]
            assert row["scored"]["parsed"] == scored, "a failed verdict is a score in theirs and none in ours"


@pytest.mark.scale
@needs_vllm
@pytest.mark.usefixtures("smol_path")
def test_the_benchmark_against_other_patterns_starts_a_server_and_prints_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    printed = printed_by("peers", "--quick", "--json", str(tmp_path / "rows.json"))
    assert_both_tables(printed, json.loads((tmp_path / "rows.json").read_text()))
