"""From verdicts to games: who met whom, and how it went.

Every verdict is reduced to games between two candidates:

================================  =========================================================================
verdict                           games
================================  =========================================================================
Preference over K slots           slots i and j met with weight p_i + p_j, and i won p_i of it. One-hot, that
                                  is K-1 games which the winner won; soft, its expectation
RankOrder, Grades of K slots      K(K-1)/2 games, won by the higher; equals are a tie
Grades of single slots            candidates graded alone meet afterwards: the game is P(i > j | they differ)
                                  under their grade distributions, averaged over votes
Tie                               every pair of slots tied
NoVerdict                         no game
================================  =========================================================================

A tie is half a win each. A hard disagreement between the two orders of a pair needs no special rule: a win each way
adds up to the same matrix as two ties, and it is counted as such in ``ties`` (Davidson's statistic).

Besides wins and games, the tally sums the games' log-odds, because position bias is additive there: a bias towards the
earlier slot cancels exactly where slots are balanced, and can be estimated where they are not, from how often each
candidate was shown first (HodgeRank's logit model, Jiang, Lim, Yao & Ye 2011, with one more column for the slot).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mrjudge_reward.types import Grades, JudgedComparison, Outcome, Preference, RankOrder, Tie, steps_between

Matrix = NDArray[np.float64]

MAX_LOG_ODDS = 8.0
"""Bound of one game's log-odds. Beyond p = .9997 a probability read from a language model carries no more news."""

HARD_LOG_ODDS = 2.0
"""Log-odds credited to a game that was won outright, about .88: a sampled verdict shows the side, not the margin.

A graded one shows a margin: each further ``>`` counts as much again (``>>`` about .98), within ``MAX_LOG_ODDS``.
"""

MAX_GROUP = 4096
"""Largest group; the matrices of one group are dense, G by G."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Games of one group.

    Attributes:
        wins_GG: row's wins over column, ties half. Shape (G, G).
        games_GG: games between row and column; symmetric, equals ``wins_GG + wins_GG.T``. Shape (G, G).
        log_odds_GG: summed log-odds of row over column, weighted like games; antisymmetric. Shape (G, G).
        first_G: games in which the candidate was in the earlier slot, minus those in the later one. Shape (G,).
        first_log_odds: summed log-odds of the earlier slot over the later one, over all games with slots.
        slotted: weight of the games that ``first_log_odds`` sums.
        ties: how many games were tied outright.
        grades_G: mean grade of each candidate over all comparisons that graded it; NaN where none did. Shape (G,).
    """

    wins_GG: Matrix
    games_GG: Matrix
    log_odds_GG: Matrix
    first_G: Matrix
    first_log_odds: float
    slotted: float
    ties: float
    grades_G: Matrix

    @property
    def size(self) -> int:
        """G."""
        return len(self.wins_GG)

    @property
    def games_G(self) -> Matrix:
        """Games of each candidate. Shape (G,)."""
        total: Matrix = self.games_GG.sum(axis=1)
        return total


class GameCount:
    """Counts a group's games as verdicts come in, each once.

    Cells of its matrices are kept by row * size + column: numpy is slow at single ones.

    Args:
        size: candidates of the group, G.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._wins: dict[int, float] = defaultdict(float)
        self._games: dict[int, float] = defaultdict(float)
        self._log_odds: dict[int, float] = defaultdict(float)
        self._first_G = [0.0] * size
        self._first_log_odds = self._slotted = self._ties = 0.0
        self._grades: dict[int, list[float]] = defaultdict(list)
        self._alone: dict[int, list[tuple[tuple[float, float], ...]]] = defaultdict(list)
        self._mirrored: dict[tuple[int, ...], list[int]] = defaultdict(list)

    def add(self, played: Iterable[JudgedComparison]) -> None:
        """Count comparisons with their verdicts; failed ones contribute nothing."""
        for item in played:
            slots, outcome = item.comparison.slots, item.verdict.outcome
            self._meet(slots, outcome)
            if isinstance(outcome, Grades):
                for slot, value in zip(slots, outcome.values_K, strict=True):
                    self._grades[slot].append(value)
                if len(slots) == 1:
                    self._alone[slots[0]].append(outcome.grades_K[0])
            soft = isinstance(outcome, Preference) and outcome.soft
            if len(slots) == 2 and not soft and (winner := hard_winner(item)) is not None:
                self._mirrored[tuple(sorted(slots))].append(winner)

    def tally(self) -> Tally:
        """What has been counted so far."""
        ties = self._ties
        for winners in self._mirrored.values():  # a win each way is two ties
            ties += 2 * min(winners.count(winner) for winner in set(winners)) if len(set(winners)) == 2 else 0
        wins_GG, games_GG, log_odds_GG = map(self._matrix, (self._wins, self._games, self._log_odds))
        first_G, grades_G = np.array(self._first_G, dtype=np.float64), np.full(self.size, np.nan)
        for candidate, values in self._grades.items():
            grades_G[candidate] = np.mean(values)
        tally = Tally(
            wins_GG, games_GG, log_odds_GG, first_G, self._first_log_odds, self._slotted, ties, grades_G
        )  # fmt: skip
        return _meet_afterwards(tally, self._alone) if len(self._alone) > 1 else tally

    def _game(self, i: int, j: int, win: float, weight: float, log_odds: float) -> None:
        """Candidate i, in the earlier slot, met j."""
        there, back = i * self.size + j, j * self.size + i
        self._wins[there] += weight * win
        self._wins[back] += weight * (1 - win)
        self._games[there] += weight
        self._games[back] += weight
        self._log_odds[there] += weight * log_odds
        self._log_odds[back] -= weight * log_odds
        self._first_G[i] += weight
        self._first_G[j] -= weight
        self._first_log_odds += weight * log_odds
        self._slotted += weight

    def _hard(self, i: int, j: int, difference: float, strength: int = 1) -> None:
        """A game whose side is known but not its margin, except by grade; a difference of 0 is a tie."""
        if difference == 0:
            self._ties += 1
        sign = difference / abs(difference) if difference else 0.0
        self._game(i, j, (1 + sign) / 2, 1.0, sign * HARD_LOG_ODDS * strength)

    def _matrix(self, cells: dict[int, float]) -> Matrix:
        flat = np.zeros(self.size * self.size)
        flat[list(cells)] = list(cells.values())
        return flat.reshape(self.size, self.size)

    def _meet(self, slots: Sequence[int], outcome: Outcome) -> None:
        pairs = list(combinations(range(len(slots)), 2))
        match outcome:
            case Tie():
                for a, b in pairs:
                    self._hard(slots[a], slots[b], 0.0)
            case RankOrder():
                for a, b in pairs:
                    steps = steps_between(outcome, a, b)
                    self._hard(slots[a], slots[b], steps, abs(steps))
            case Grades(values):
                for a, b in pairs:
                    self._hard(slots[a], slots[b], values[a] - values[b])
            case Preference(p) if not outcome.soft:
                for a, b in pairs:
                    if p[a] != p[b]:
                        self._hard(slots[a], slots[b], p[a] - p[b])
            case Preference(p):
                for a, b in pairs:
                    weight = p[a] + p[b]
                    if weight > 0:
                        self._game(slots[a], slots[b], p[a] / weight, weight, bounded_log_odds(p[a], p[b]))
            case _:
                pass


def bounded_log_odds(p: float, q: float) -> float:
    """log(p / q) within ±MAX_LOG_ODDS; 0 where both are 0."""
    if p <= 0 or q <= 0:
        return MAX_LOG_ODDS * ((p > 0) - (q > 0))
    return max(-MAX_LOG_ODDS, min(MAX_LOG_ODDS, math.log(p) - math.log(q)))


def count_games(size: int, played: Iterable[JudgedComparison]) -> Tally:
    """The tally of a group of ``size`` whose comparisons are all there."""
    count = GameCount(size)
    count.add(played)
    return count.tally()


def _meet_afterwards(tally: Tally, alone: dict[int, list[tuple[tuple[float, float], ...]]]) -> Tally:
    """The tally with the games between candidates that were graded one by one.

    For two grades this is the Bradley-Terry form: the log-odds of i over j are the difference of their logits.
    """
    players = sorted(alone)
    values = sorted({value for votes in alone.values() for vote in votes for value, _ in vote})
    column = {value: index for index, value in enumerate(values)}
    mass_PV = np.zeros((len(players), len(values)))
    for row, player in enumerate(players):
        for vote in alone[player]:
            for value, p in vote:
                mass_PV[row, column[value]] += p / len(alone[player])
    below_PV = np.zeros_like(mass_PV)
    below_PV[:, 1:] = np.cumsum(mass_PV, axis=1)[
        :, :-1
    ]  # not cumsum - mass: that loses what little mass sure grades leave
    up_PP = mass_PV @ below_PV.T  # P(row's grade > column's)
    down_PP, differ_PP = up_PP.T, up_PP + up_PP.T
    written_P = (mass_PV > 0).sum(axis=1) == 1  # sampled grades, not read ones: their margin is unknown
    hard_PP = np.outer(written_P, written_P) | (differ_PP <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        soft_PP = np.clip(np.log(up_PP) - np.log(down_PP), -MAX_LOG_ODDS, MAX_LOG_ODDS)
    log_odds_PP = np.where(hard_PP, np.sign(up_PP - down_PP) * HARD_LOG_ODDS, soft_PP)
    wins_PP = np.divide(up_PP, differ_PP, out=np.full_like(up_PP, 0.5), where=differ_PP > 0)
    others_PP = 1 - np.eye(len(players))
    block = np.ix_(players, players)
    tally.wins_GG[block] += wins_PP * others_PP
    tally.games_GG[block] += others_PP
    tally.log_odds_GG[block] += log_odds_PP * others_PP
    return replace(tally, ties=tally.ties + float(((hard_PP & (up_PP == down_PP)) * others_PP).sum()) / 2)


def hard_winner(item: JudgedComparison) -> int | None:
    """The candidate a comparison prefers (more than half, or first of an order); None for ties, failures, grades."""
    match item.verdict.outcome:
        case Preference(p):
            top = max(p)
            return item.comparison.slots[p.index(top)] if p.count(top) == 1 else None
        case RankOrder(tiers) if len(tiers[0]) == 1:
            return item.comparison.slots[tiers[0][0]]
        case Grades(values) if len(values) > 1:
            top = max(values)
            return item.comparison.slots[values.index(top)] if values.count(top) == 1 else None
        case _:
            return None


def position_consistency(played: Iterable[JudgedComparison]) -> tuple[int, int]:
    """How often the same candidates, shown in mirrored slots, got the same winner.

    Returns:
        (agreeing, mirrored): pairs of mirrored comparisons that agree, and that exist with two verdicts. A tie both
        ways agrees; a failed verdict makes no pair.
    """
    by_slots: dict[tuple[tuple[int, ...], int], JudgedComparison] = {}
    agreeing = mirrored = 0
    for item in played:
        if item.verdict.failed or len(item.comparison.slots) < 2:
            continue
        other = by_slots.pop((item.comparison.slots[::-1], item.comparison.repeat), None)
        if other is None:
            by_slots[(item.comparison.slots, item.comparison.repeat)] = item
        else:
            mirrored += 1
            agreeing += hard_winner(item) == hard_winner(other)
    return agreeing, mirrored


def cyclic_triads(tally: Tally) -> int:
    """Triples in which each beats the next (Kendall & Babington Smith 1940), among pairs that met."""
    beats = ((tally.wins_GG > tally.wins_GG.T) & (tally.games_GG > 0)).astype(np.float64)
    return round(float(((beats @ beats) * beats.T).sum())) // 3
