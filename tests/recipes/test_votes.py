"""Votes on two candidates: all that came to a verdict count, whatever came last."""

from __future__ import annotations

import pytest

from mrjudge_reward.types import (
    Comparison,
    Grades,
    JudgedComparison,
    NoVerdict,
    Outcome,
    Preference,
    RankOrder,
    Tie,
    Verdict,
)
from recipes.common.votes import for_first, for_slot

A, B, NONE = Preference((1.0, 0.0)), Preference((0.0, 1.0)), NoVerdict("truncated")


def played(outcome: Outcome, vote: int = 0, slots: tuple[int, ...] = (0, 1), criterion: str = "") -> JudgedComparison:
    return JudgedComparison(Comparison(slots, vote), Verdict(outcome), criterion)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Preference((0.8, 0.2)), 0.8),
        (Preference((0.5, 0.5)), 0.5),
        (A, 1.0),
        (Grades.sampled((3.0, 2.0)), 1.0),
        (Grades.sampled((2.0, 2.0)), 0.5),
        (Grades.sampled((1.0, 2.0)), 0.0),
        (RankOrder(((0,), (1,))), 1.0),
        (RankOrder(((1,), (0,)), (3,)), 0.0),
        (RankOrder(((0, 1),)), 0.5),
        (Tie(), 0.5),
        (NONE, None),
    ],
)
def test_a_verdict_is_for_one_slot_or_even_or_none(outcome: Outcome, expected: float | None):
    assert for_slot(outcome) == expected
    assert for_slot(outcome, 1) == (None if expected is None else pytest.approx(1 - expected))


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([A], 1.0),
        ([A, A, B], 2 / 3),
        ([B, A, A], 2 / 3),
        ([A, NONE], 1.0),
        ([NONE, A], 1.0),
        ([A, A, NONE], 1.0),
        ([NONE, NONE, B], 0.0),
        ([A, B], 0.5),
        ([A, Tie()], 0.75),
        ([Preference((0.9, 0.1)), Preference((0.4, 0.6)), NONE], 0.65),
        ([Grades.sampled((1, 9)), Grades.sampled((3, 2)), Grades.sampled((3, 2))], 2 / 3),
        ([NONE, NONE], None),
        ([NONE], None),
    ],
)
def test_votes_of_an_order_are_averaged_over_those_with_a_verdict(votes: list[Outcome], expected: float | None):
    others = [played(B, vote, (1, 0)) for vote in range(3)] + [played(B, 0, (0, 1), "other"), played(B, 0, (0, 1, 2))]
    found = for_first([*(played(outcome, vote) for vote, outcome in enumerate(votes)), *others])
    assert found.keys() == {((0, 1), ""), ((1, 0), ""), ((0, 1), "other")}
    assert found[(0, 1), ""] == (None if expected is None else pytest.approx(expected))
    assert found[(1, 0), ""] == 0.0


def test_of_one_vote_the_last_verdict_counts_and_a_failure_takes_none_away():
    close = Preference((0.55, 0.45), soft=True)
    assert for_first([played(close), played(B)]) == {((0, 1), ""): 0.0}
    assert for_first([played(close), played(NONE)]) == {((0, 1), ""): 0.55}
