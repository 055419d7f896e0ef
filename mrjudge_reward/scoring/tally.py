"""From verdicts to games: who met whom, in which slots, and how it went.

Every verdict is reduced to games between two candidates:

================================  =========================================================================
verdict                           games
================================  =========================================================================
Preference over K slots           slots i and j met with weight p_i + p_j, and i won p_i of it. One-hot, that
                                  is K-1 games which the winner won; soft, its expectation
RankOrder of K slots              K(K-1)/2 games, won by the higher by the strongest step between; equals are a tie
Grades of K slots                 as many; the margin is the difference of grades, in units of the group's mean
                                  difference, which counts like a game won outright
Grades of single slots            candidates graded alone meet afterwards: the game is P(i > j | they differ)
                                  under their grade distributions, averaged over votes; as above if written
Tie                               every pair of slots tied
NoVerdict                         no game
================================  =========================================================================

A tie is half a win each. A hard disagreement between the two orders of a pair is a win each way: ratings learn from it
what the slot is worth.

Each game knows its log-odds, because position bias is additive there (HodgeRank's logit model, Jiang, Lim, Yao & Ye 2011),
and its slots, so that what a slot is worth can be fitted; see ``least_squares``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mrjudge_reward.types import (
    Grades,
    JudgedComparison,
    NoVerdict,
    Outcome,
    Preference,
    RankOrder,
    Tie,
    steps_between,
)

Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_LOG_ODDS = 12.0
"""Bound of one game's log-odds, p = .999994. A lower one costs a judge that is overconfident everywhere its margins."""

HARD_LOG_ODDS = 2.0
"""Log-odds credited to a game that was won outright, about .88: a sampled verdict shows the side, not the margin.

A graded one shows a margin: each further ``>`` counts as much again (``>>`` about .98), within ``MAX_LOG_ODDS``.
"""

MAX_GROUP = 4096
"""Largest group; the matrices of one group are dense, G by G."""


LEAST_READS = 8
"""Fewest reads from which the bias that they share is known."""


@dataclass(frozen=True, eq=False)
class Games:
    """Games one by one. All shapes (N,).

    Attributes:
        first, second: candidates; the first was in the earlier slot.
        win: the first's share of the win.
        weight: how much of a game it is.
        log_odds: of the first over the second.
        read: whether the log-odds were read from label probabilities.
        slot_first, slot_second: where these stood, as indices of ``Tally.columns``; both equal where that is not asked.
    """

    first: Indices
    second: Indices
    win: Matrix
    weight: Matrix
    log_odds: Matrix
    read: NDArray[np.bool_]
    slot_first: Indices
    slot_second: Indices


@dataclass(frozen=True, eq=False)
class Tally:
    """Games of one group.

    Attributes:
        size: candidates, G.
        games: one by one, N of them.
        columns: (K, slot) of comparisons of K candidates, and the slot's index in ``games``; the last slot of each K is
            the one that the others gain over, and has index S = ``len(columns)``. Empty where the plan shows each
            candidate in one place only.
        ties: how many games were tied outright.
        grades_G: mean grade of each candidate over all comparisons that graded it, with what the slots explain taken out;
            NaN where none did. Shape (G,).
        graded_G: how many grades it got beside others. Shape (G,).
        steepness: log-odds per grade of grades given beside others; 0 where there are none.
    """

    size: int
    games: Games
    columns: Mapping[tuple[int, int], int]
    ties: float
    grades_G: Matrix
    graded_G: Matrix
    steepness: float = 0.0

    @cached_property
    def wins_GG(self) -> Matrix:
        """Row's wins over column, ties half. Shape (G, G)."""
        games = self.games
        lost = self._sum(games.weight * (1 - games.win)).T
        return np.asarray(self._sum(games.weight * games.win) + lost)

    @cached_property
    def games_GG(self) -> Matrix:
        """Games between row and column; symmetric. Shape (G, G)."""
        games_GG = self._sum(self.games.weight)
        return np.asarray(games_GG + games_GG.T)

    @cached_property
    def log_odds_GG(self) -> Matrix:
        """Summed log-odds of row over column, weighted like games; antisymmetric. Shape (G, G)."""
        log_odds_GG = self._sum(self.games.weight * self.games.log_odds)
        return np.asarray(log_odds_GG - log_odds_GG.T)

    @cached_property
    def games_G(self) -> Matrix:
        """Games of each candidate. Shape (G,)."""
        games, size = self.games, self.size
        return np.asarray(np.bincount(games.first, games.weight, size) + np.bincount(games.second, games.weight, size))

    def _sum(self, values: Matrix) -> Matrix:
        cells = self.games.first * self.size + self.games.second
        return np.bincount(cells, values, self.size**2).astype(np.float64).reshape(self.size, self.size)


_Slot = tuple[int, int]
"""K and the slot, of a comparison of K candidates."""


@dataclass
class _Games:
    """Games while they are counted, as columns."""

    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    win: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    read: list[bool] = field(default_factory=list)
    graded: list[bool] = field(default_factory=list)
    slot_first: list[_Slot] = field(default_factory=list)
    slot_second: list[_Slot] = field(default_factory=list)

    def add(self, *game: object) -> None:
        for column, value in zip(vars(self).values(), game, strict=True):
            column.append(value)


class GameCount:
    """Counts a group's games as verdicts come in, each once.

    Args:
        size: candidates of the group, G.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._games = _Games()
        self._ties = 0.0
        self._places: dict[int, set[tuple[int, ...]]] = defaultdict(set)
        self._grades: list[tuple[int, _Slot, float]] = []
        self._alone: dict[int, list[tuple[tuple[float, float], ...]]] = defaultdict(list)

    def add(self, played: Iterable[JudgedComparison]) -> None:
        """Count comparisons with their verdicts; failed ones contribute no game."""
        for item in played:
            slots, outcome = item.comparison.slots, item.verdict.outcome
            if len(slots) > 1:
                for candidate in slots:
                    self._places[candidate].add(slots)
            self._meet(slots, outcome)
            if isinstance(outcome, Grades):
                for place, (slot, value) in enumerate(zip(slots, outcome.values_K, strict=True)):
                    self._grades.append((slot, (len(slots), place), value))
                if len(slots) == 1:
                    self._alone[slots[0]].append(outcome.grades_K[0])

    def tally(self) -> Tally:
        """What has been counted so far."""
        once = all(len(places) == 1 for places in self._places.values())
        seen = {*self._games.slot_first, *self._games.slot_second} if not once else set()
        columns = {slot: index for index, slot in enumerate(sorted(slot for slot in seen if slot[1] < slot[0] - 1))}
        margin, graded = np.array(self._games.margin), np.array(self._games.graded, dtype=bool)
        steepness = steepness_of(margin[graded])
        log_odds = np.where(graded, np.clip(margin * steepness, -MAX_LOG_ODDS, MAX_LOG_ODDS), margin)
        win = np.where(graded, 1 / (1 + np.exp(-log_odds)), np.array(self._games.win))
        last = len(columns)
        slot_first, slot_second = (
            np.array([columns.get(slot, last) for slot in slots], dtype=np.intp)
            for slots in (self._games.slot_first, self._games.slot_second)
        )
        games = Games(
            np.array(self._games.first, dtype=np.intp),
            np.array(self._games.second, dtype=np.intp),
            win,
            np.array(self._games.weight, dtype=np.float64),
            log_odds,
            np.array(self._games.read, dtype=bool),
            slot_first,
            slot_second,
        )
        ties = self._ties
        if len(self._alone) > 1:
            games, tied = _meet_afterwards(games, self._alone, last)
            ties += tied
        grades_G, graded_G = self._mean_grades(once)
        return Tally(self.size, games, columns, ties, grades_G, graded_G, steepness)

    def _mean_grades(self, once: bool) -> tuple[Matrix, Matrix]:
        """Mean grades and the numbers of grades given beside others, of each candidate."""
        if not self._grades:
            return np.full(self.size, np.nan), np.zeros(self.size)
        candidates, slots, values = zip(*self._grades, strict=True)
        of_G, value_N = np.array(candidates, dtype=np.intp), np.array(values)
        beside_N = np.array([slot[0] > 1 for slot in slots])
        if not once:
            value_N = value_N - _slot_grades(of_G, slots, value_N, self.size)
        count_G = np.bincount(of_G, minlength=self.size)
        with np.errstate(invalid="ignore"):
            grades_G = np.bincount(of_G, value_N, self.size) / count_G
        return grades_G, np.asarray(np.bincount(of_G, beside_N.astype(np.float64), self.size), dtype=np.float64)

    def _game(
        self, places: tuple[int, int], slots: Sequence[int], win: float, weight: float, margin: float,
        *, read: bool = False, graded: bool = False,
    ) -> None:  # fmt: skip
        """The candidate in the first of these places met the one in the second, a later one."""
        (a, b), count = places, len(slots)
        self._games.add(slots[a], slots[b], win, weight, margin, read, graded, (count, a), (count, b))

    def _hard(self, places: tuple[int, int], slots: Sequence[int], difference: float, strength: float = 1.0) -> None:
        """A game whose side is known; a difference of 0 is a tie.

        Args:
            strength: its margin, in games won outright; 1 where it is not known.
        """
        if difference == 0:
            self._ties += 1
        sign = difference / abs(difference) if difference else 0.0
        self._game(places, slots, (1 + sign) / 2, 1.0, sign * strength * HARD_LOG_ODDS)

    def _graded(self, places: tuple[int, int], slots: Sequence[int], difference: float) -> None:
        """A game whose margin is known on a scale of its own."""
        self._ties += difference == 0
        self._game(places, slots, 0.5, 1.0, difference, graded=True)

    def _meet(self, slots: Sequence[int], outcome: Outcome) -> None:
        pairs = list(combinations(range(len(slots)), 2))
        match outcome:
            case Tie():
                for pair in pairs:
                    self._hard(pair, slots, 0.0)
            case RankOrder():
                steps_KK = steps_between(outcome)
                for a, b in pairs:
                    self._hard((a, b), slots, steps_KK[a][b], abs(steps_KK[a][b]))
            case Grades(values):
                for a, b in pairs:
                    self._graded((a, b), slots, values[a] - values[b])
            case Preference(p) if not outcome.soft:
                for a, b in pairs:
                    if p[a] != p[b]:
                        self._hard((a, b), slots, p[a] - p[b])
            case Preference(p):
                for a, b in pairs:
                    weight = p[a] + p[b]
                    if weight > 0:
                        self._game((a, b), slots, p[a] / weight, weight, bounded_log_odds(p[a], p[b]), read=True)
            case _:
                pass


def steepness_of(differences: Matrix) -> float:
    """Log-odds per grade: the mean difference of grades that differ counts like a game won outright."""
    apart = np.abs(differences[differences != 0])
    return HARD_LOG_ODDS / float(apart.mean()) if len(apart) else 0.0


def _slot_grades(of_G: Indices, slots: Sequence[_Slot], value_N: Matrix, size: int) -> Matrix:
    """What slots add to grades, beyond the mean: least squares of candidates (with a weak prior) and slots. Shape (N,)."""
    level_of = {slot: level for level, slot in enumerate(sorted(set(slots)))}
    if len(level_of) == 1:
        return np.zeros(len(value_N))
    of_L, levels = np.array([level_of[slot] for slot in slots], dtype=np.intp), len(level_of)
    meet_GL = np.bincount(of_G * levels + of_L, minlength=size * levels).reshape(size, levels).astype(np.float64)
    weight_G = 1 / (meet_GL.sum(axis=1) + 0.5)
    matrix_LL = np.diag(meet_GL.sum(axis=0)) - meet_GL.T @ (weight_G[:, None] * meet_GL)
    target_L = np.bincount(of_L, value_N, levels) - meet_GL.T @ (weight_G * np.bincount(of_G, value_N, size))
    grade_N = np.linalg.solve(matrix_LL, target_L)[of_L]
    return np.asarray(grade_N - grade_N.mean())


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


def _meet_afterwards(
    games: Games, alone: dict[int, list[tuple[tuple[float, float], ...]]], no_slot: int
) -> tuple[Games, float]:
    """The games with those between candidates that were graded one by one, and how many of these are ties.

    For two grades this is the Bradley-Terry form: the log-odds of i over j are the difference of their logits.
    """
    players = sorted(alone)
    values = np.array(sorted({value for votes in alone.values() for vote in votes for value, _ in vote}))
    column = {value: index for index, value in enumerate(values.tolist())}
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
    first, second = np.triu_indices(len(players), 1)
    up, down = up_PP[first, second], up_PP[second, first]
    written_P = (mass_PV > 0).sum(axis=1) == 1  # sampled grades, not read ones: how sure they are is unknown
    grade_P = mass_PV @ values
    margin = grade_P[first] - grade_P[second]
    hard = (written_P[first] & written_P[second]) | (up + down <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        soft = np.log(up) - np.log(down)
    log_odds = np.clip(np.where(hard, margin * steepness_of(margin[hard]), soft), -MAX_LOG_ODDS, MAX_LOG_ODDS)
    share = np.divide(up, up + down, out=np.full_like(up, 0.5), where=~hard)
    win = np.where(hard, 1 / (1 + np.exp(-log_odds)), share)
    number_P, nowhere = np.array(players, dtype=np.intp), np.full(len(first), no_slot, dtype=np.intp)
    met = Games(number_P[first], number_P[second], win, np.ones(len(first)), log_odds, ~hard, nowhere, nowhere)
    joined = {name: np.concatenate([column, getattr(met, name)]) for name, column in vars(games).items()}
    return Games(**joined), float((hard & (up == down)).sum())


def favoured(outcome: Outcome) -> frozenset[int]:
    """The slots that a verdict finds the best: several where they are tied, none where all are or there is no verdict."""
    return frozenset(_first(outcome))


def _first(outcome: Outcome) -> tuple[int, ...]:
    match outcome:
        case Preference(values_K) | Grades(values_K):
            best = tuple(slot for slot, value in enumerate(values_K) if value == max(values_K))
            return best if len(best) < len(values_K) else ()
        case RankOrder(tiers):
            return tiers[0] if len(tiers) > 1 else ()
        case Tie() | NoVerdict():
            return ()


def best_in(item: JudgedComparison) -> tuple[int, ...]:
    """The candidates that a comparison puts first: several that are equal, all of a tie, none if it failed."""
    slots, outcome = item.comparison.slots, item.verdict.outcome
    return tuple(slots[place] for place in _first(outcome)) or (() if isinstance(outcome, NoVerdict) else slots)


def hard_winner(item: JudgedComparison) -> int | None:
    """The one candidate that a comparison prefers; None for ties, failures, and what was graded alone."""
    best = best_in(item)
    return best[0] if len(best) == 1 < len(item.comparison.slots) else None


def position_consistency(played: Iterable[JudgedComparison]) -> tuple[int, int]:
    """How often the same candidates, shown in mirrored slots, got the same winner.

    Returns:
        (agreeing, mirrored): pairs of mirrored comparisons that agree, and that exist with two verdicts. A tie both
        ways agrees; a failed verdict makes no pair.
    """
    pairs = list(_mirrored(played))
    return sum(hard_winner(one) == hard_winner(other) for one, other in pairs), len(pairs)


def debiased_consistency(groups: Iterable[Sequence[JudgedComparison]]) -> tuple[int, int]:
    """:func:`position_consistency` of reads of pairs, with the bias that all of them share taken out.

    Reads may name one slot always, and yet order perfectly: then the margin tells. The bias is the median log-odds of the
    earlier slot; with fewer than ``LEAST_READS`` reads it is not known.

    Args:
        groups: of one judge.

    Returns:
        As there; (0, 0) where the bias is not known.
    """
    reads = [[(item, odds) for item in played if (odds := _read_pair(item)) is not None] for played in groups]
    all_odds = [odds for group in reads for _, odds in group]
    if len(all_odds) < LEAST_READS:
        return 0, 0
    bias = float(np.median(all_odds))
    ahead = [{id(item): np.sign(odds - bias) for item, odds in group} for group in reads]
    agree = [
        of_item[id(one)] == -of_item[id(other)]
        for group, of_item in zip(reads, ahead, strict=True)
        for one, other in _mirrored(item for item, _ in group)
    ]
    return sum(map(bool, agree)), len(agree)


def _read_pair(item: JudgedComparison) -> float | None:
    """Log-odds of the earlier slot of a pair that was read."""
    outcome = item.verdict.outcome
    if not isinstance(outcome, Preference) or not outcome.soft or len(outcome.probabilities_K) != 2:
        return None
    return bounded_log_odds(*outcome.probabilities_K)


def _mirrored(played: Iterable[JudgedComparison]) -> Iterator[tuple[JudgedComparison, JudgedComparison]]:
    """Pairs of comparisons in mirrored slots that have a verdict each."""
    by_slots: dict[tuple[str, tuple[int, ...], int], JudgedComparison] = {}
    for item in played:
        if item.verdict.failed or len(item.comparison.slots) < 2:
            continue
        slots, vote = item.comparison.slots, item.comparison.repeat
        other = by_slots.pop((item.criterion, slots[::-1], vote), None)
        if other is None:
            by_slots[item.criterion, slots, vote] = item
        else:
            yield other, item


def cyclic_triads(tally: Tally) -> int:
    """Triples in which each beats the next (Kendall & Babington Smith 1940), among pairs that met."""
    beats = ((tally.wins_GG > tally.wins_GG.T) & (tally.games_GG > 0)).astype(np.float64)
    return round(float(((beats @ beats) * beats.T).sum())) // 3
