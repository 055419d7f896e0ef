"""A judge on a server that answers in every shape and fails in every way, at random: no verdict is invented, none that could
be read is lost, and beside the stalls themselves it takes hardly longer."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.types import Group, JudgedComparison, Preference
from tests.engines.openai.test_server_replies import FAILED, READABLE, V
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text

PASSING = ("500", "503", "429", "drop", "half")
"""Faults of one try: the next one is answered."""
LASTING = ("400", "garbage", "text", "error_object")
STALL_S = 5.0
DEADLINE_S = 4.0


def worded(value: Any, verdict: str) -> Any:
    """A shape with another verdict in it."""
    if isinstance(value, str):
        return value.replace(V, verdict)
    if isinstance(value, list):
        return [worded(item, verdict) for item in value]
    return {name: worded(item, verdict) for name, item in value.items()} if isinstance(value, dict) else value


class FaultyServer(JudgeServer):
    """Draws what becomes of each request, and notes what each prompt was answered last: whether it can be read."""

    def __init__(self, faulty: bool, stalls: int, delay_s: float, seed: int = 0) -> None:
        super().__init__(self.reply_to, faults=self.fate, reads="none", delay_s=delay_s, rejects=self.refuses)
        self.faulty, self.stall_at = faulty, {600 * (1 + number) for number in range(stalls)} if stalls else set()
        self.random, self.drawing = random.Random(seed), threading.Lock()
        self.readable: dict[str, bool] = {}
        self.drawn: Counter[str] = Counter()
        self.stalled_until = 0.0
        self.shapes = [name for name in READABLE if name != "two text parts"]  # its verdict stands in two parts

    def refuses(self, body: Mapping[str, Any]) -> Any:
        unknown = [name for name in ("seed", "top_p") if self.faulty and name in body]
        return (
            {"error": {"message": f"Unsupported parameter: '{unknown[0]}'", "param": unknown[0]}} if unknown else None
        )

    def fate(self, index: int) -> str | None:
        if not self.faulty:
            return None
        if index in self.stall_at:
            self.stalled_until = time.monotonic() + STALL_S
        if (waits_s := self.stalled_until - time.monotonic()) > 0:
            time.sleep(waits_s)
            if waits_s > DEADLINE_S - 0.2:
                return "drop"  # nobody waits for it any more
        body = self.requests[index]
        with self.drawing:
            drawn = self.random.random()
            fault = (
                self.random.choice(PASSING) if drawn < 0.03 else self.random.choice(LASTING) if drawn < 0.04 else None
            )
        if fault in LASTING:
            self.readable[prompt_text(body)] = False
        if fault:
            self.drawn[fault] += 1
        return fault

    def reply_to(self, body: Mapping[str, Any]) -> Any:
        verdict = "<answer>" + longest_wins(body).rpartition("<answer>")[2]
        with self.drawing:
            good = not self.faulty or self.random.random() > 0.02
            name = self.random.choice(self.shapes if good else list(FAILED))
        self.readable[prompt_text(body)] = good
        if not self.faulty:
            return verdict
        self.drawn[name] += 1
        shape = READABLE[name] if good else FAILED[name][0]
        return {**(worded(shape.get("message") or {}, verdict)), "finish_reason": shape.get("finish_reason")}


def run(
    server: FaultyServer, groups: list[Group], slots: int
) -> tuple[float, list[tuple[Group, JudgedComparison, str]]]:
    """Seconds, and each comparison with what was asked."""
    judge = JudgeConfig(
        model="judge", base_url=server.base_url, verdict="generate", format="choice", schedule="ring", audit=False,
        max_concurrency=slots, deadline_s=DEADLINE_S, max_failed_fraction=1.0,
    ).build()  # fmt: skip
    started = time.monotonic()
    judged = judge.judge(groups)
    seconds = time.monotonic() - started
    asked = [
        (one.group, item, judge.render(one.group, item.comparison.slots)[-1].text)
        for one in judged
        for item in one.played
    ]
    judge.close()
    return seconds, asked


def check(comparisons: int, slots: int, stalls: int, delay_s: float) -> tuple[float, float]:
    """Seconds without and with faults, those of the stalls taken off."""
    words = ["yes", "no, never", "that depends on much", "quite certainly, as everybody knows"]
    groups = [
        Group.of(f"q{number}", [f"{word} {number}" for word in words], str(number))
        for number in range(comparisons // 8)
    ]
    with FaultyServer(faulty=False, stalls=0, delay_s=delay_s) as server:
        plain_s, asked = run(server, groups, slots)
    assert len(asked) == comparisons
    assert not [item for _, item, _ in asked if item.verdict.failed]
    with FaultyServer(faulty=True, stalls=stalls, delay_s=delay_s) as server:
        faulty_s, asked = run(server, groups, slots)
        invented, needless, failed = 0, Counter[str](), 0
        for group, item, text in asked:
            outcome, slots_K = item.verdict.outcome, item.comparison.slots
            if isinstance(outcome, Preference):
                best = max(range(len(slots_K)), key=lambda slot: len(group.candidates[slots_K[slot]]))
                invented += outcome.probabilities_K[best] != 1.0 or not server.readable[text]
                continue
            failed += 1
            if server.readable.get(text, True):
                needless[f"{getattr(outcome, 'reason', outcome)}: {getattr(outcome, 'detail', '')}"] += 1
        print(
            f"\n{len(asked)} comparisons, {len(server.requests)} requests, {len(server.drawn)} shapes; {failed} failed, "
            f"{sum(needless.values())} of them needlessly, {invented} invented; {plain_s:.1f} s without faults, "
            f"{faulty_s:.1f} s with, {stalls * STALL_S:.1f} s of it stalls"
        )
    assert invented == 0
    assert not needless
    assert 0 < failed < 0.1 * comparisons
    return plain_s, faulty_s - stalls * STALL_S


def test_a_server_with_every_shape_and_fault_costs_no_verdict_that_could_be_read():
    check(comparisons=800, slots=16, stalls=1, delay_s=0.0)


@pytest.mark.scale
def test_two_thousand_comparisons_on_such_a_server_take_hardly_longer_than_on_a_good_one():
    plain_s, faulty_s = check(comparisons=2000, slots=16, stalls=2, delay_s=0.3)
    assert faulty_s <= 1.2 * plain_s
