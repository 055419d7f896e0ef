"""Verdicts on two candidates as numbers, and what the votes of one order come to together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import TypeAlias

from mrjudge_reward.types import Grades, JudgedComparison, NoVerdict, Outcome, Preference, RankOrder

Asked: TypeAlias = tuple[tuple[int, ...], str]
"""Two candidates in the order shown, and the criterion; empty for the whole."""


def for_slot(outcome: Outcome, slot: int = 0) -> float | None:
    """How far a verdict on two is for the candidate in this slot, from 0 to 1; None for a failure."""
    match outcome:
        case Preference(probabilities):
            return probabilities[slot]
        case Grades(values):
            return ahead(values[slot], values[1 - slot])
        case RankOrder(tiers):
            place = {one: number for number, tier in enumerate(tiers) for one in tier}
            return ahead(place[1 - slot], place[slot])
        case NoVerdict():
            return None
        case _:
            return 0.5


def ahead(mine: float, other: float) -> float:
    """1 where mine is more, 0 where the other is, a half where they are equal."""
    return 0.5 + 0.5 * ((mine > other) - (mine < other))


def for_first(played: Iterable[JudgedComparison]) -> dict[Asked, float | None]:
    """How far the verdicts on two are for the one shown first: the mean of all votes that came to a verdict.

    Comparisons of one candidate or of more than two are passed over. Where one vote has several verdicts (a cascade reads,
    and then writes), its last one counts.

    Returns:
        What was asked → 0 to 1; None where every vote failed.
    """
    votes: dict[Asked, dict[int, float]] = defaultdict(dict)
    for item in played:
        if len(item.comparison.slots) == 2:
            known = votes[item.comparison.slots, item.criterion]
            if (value := for_slot(item.verdict.outcome)) is not None:
                known[item.comparison.repeat] = value
    return {asked: fmean(known.values()) if known else None for asked, known in votes.items()}
