"""What ratings must not make up, and what they must not lose: slots, failures, slips, margins."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import pytest

from mrjudge_reward.scoring.ratings import RATINGS, bradley_terry_fit, rate
from mrjudge_reward.scoring.schedules import SCHEDULES, Limits
from mrjudge_reward.scoring.tally import MAX_GROUP, Tally, count_games
from mrjudge_reward.types import (
    Comparison,
    Grades,
    JudgedComparison,
    NoVerdict,
    Outcome,
    Preference,
    RankOrder,
    Verdict,
)
from tests.benchmarks.schedules import CONFIDENT, LEVELS, SLIPPING, Judge, Level, hold, tau_a

FAILURES = (0.0, 0.1, 0.33, 0.45)
Saying = Callable[[tuple[int, ...]], Outcome]


def one_hot(slot: int, count: int) -> Preference:
    return Preference(tuple(float(at == slot) for at in range(count)))


def graded(best: int, count: int) -> Grades:
    return Grades.sampled([9.0 if slot == best else 5.0 for slot in range(count)])


def tally_of(schedule: str, size: int, seed: int, says: Saying, failing: float, limits: Limits) -> Tally:
    """A group judged to its end; verdicts fail at random."""
    plan, rng = SCHEDULES[schedule].plan(size, limits, Random(seed)), np.random.default_rng((seed, 99))
    played: list[JudgedComparison] = []
    asked = next(plan, None)
    while asked is not None:
        for slots in asked:
            outcome = NoVerdict("timeout") if rng.random() < failing else says(slots)
            played.append(JudgedComparison(Comparison(slots), Verdict(outcome)))
        try:
            asked = plan.send(count_games(size, played))
        except StopIteration:
            asked = None
    return count_games(size, played)


def spreads(rating: str, schedule: str, size: int, says: Saying, failing: float) -> Iterator[float]:
    for seed in range(5):
        scores = rate(RATINGS[rating], tally_of(schedule, size, seed, says, failing, Limits(max_slots=8, audit=True)))
        known = [score for score in scores if score is not None]
        if len(known) > 1:
            yield statistics.pstdev(known)


BLIND: dict[str, Saying] = {
    "the second": lambda slots: one_hot(1, len(slots)),
    "the last": lambda slots: one_hot(len(slots) - 1, len(slots)),
    "graded": lambda slots: graded(1, len(slots)),
    "one order": lambda slots: RankOrder(((len(slots) - 1,), *((slot,) for slot in range(len(slots) - 1)))),
}


@pytest.mark.parametrize("schedule", ["adaptive", "ring", "all_pairs", "listwise", "anchor", "swiss", "knockout"])
@pytest.mark.parametrize("rating", RATINGS)
def test_a_judge_that_looks_at_the_slot_alone_gives_everybody_the_same_score_whatever_fails(
    schedule: str, rating: str
) -> None:
    for size in (2, 3, 4, 8):
        for name, says in BLIND.items():
            if (rating == "mean_score") != (name == "graded"):
                continue
            if name in ("the last", "one order") and schedule != "listwise":
                continue  # a pair's last slot is its second
            if schedule == "swiss" and size == 2:
                continue  # a single comparison, by plan
            for failing in FAILURES[::2] if size > 4 else FAILURES:
                found = list(spreads(rating, schedule, size, says, failing))
                assert not found or statistics.mean(found) < 1e-6, (size, name, failing, statistics.mean(found))


def test_the_errors_of_a_judge_that_looks_at_the_slot_alone_are_those_of_the_prior() -> None:
    strengths_G, errors_G = bradley_terry_fit(tally_of("ring", 4, 0, BLIND["the second"], 0.33, Limits()))
    assert np.abs(strengths_G).max() < 1e-6
    assert errors_G.min() > 2


def test_a_single_comparison_that_was_planned_so_is_taken_at_its_word() -> None:
    for says in (one_hot(0, 2), graded(0, 2)):
        scores = rate(RATINGS["log_odds"], count_games(2, [JudgedComparison(Comparison((0, 1)), Verdict(says))]))
        assert scores[0] > scores[1]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("schedule", "noise", "least"),  # tau at failures 0, .1, .33, .45; before, it was as high with 17 calls
    [("adaptive", 0.0, (0.88, 0.83, 0.70, 0.60)), ("adaptive", 1.0, (0.57, 0.53, 0.46, 0.39))],
)
def test_what_is_left_after_failures_still_orders_a_group(
    schedule: str, noise: float, least: tuple[float, ...]
) -> None:
    level = Level("", 1, 0, noise)
    for failing, needed in zip(FAILURES, least, strict=True):
        taus = []
        for group in range(60):
            judge = Judge(8, group, level, soft=False)
            tally = tally_of(schedule, 8, group, judge, failing, Limits(audit=True))
            scores = [np.nan if score is None else score for score in rate(RATINGS["log_odds"], tally)]
            taus.append(tau_a(np.nan_to_num(np.array(scores)), judge.s_G))
        assert np.mean(taus) >= needed, (failing, np.mean(taus))


@pytest.mark.parametrize(
    ("level", "least"), [(LEVELS[1], 0.73), (SLIPPING, 0.65), (CONFIDENT, 0.71)], ids=["plain", "slips", "confident"]
)
def test_reads_that_are_certain_and_wrong_are_outvoted_and_confidence_alone_costs_nothing(
    level: Level, least: float
) -> None:
    taus = []
    for group in range(80):
        judge = Judge(8, group, level, soft=True)
        tally = hold("adaptive", 8, group, judge, Limits()).tally
        taus.append(tau_a(np.array(rate(RATINGS["log_odds"], tally)), judge.s_G))
    assert np.mean(taus) >= least, np.mean(taus)


APART = {  # log-odds of the candidates' qualities: sure reads that are right, however few of a group's reads they are
    "one right, the others alike": (8, 0, 0, 0, 0, 0, 0, 0),
    "one right, clearly": (5, 0, 0, 0, 0, 0, 0, 0),
    "one wrong": (0, 0, 0, 0, 0, 0, 0, -8),
    "two right": (8, 8, 0, 0, 0, 0, 0, 0),
    "half right": (8, 8, 8, 8, 0, 0, 0, 0),
    "three kinds": (10, 10, 5, 5, 5, 0, 0, 0),
    "all apart": (21, 18, 15, 12, 9, 6, 3, 0),
    "one of four": (8, 0, 0, 0),
    "half of four": (8, 8, 0, 0),
    "one of three": (8, 0, 0),
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("schedule", ["adaptive", "ring"])
def test_sure_reads_that_agree_with_each_other_are_believed(name: str, schedule: str) -> None:
    agreed, told = 0.0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        s_G = rng.permutation(APART[name]).astype(float)
        logit_GG = s_G[:, None] - s_G + 1 + rng.normal(size=(len(s_G), len(s_G)))

        def says(slots: tuple[int, ...], logit_GG: np.ndarray = logit_GG) -> Outcome:
            p = float(1 / (1 + np.exp(-logit_GG[slots])))
            return Preference((p, 1 - p), soft=True)

        scores = np.array(rate(RATINGS["log_odds"], tally_of(schedule, len(s_G), seed, says, 0.0, Limits(audit=True))))
        order_GG = np.sign(s_G[:, None] - s_G)
        agreed += float((np.sign(scores[:, None] - scores) * order_GG).sum())
        told += int(np.abs(order_GG).sum())
    assert agreed / told >= 0.97


def judge_of_grades(group: int, size: int) -> tuple[np.ndarray, Saying]:
    s_G = np.random.default_rng(group).normal(size=size)

    def says(slots: tuple[int, ...]) -> Outcome:
        rng = np.random.default_rng((group, *slots))
        utility_K = s_G[list(slots)] + (1 - np.arange(len(slots)) / max(1, len(slots) - 1))
        utility_K = utility_K + rng.normal(size=len(slots)) / np.sqrt(2) + rng.gumbel(size=len(slots)) - 0.577
        return Grades.sampled(np.clip(np.ceil(10 / (1 + np.exp(-utility_K / 2))), 1, 10).tolist())

    return s_G, says


@pytest.mark.parametrize(("schedule", "budget"), [("ring", 8), ("ring", 14), ("adaptive", 14)])
def test_grades_keep_their_margins(schedule: str, budget: int) -> None:
    taus: dict[str, list[float]] = {"log_odds": [], "mean_score": [], "win_rate": [], "bradley_terry": []}
    for group in range(80):
        s_G, says = judge_of_grades(group, 8)
        tally = tally_of(schedule, 8, group, says, 0.0, Limits(budget))
        for rating, found in taus.items():
            found.append(tau_a(np.array(rate(RATINGS[rating], tally)), s_G))
    mean = {rating: np.mean(found) for rating, found in taus.items()}
    assert mean["log_odds"] >= mean["mean_score"] - 0.015, mean
    assert mean["log_odds"] >= {8: 0.43, 14: 0.53}[budget], mean
    assert min(mean.values()) >= {8: 0.33, 14: 0.41}[budget], mean


def test_written_grades_of_one_by_one_keep_their_margins() -> None:
    items = [
        JudgedComparison(Comparison((i,)), Verdict(Grades.sampled((value,)))) for i, value in enumerate((1.0, 4.0, 5.0))
    ]
    low, middle, high = rate(RATINGS["log_odds"], count_games(3, items))
    assert middle - low > 2 * (high - middle) > 0  # type: ignore[operator]


def test_the_largest_group_is_rated_without_its_matrix() -> None:
    rng = np.random.default_rng(0)
    s_G = rng.normal(size=MAX_GROUP)
    items = []
    for i, j in next(SCHEDULES["ring"].plan(MAX_GROUP, Limits(), Random(0))):
        logit = 12 * rng.choice([-1, 1]) if rng.random() < 0.1 else s_G[i] - s_G[j] + 1 + rng.normal()
        p = float(1 / (1 + np.exp(-logit)))
        items.append(JudgedComparison(Comparison((i, j)), Verdict(Preference((p, 1 - p), soft=True))))
    scores = rate(RATINGS["log_odds"], count_games(MAX_GROUP, items))
    assert np.corrcoef(np.array(scores), s_G)[0, 1] > 0.8


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "pointwise"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("both", [None, False])
def test_an_audit_mirrors_a_comparison_within_the_number_of_calls(name: str, size: int, both: bool | None) -> None:
    def asked(limits: Limits) -> list[tuple[int, ...]]:
        comparisons: list[tuple[int, ...]] = []

        def says(slots: tuple[int, ...]) -> Outcome:
            comparisons.append(slots)
            return one_hot(0, len(slots))

        tally_of(name, size, 0, says, 0.0, limits)
        return comparisons

    plain, audited = (asked(Limits(both_orders=both, max_slots=8, audit=audit)) for audit in (False, True))
    assert any(slots[::-1] in audited for slots in audited)
    assert len(set(audited)) == len(audited), "the same comparison was asked twice"
    one_more = name in ("swiss", "knockout") or (both is False and name in ("anchor", "all_pairs"))
    assert len(audited) <= len(plain) + one_more
    budget = asked(Limits(5, both, 8, audit=True))
    assert len(budget) <= 5
    assert any(slots[::-1] in budget for slots in budget)
