"""Judging early: comparisons asked before the group is complete change nothing but when they are asked."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.errors import InputError, JudgeUnreliableError
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, Score
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.schedules import SCHEDULES
from mrjudge_reward.types import EngineFailure, Group, Judgement, Request

PROMPT = "Which is best?"
TEXTS = ("one apple", "two pears", "three plums", "four figs", "five dates", "six limes", "seven kiwis", "eight nuts")


def taste(text: str) -> float:
    return (sum(map(ord, text)) * 37 % 101) / 20


def judge(schedule: str, engine: ScriptedEngine | None = None, **settings: Any) -> Judge:
    format: Format = Choice()
    if schedule == "pointwise":
        format = SENTIMENT if settings.get("verdict") == "read" else Score()
        settings.pop("both_orders", None)
    return Judge(engine or ScriptedEngine.by_utility(taste, 0.7), format, schedule=schedule, **settings)


def named(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(i) for i in range(len(texts)))


def arriving(judge: Judge, texts: tuple[str, ...], seed: int, names: tuple[str, ...] | None) -> tuple[Judgement, int]:
    """Judge a group whose members come in a random order; also returns how many comparisons were asked early."""
    early = judge.early(PROMPT, len(texts), "group", names)
    count = 0
    for index in random.Random(seed).sample(range(len(texts)), len(texts)):
        if asked := early.add(str(index), texts[index]):
            judge.ask_early(asked)
            count += len(asked)
    return judge.judge([Group.of(PROMPT, texts, "group", names=names)], [early])[0], count


@pytest.mark.parametrize("size", [2, 3, 4, 8])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "settings",
    [
        {"verdict": "read"},
        {"verdict": "read", "audit": True},
        {"verdict": "read", "both_orders": True, "rating": "bradley_terry"},
        {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64, "votes": 2},
        {"verdict": "cascade", "cascade_margin": 1.5, "audit": True},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_scores_verdicts_and_calls_are_those_of_the_whole_group(schedule: str, size: int, settings: dict[str, Any]):
    if schedule == "pointwise" and settings.get("verdict") == "cascade":
        settings = {"verdict": "read"}
    texts = TEXTS[:size]
    plain = judge(schedule, **settings).judge([Group.of(PROMPT, texts, "group", names=named(texts))])[0]
    found, asked = arriving(judge(schedule, **settings), texts, seed=size, names=named(texts))
    assert found.scores_G == plain.scores_G
    assert found.played == plain.played
    assert sorted(map(repr, found.quick_reads)) == sorted(map(repr, plain.quick_reads))
    assert (found.calls, found.usage, found.games_G) == (plain.calls, plain.usage, plain.games_G)
    assert asked > 0


def test_with_names_the_ring_begins_with_the_first_neighbours():
    texts = TEXTS
    mine = judge("ring", verdict="read", audit=False)
    early = mine.early(PROMPT, len(texts), "group", named(texts))
    counts = [len(early.add(str(i), text)) for i, text in enumerate(texts)]
    assert sum(counts) == 2 * len(texts)
    assert sum(counts[:-1]) > len(texts), "most of the ring is asked before the last candidate comes"


def test_the_order_of_arrival_does_not_matter():
    results = {arriving(judge("ring", verdict="read"), TEXTS, seed, named(TEXTS))[0].scores_G for seed in range(6)}
    assert len(results) == 1


def test_without_names_only_complete_schedules_begin():
    for schedule, begins in [("all_pairs", True), ("pointwise", True), ("ring", False), ("adaptive", False)]:
        mine = judge(schedule, verdict="read")
        plain = mine.judge([Group.of(PROMPT, TEXTS[:4], "group")])[0]
        found, asked = arriving(mine, TEXTS[:4], 1, names=None)
        assert found.scores_G == plain.scores_G
        assert (asked > 0) == begins, schedule
    half = judge("all_pairs", verdict="read", both_orders=False)
    assert arriving(half, TEXTS[:4], 1, names=None)[1] == 0, "which of the two orders is played depends on the numbers"


@pytest.mark.parametrize(
    "texts", [("a b", "a b", "c", "d"), ("a", "", "c", "d"), ("...", " ", "", "x"), ("", "", "", "")]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_twins_and_empty_answers_change_the_plan_and_nothing_is_lost(texts: tuple[str, ...], schedule: str):
    plain = judge(schedule, verdict="read").judge([Group.of(PROMPT, texts, "group", names=named(texts))])[0]
    for seed in range(4):
        found, _ = arriving(judge(schedule, verdict="read"), texts, seed, named(texts))
        assert found.scores_G == plain.scores_G
        assert found.played == plain.played
        assert found.calls >= plain.calls


def unsteady(request: Request) -> str | dict[str, float]:
    """A judge that likes anything in any order, and the same each time."""

    def draw(*of: object) -> int:
        return int(hashlib.sha256(repr(of).encode()).hexdigest(), 16) % 1000

    text = request.messages[-1].text
    if not request.labels:
        return f"<answer>{'AB'[draw(text) % 2]}</answer>"
    weights = {label: 50 + draw(text, label) for label in request.labels}
    return {label: weight / sum(weights.values()) for label, weight in weights.items()}


@pytest.mark.parametrize(
    "texts", ["bff", "aab", "aba", "abba", "aabb", "abcc", "abca", "aaab", "abcdd", "abcab", "aabbcc", "abcdef", "ab"]
)
@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("schedule", ["adaptive", "ring", "all_pairs", "anchor", "swiss"])
def test_a_cascade_counts_each_read_once_whoever_came_first(texts: str, margin: float, schedule: str):
    settings = {"verdict": "cascade", "cascade_margin": margin, "temperature": 0.0, "audit": False}
    candidates = tuple(texts)
    groups = [Group.of(PROMPT, candidates, "group", names=named(candidates))]
    whole = judge(schedule, ScriptedEngine(unsteady, reads=True), **settings).judge(groups)[0]
    for seed in range(4):
        mine = judge(schedule, ScriptedEngine(unsteady, reads=True), **settings)
        found, _ = arriving(mine, candidates, seed, named(candidates))
        assert found.scores_G == whole.scores_G
        assert found.games_G == whole.games_G
        assert sorted(map(repr, found.played)) == sorted(map(repr, whole.played))
        assert sorted(map(repr, found.quick_reads)) == sorted(map(repr, whole.quick_reads))


def test_a_member_that_never_comes_leaves_a_smaller_group():
    mine = judge("ring", verdict="read", audit=False)
    early = mine.early(PROMPT, 4, "group", named(TEXTS[:4]))
    for index in (2, 0, 3):
        mine.ask_early(early.add(str(index), TEXTS[index]))
    there = Group.of(PROMPT, (TEXTS[0], TEXTS[2], TEXTS[3]), "group", names=("0", "2", "3"))
    found = mine.judge([there], [early])[0]
    assert found.scores_G == judge("ring", verdict="read").judge([there])[0].scores_G


def test_failures_that_may_pass_are_asked_again_and_the_alarm_counts_each_once():
    calls = 0

    def flaky(request: Request) -> str | EngineFailure:
        nonlocal calls
        calls += 1
        if calls <= 3:
            return EngineFailure("busy", transient=True)
        shown = shown_candidates(request)
        return f"<answer>{max(shown, key=lambda label: taste(shown[label]))}</answer>"

    alarm = FailureAlarm(0.0, window=64, least=1)
    mine = judge("all_pairs", ScriptedEngine(flaky, reads=False), retries=0, alarm=alarm)
    found, asked = arriving(mine, TEXTS[:4], 0, named(TEXTS[:4]))
    assert asked == 12
    assert not any(item.verdict.failed for item in found.played), "the three that failed were asked again"
    assert found.calls == 12 + 4, "three had failed, of two pairs; both orders of a pair are asked together"

    lasting = judge("all_pairs", ScriptedEngine(lambda _: EngineFailure("gone", transient=False)), retries=0)
    lasting.alarm = FailureAlarm(0.5, window=12, least=12)
    with pytest.raises(JudgeUnreliableError, match="12 of the last 12"):
        arriving(lasting, TEXTS[:4], 0, named(TEXTS[:4]))


def test_names_must_be_as_many_as_candidates_and_different():
    with pytest.raises(InputError, match="as many different names"):
        Group.of(PROMPT, ["a", "b"], names=["0"])
    with pytest.raises(InputError, match="as many different names"):
        Group.of(PROMPT, ["a", "b"], names=["0", "0"])


def test_names_travel_with_their_candidates():
    mine = judge("adaptive", verdict="read")
    plain = mine.judge([Group.of(PROMPT, TEXTS, "group", names=named(TEXTS))])[0]
    order = random.Random(3).sample(range(len(TEXTS)), len(TEXTS))
    moved = Group.of(PROMPT, [TEXTS[i] for i in order], "group", names=[str(i) for i in order])
    assert mine.judge([moved])[0].scores_G == tuple(plain.scores_G[i] for i in order)
