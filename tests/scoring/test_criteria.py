"""Totals over criteria: weights, what is unknown, what is essential, and contrast."""

from __future__ import annotations

from random import Random

import pytest

from mrjudge_reward.rubrics.criteria import Criterion
from mrjudge_reward.scoring.criteria import by_contrast, spread, totals
from mrjudge_reward.types import CriterionScores

Scores = tuple[float | None, ...]


def found(weight: float, scores: Scores, grades: Scores | None = None, essential: bool = False) -> CriterionScores:
    name = f"{weight} {scores} {grades}"
    return CriterionScores(Criterion(name, name, weight, (), essential), scores, grades or scores, weight=weight)


@pytest.mark.parametrize(
    ("criteria", "expected", "why"),
    [
        ([found(2, (1.0, 0.0)), found(1, (0.0, 1.0))], (2 / 3, 1 / 3), "the weighted mean"),
        ([found(2, (1.0, 0.0)), found(-1, (1.0, 0.0))], (1 / 3, 0.0), "a pitfall is taken off"),
        ([found(-1, (1.0, 0.0))], (-1.0, 0.0), "pitfalls alone"),
        ([found(1, (None, None))], (None, None), "nothing is known"),
        ([found(1, (None, None)), found(3, (1.0, 0.0))], (1.0, 0.0), "a criterion nobody has a verdict on is left out"),
        ([found(1, (1.0, None)), found(1, (0.5, None))], (0.75, None), "a candidate nothing is known of"),
        # Everybody meets the first: to lack its verdict is no fault.
        ([found(1, (1.0, 1.0, None)), found(1, (0.0, 1.0, 1.0))], (0.5, 1.0, 1.0), "as the mean"),
        ([found(1, (None, 0.0, 1.0)), found(3, (0.5, 0.5, 0.5))], (0.5, 0.375, 0.625), "as the mean again"),
        ([found(1, (1.0, 0.5, 0.0), essential=True), found(1, (0.0, 0.0, 1.0))], (0.5, 0.25, 0.0), "below the middle: last"),
        ([found(1, (1.0, None), essential=True), found(1, (0.0, 1.0))], (0.5, None), "essential and unknown"),
        ([found(-1, (1.0, 0.0), essential=True), found(1, (1.0, 0.0))], (-0.5, 0.0), "an essential pitfall that is met"),
        ([found(1, (0.0, 0.0), essential=True)], (0.0, 0.0), "nobody meets it: all alike"),
        ([found(1, (0.0, None), essential=True), found(1, (1.0, None))], (0.0, None), "one does not, of the other nothing"),
    ],
)  # fmt: skip
def test_a_total_is_the_weighted_mean_of_what_is_known(criteria: list[CriterionScores], expected: Scores, why: str):
    assert totals(criteria, bounded=True) == tuple(None if x is None else round(x, 9) for x in expected), why


def test_who_does_not_meet_what_is_essential_is_below_all_who_do_on_an_unbounded_scale_too():
    criteria = [found(1, (3.0, -1.0, 0.0), (0.1, 0.9, 0.8), essential=True), found(5, (4.0, -3.0, 1.0))]
    first, second, third = totals(criteria, bounded=False)
    assert (second, third) == (-2.666666667, 0.833333333)
    assert first == -4.666666667, "a game won outright below the lowest of the others"


@pytest.mark.parametrize("bounded", [True, False])
def test_a_forfeit_is_never_above_a_real_answer_even_where_all_criteria_are_pitfalls(bounded: bool):
    pitfalls = [found(-1, (0.9, 1.0, 0.0)), found(-2, (0.8, 1.0, 0.0))]  # the last one is empty, and shows no fault
    first, second, empty = (total or 0.0 for total in totals(pitfalls, bounded, forfeits=(2,)))
    assert empty <= second < first
    assert totals([found(1, (None, 0.0))], bounded, forfeits=(1,)) == (None, None)
    assert totals([found(1, (0.0, 0.0))], bounded, forfeits=(0, 1)) in {(0.0, 0.0), (-2.0, -2.0)}


def test_what_is_unknown_of_one_is_as_the_group_s_mean_and_moves_no_other():
    random = Random(5)
    for _ in range(300):
        size = random.randint(2, 6)
        criteria = [
            found(random.choice([-2, 1, 3]) + i / 100, tuple(random.random() for _ in range(size))) for i in range(4)
        ]
        lost, who = random.randrange(4), random.randrange(size)
        scores = list(criteria[lost].scores_G)
        scores[who] = None
        known = [score for score in scores if score is not None]
        part, mean = (
            totals([*criteria[:lost], found(criteria[lost].weight, tuple(of)), *criteria[lost + 1 :]], bounded=True)
            for of in (scores, [sum(known) / len(known) if score is None else score for score in scores])
        )
        assert part == pytest.approx(mean)


def test_contrast_takes_the_weight_from_what_the_group_does_not_differ_on():
    alike, half, apart = found(4, (1.0, 1.0)), found(1, (0.5, 0.0)), found(-1, (1.0, 0.0))
    assert [one.weight for one in by_contrast([alike, half, apart])] == [0.0, 1.0, -2.0]
    assert totals(by_contrast([alike, half, apart]), bounded=True) == (round(1 / 3 * 0.5 - 2 / 3, 9), 0.0)
    assert by_contrast([alike, alike]) == [alike, alike], "where nothing differs all stays"
    assert [spread(()), spread((None, 1.0)), spread((0.0, 1.0, None))] == [0.0, 0.0, 0.5]
