"""From scores by criterion to a total per candidate.

``total_i = sum_c w_c s_ic / sum_c |w_c|``, the weighted mean. A pitfall's weight is negative.

* **Unknown.** A criterion of which nothing is known in a group is left out, and the weights of the rest are renormalised.
  Where one candidate alone lacks a verdict, the group's mean stands for it: renormalised by itself it would seem worse for
  lacking a verdict on what everybody does well.
* **Essential.** A candidate that does not meet an essential criterion (its grade is below ``MET``; of a pitfall, not below)
  gets the lowest total. Where that grade is unknown, so is the total.
* **Contrast.** Each weight is multiplied by how far the group differs on the criterion (standard deviation of scores,
  relative to the mean over criteria), so that one on which all are alike counts nothing (after POW3R, arXiv 2605.20164).

>>> from mrjudge_reward.rubrics.criteria import Criterion
>>> dose, alarm = Criterion("dose", "Names the dose.", 3), Criterion("alarm", "Frightens the reader.", -1)
>>> found = [CriterionScores(dose, (1.0, 0.0), (), weight=3), CriterionScores(alarm, (1.0, None), (), weight=-1)]
>>> totals(found, bounded=True)
(0.5, -0.25)
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from mrjudge_reward.types import CriterionScores

from .tally import HARD_LOG_ODDS

MET = 0.5
"""Grade, between 0 and 1, from which on a criterion is met: the middle of its scale."""


def spread(values_G: Sequence[float | None]) -> float:
    """Standard deviation of what is known; 0 for fewer than two."""
    known = [value for value in values_G if value is not None]
    return statistics.pstdev(known) if len(known) > 1 else 0.0


def by_contrast(criteria: Sequence[CriterionScores], size: int | None = None) -> list[CriterionScores]:
    """Weights times each criterion's spread relative to the mean spread; as they are where no criterion differs.

    Args:
        criteria: at least one.
        size: how many of the scores, the first ones, count; None for all.
    """
    spreads = [spread(one.scores_G[:size]) for one in criteria]
    mean = sum(spreads) / len(spreads)
    if mean == 0:
        return list(criteria)
    return [replace(one, weight=one.weight * of / mean) for one, of in zip(criteria, spreads, strict=True)]


def gate(criteria: Sequence[CriterionScores], candidate: int) -> bool | None:
    """Whether a candidate meets all essential criteria; None where that is not known."""
    known = True
    for one in criteria:
        if one.criterion.essential:
            grade = one.grades_G[candidate]
            if grade is not None and (grade >= MET) == (one.criterion.weight < 0):
                return False
            known &= grade is not None
    return True if known else None


def component(one: CriterionScores, forfeits: Sequence[int] = (), as_mean: bool = False) -> tuple[float | None, ...]:
    """Rewards by one criterion alone, more is better.

    Args:
        one: the criterion's scores.
        forfeits: candidates that have the lowest reward, also of a pitfall.
        as_mean: whether an unknown reward is the mean of the known ones (0 where there is none) instead of None.
    """
    rewards_G = one.rewards_G
    real = [reward for index, reward in enumerate(rewards_G) if reward is not None and index not in forfeits]
    unknown = (statistics.fmean(real) if real else 0.0) if as_mean else None
    lowest = min(real) if real else unknown
    return tuple(
        lowest if index in forfeits else unknown if reward is None else reward for index, reward in enumerate(rewards_G)
    )


def totals(
    criteria: Sequence[CriterionScores], bounded: bool, forfeits: Sequence[int] = (), anchored: bool = False
) -> tuple[float | None, ...]:
    """A total per candidate; see the module.

    Args:
        criteria: at least one.
        bounded: scores lie between 0 and 1, so that the lowest total is known; else it is a game won outright
            (``HARD_LOG_ODDS``) below the group's lowest.
        forfeits: candidates that have the lowest total whatever else is known: degenerate answers.
        anchored: scores are relative to anchors, so that bounded ones lie between -1 and 1.

    Returns:
        Totals, None where nothing is known of a candidate, or not what an essential criterion asks.
    """
    size = len(criteria[0].scores_G)
    # A forfeit's scores are by rule, and the lowest even of a pitfall: none of them counts.
    real = [index for index in range(size) if index not in forfeits]
    told: list[tuple[CriterionScores, float]] = []
    for one in criteria:
        known = [score for index in real if (score := one.scores_G[index]) is not None]
        if known and one.weight != 0:
            told.append((one, statistics.fmean(known)))
    whole = sum(abs(one.weight) for one, _ in told)
    level = sum(one.weight * mean for one, mean in told) / whole if told else 0.0
    total_of: dict[int, float] = {}
    last = set(forfeits)
    for index in real:
        met = gate(criteria, index)
        parts = [one.weight * (score - mean) for one, mean in told if (score := one.scores_G[index]) is not None]
        if met is False:
            last.add(index)
        elif met and parts:
            total_of[index] = round(level + sum(parts) / whole, 9)
    if real and last == set(forfeits) and not total_of:
        return (None,) * size  # nothing is known that a forfeit could be below
    if bounded and anchored:
        lowest = -1.0
    elif bounded:
        lowest = sum(min(0.0, one.weight) for one in criteria) / sum(abs(one.weight) for one in criteria)
    else:
        lowest = min(total_of.values(), default=0.0) - HARD_LOG_ODDS
    total_of |= dict.fromkeys(last, round(lowest, 9))
    return tuple(total_of.get(index) for index in range(size))


def relative_totals(
    criteria: Sequence[CriterionScores], anchors: int, bounded: bool, forfeits: Sequence[int] = ()
) -> tuple[float | None, ...]:
    """Totals of a group with anchors, relative to theirs.

    The anchors' mean is one more candidate, whose score by each criterion is 0. So it passes the gate of essential criteria,
    or does not, by its mean grade; where that is unknown, all totals are.

    Args:
        criteria: scores relative to the anchors', which are the last of each.
        anchors: how many; at least one.
        bounded, forfeits: as in ``totals``.

    Returns:
        Totals of candidates and anchors; those of several anchors are unknown.
    """
    size = len(criteria[0].scores_G) - anchors

    def with_their_mean(one: CriterionScores) -> CriterionScores:
        known = any(score is not None for score in one.scores_G)
        grades = [grade for grade in one.grades_G[size:] if grade is not None]
        mean = statistics.fmean(grades) if grades else None
        return replace(
            one, scores_G=(*one.scores_G[:size], 0.0 if known else None), grades_G=(*one.grades_G[:size], mean)
        )

    of_candidates = [index for index in forfeits if index < size]
    *found, level = totals(list(map(with_their_mean, criteria)), bounded, of_candidates, anchored=True)
    if level is None:
        return (None,) * (size + anchors)
    above = [None if total is None else round(total - level, 9) for total in found]
    for index in of_candidates:  # also below anchors that are as low as a gate puts them
        if (total := above[index]) is not None:
            above[index] = min(total, -1.0 if bounded else -HARD_LOG_ODDS)
    return (*above, *((0.0,) if anchors == 1 else (None,) * anchors))
