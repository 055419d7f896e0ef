"""Schedules: which candidates of a group meet, in which slots.

A schedule is a generator: it yields the comparisons of a round (tuples of candidate indices in slot order), is sent the
tally so far, and ends when it has nothing more to ask. It is pure: the same size, limits and random state give the
same comparisons on every rank and in every rerun. Most schedules have a single round.

=============  ===================  ==========================================================================
schedule       calls (G candidates) what
=============  ===================  ==========================================================================
pointwise      G                    each candidate alone (formats that grade)
ring           2G                   circulant pairs: offsets with the best-conditioned comparison graph; every
                                    candidate is first as often as second, so position bias cancels
adaptive       2G                   a ring of G calls, then four rounds of the games that settle most
all_pairs      G(G-1)/2 × 2 orders  everybody meets everybody
listwise       4                    all candidates at once, in permutations that balance slots
anchor         (G-1) × 2 orders     everybody meets one candidate (BRPO, arXiv 2506.00103, its pivot); in a group with
                                    anchors each candidate meets each of these
swiss          ⌊G/2⌋⌈log2 G⌉        neighbours in the standing meet
knockout       2G-2                 seeded by an anchor round, then single elimination (ArenaRL, 2601.06487); in a group
                                    with anchors the first of them seeds
=============  ===================  ==========================================================================

Each takes a budget of calls per group. ``both_orders`` plays every pair in both slot orders; without it the slots are
balanced over the schedule instead. With ``audit`` one comparison at least is shown in mirrored slots, so that position
consistency is known: within the number of calls, except that schedules that need each of their games (Swiss, knockout,
and in one order anchor and all pairs) make one call more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise, permutations
from random import Random
from typing import TypeAlias

import numpy as np

from .least_squares import PRIOR_GAMES, log_odds_system
from .ratings import log_odds
from .tally import Matrix, Tally

Slots: TypeAlias = tuple[int, ...]
Plan: TypeAlias = Generator[list[Slots], Tally, None]

ADAPTIVE_ROUNDS = 4
"""Rounds after the opening of ``adaptive``. Each is one engine batch; more rounds gain next to nothing."""

EQUAL = 5e-10
"""Games whose worth differs by less than this share are equally good to ``adaptive``."""

MAX_ADAPTIVE = 256
"""Largest group for which ``adaptive`` chooses game by game, each choice costing O(G²); larger ones play the ring."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a schedule may spend.

    Attributes:
        budget: most comparisons per group; None for the schedule's own number.
        both_orders: whether a pair is shown in both slot orders; None for the schedule's own habit.
        max_slots: most candidates in one comparison (listwise).
        audit: whether to show some comparison in mirrored slots as well.
        anchors: which of the candidates are anchors of the group.
    """

    budget: int | None = None
    both_orders: bool | None = None
    max_slots: int = 16
    audit: bool = False
    anchors: tuple[int, ...] = ()

    def spend(self, natural: int) -> int:
        """The number of comparisons: the natural one unless a budget is set."""
        return natural if self.budget is None else max(0, self.budget)


def audited(comparisons: list[Slots], calls: int, limits: Limits) -> list[Slots]:
    """The first ``calls`` of them; if an audit is wanted and they hold none, the last is the first one's mirror image."""
    kept = comparisons[: max(0, calls)]
    if not limits.audit or calls < 2 or not kept or not set(kept).isdisjoint(slots[::-1] for slots in kept):
        return kept
    return [*kept[: calls - 1], kept[0][::-1]]


def pointwise(size: int, limits: Limits, rng: Random) -> Plan:
    """Every candidate alone."""
    yield [(i,) for i in range(min(size, limits.spend(size)))]


@lru_cache(maxsize=512)
def ring_offsets(size: int, count: int, symmetric: bool) -> tuple[int, ...]:
    """Offsets of a circulant comparison graph, chosen one after another for the least mean variance of differences.

    A circulant graph's Laplacian has the eigenvalues ``sum_k 2 (1 - cos(2 pi k m / size))``; the mean variance of an
    estimated difference is proportional to the sum of their inverses (A-optimality).

    Args:
        size: number of candidates.
        count: number of offsets, at most ``size - 1``.
        symmetric: choose offsets together with their mirror, so that every pair is played in both orders.
    """
    frequencies = np.arange(1, size)
    spectrum = 4 * np.sin(np.pi * np.arange(size) / size) ** 2
    eigenvalues = np.full(size - 1, 1e-6)
    chosen: list[int] = []

    def cost(offset: int) -> float:  # rounded, so that equally good offsets stay equal on every machine
        return round(float((1 / (eigenvalues + spectrum[offset * frequencies % size])).sum()), 6)

    while len(chosen) < min(count, size - 1):
        best = min((m for m in range(1, size) if m not in chosen and not (symmetric and 2 * m > size)), key=cost)
        eigenvalues = eigenvalues + spectrum[best * frequencies % size]
        chosen += [best, size - best] if symmetric and 2 * best != size else [best]
    return tuple(chosen[:count])


def ring(size: int, limits: Limits, rng: Random) -> Plan:
    """Circulant pairs, 2G of them unless a budget says otherwise."""
    calls = min(limits.spend(2 * size), size * (size - 1))
    offsets = ring_offsets(size, math.ceil(calls / size), bool(limits.both_orders)) if calls > 0 else ()
    pairs: list[Slots] = [(i, (i + offset) % size) for offset in offsets for i in range(size)]
    yield audited(pairs, calls, limits)


def all_pairs(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody meets everybody, in both orders unless switched off; a smaller budget keeps a random part."""
    both = limits.both_orders is not False
    if both:
        pairs: list[Slots] = list(permutations(range(size), 2))
    else:  # each pair once, slots balanced: whoever is fewer steps behind on the circle is shown first
        pairs = [(i, (i + k) % size) for k in range(1, (size - 1) // 2 + 1) for i in range(size)]
        pairs += [(i, i + size // 2) for i in range(size // 2)] if size % 2 == 0 else []
    calls = limits.spend(len(pairs) + (limits.audit and not both))
    if calls < len(pairs):
        rng.shuffle(pairs)
    yield audited(pairs, calls, limits)


def listwise(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody at once, in four permutations (or as many as the budget holds) that spread slots evenly.

    Rotations move everybody through the slots, every second one is reversed; with ``both_orders`` each permutation is
    followed by its mirror image. A group larger than ``max_slots`` is cut into chunks, mixed anew in each permutation.
    """
    if size < 2:
        return
    both, chunks = bool(limits.both_orders), math.ceil(size / limits.max_slots)
    count = max(1, limits.spend(4 * chunks) // chunks)
    bounds = [round(size * part / chunks) for part in range(chunks + 1)]
    base = list(range(size))
    rng.shuffle(base)
    comparisons: list[Slots] = []
    for index in range(count):
        mirrored = index % 2 == 1
        turn, turns = (index // 2, (count + 1) // 2) if both else (index, count)
        step = turn * size // turns if chunks == 1 else 0
        if chunks > 1 and not (both and mirrored):
            rng.shuffle(base)
        order = base[step:] + base[:step]
        parts = [tuple(order[a:b]) for a, b in pairwise(bounds) if b - a >= 2]
        comparisons += [part[::-1] for part in parts] if mirrored else parts
    comparisons = list(dict.fromkeys(comparisons))  # two candidates have fewer permutations than four
    yield audited(comparisons, limits.spend(len(comparisons)), limits)


class _Slotter:
    """Gives slots to pairs that are chosen one after another: never the same comparison twice, and evenly."""

    def __init__(self, size: int, both_orders: bool) -> None:
        self.both_orders = both_orders
        self.lead_G = [0] * size
        self.asked_GG = np.zeros((size, size), dtype=bool)

    def play(self, pairs: Iterable[tuple[int, int]]) -> list[Slots]:
        """Both orders of each pair, or the one that evens out the slots; what was asked before is left out."""
        played: list[Slots] = []
        for i, j in pairs:
            slots = (i, j) if self.lead_G[i] <= self.lead_G[j] else (j, i)
            fresh = [order for order in (slots, slots[::-1]) if not self.asked_GG[order]]
            for first, second in fresh if self.both_orders else fresh[:1]:
                self.lead_G[first] += 1
                self.lead_G[second] -= 1
                self.asked_GG[first, second] = True
                played.append((first, second))
        return played

    def open(self, pairs: Iterable[tuple[int, int]], calls: int, limits: Limits) -> list[Slots]:
        """The first round, of at most so many calls, with its audit."""
        played = self.play(pairs)
        asked = audited(played, calls, limits)
        for slots, change in [(slots, -1) for slots in played] + [(slots, 1) for slots in asked]:
            self.lead_G[slots[0]] += change
            self.lead_G[slots[1]] -= change
            self.asked_GG[slots] = change > 0
        return asked


def anchor(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody meets the anchors, or candidate 0 (a random one: candidates are numbered by a seeded hash)."""
    both, pivots = limits.both_orders is not False, limits.anchors or (0,)
    others = [index for index in range(size) if index not in pivots]
    # Candidates that all look like anchors are as good as these, who meet each other.
    met = [(pivot, other) for other in others for pivot in pivots] or combinations(pivots, 2)
    pairs = _Slotter(size, both).play(met)
    yield audited(pairs, limits.spend(len(pairs) + (limits.audit and not both)), limits)


def swiss(size: int, limits: Limits, rng: Random) -> Plan:
    """Rounds in which neighbours of the current standing meet, without rematches; the last ones may sit out."""
    both = bool(limits.both_orders)
    rounds = math.ceil(math.log2(size)) if size > 1 else 0
    left = limits.spend(rounds * (size // 2) * (2 if both else 1) + (limits.audit and not both))
    slotter, asked = _Slotter(size, both), False
    standing = list(range(size))
    while left > 0:
        pairs: list[tuple[int, int]] = []
        waiting = list(standing)
        while waiting:
            i = waiting.pop(0)
            j = next((k for k in waiting if not (slotter.asked_GG[i, k] or slotter.asked_GG[k, i])), None)
            if j is not None:
                waiting.remove(j)
                pairs.append((i, j))
        if not pairs:
            return
        comparisons = slotter.play(pairs)[:left] if asked else slotter.open(pairs, left, limits)
        asked, left = True, left - len(comparisons)
        strength_G = _told_apart(log_odds((yield comparisons)))
        standing.sort(key=lambda i: -strength_G[i])


def knockout(size: int, limits: Limits, rng: Random) -> Plan:
    """An anchor round seeds the bracket, then winners meet. A match without a verdict is decided by the standing.

    A match against the anchor counts their seeding game as well.
    """
    both = bool(limits.both_orders)
    left = limits.spend((2 * size - 2) * (2 if both else 1) + (limits.audit and not both))
    if size < 2 or left <= 0:
        return
    slotter = _Slotter(size, both)
    pivot = limits.anchors[0] if limits.anchors else 0
    opening = slotter.open(((pivot, other) for other in range(size) if other != pivot), left, limits)
    left -= len(opening)
    tally = yield opening
    strength_G = _told_apart(log_odds(tally))
    alive = sorted(range(size), key=lambda i: -strength_G[i])
    while len(alive) > 1 and left > 0:
        byes = 2 ** math.ceil(math.log2(len(alive))) - len(alive)
        field = alive[byes:]
        matches = [(field[k], field[-1 - k]) for k in range(len(field) // 2)]
        comparisons = slotter.play(matches)[:left]
        left -= len(comparisons)
        tally = (yield comparisons) if comparisons else tally
        strength_G, margin_GG = _told_apart(log_odds(tally)), _told_apart(tally.log_odds_GG)
        winners = set(alive[:byes])
        for i, j in matches:
            margin = margin_GG[i, j] or strength_G[i] - strength_G[j]
            winners.add(i if margin >= 0 else j)
        alive = [i for i in alive if i in winners]


def adaptive(size: int, limits: Limits, rng: Random) -> Plan:
    """A ring of G calls, then in each of four rounds the games that settle most of the order.

    With ``both_orders`` the opening is every second pair of the ring, in both orders. Above
    ``MAX_ADAPTIVE`` candidates all of it is the ring.
    """
    if size < 2 or size > MAX_ADAPTIVE:
        yield from ring(size, limits, rng)
        return
    both, left = bool(limits.both_orders), limits.spend(2 * size)
    slotter = _Slotter(size, both)
    circle = ((i, (i + 1) % size) for i in range(0, size, 2 if both else 1))
    comparisons = slotter.open(circle, left, limits)
    games_per_round = math.ceil((left - len(comparisons)) / ADAPTIVE_ROUNDS)
    while comparisons:
        left -= len(comparisons)
        tally = yield comparisons
        comparisons = _most_telling(tally, slotter, min(games_per_round, left))[:left]


def _most_telling(tally: Tally, slotter: _Slotter, count: int) -> list[Slots]:
    """Games chosen greedily by what they tell about the order of all pairs, not only their own.

    A game's worth is the sum, over all pairs, of the chance that the pair's estimated order is wrong times the share of
    the variance of its difference that the game takes away. Strengths and covariance are those of
    :func:`~mrjudge_reward.scoring.ratings.log_odds` read as a Gaussian posterior; a game lowers the covariance by rank one.
    """
    if count < 1:
        return []
    system, target = log_odds_system(tally)
    inverse = np.asarray(np.linalg.inv(system), dtype=np.float64)
    strength_G, covariance_GG = (inverse @ target)[: tally.size], inverse[: tally.size, : tally.size].copy()
    # By the prior strengths have the variance noise / PRIOR_GAMES, so their spread tells the noise of a game.
    noise = (strength_G @ strength_G) / max(1e-9, float((1 / PRIOR_GAMES - covariance_GG.diagonal()).sum()))
    variance_GG = _of_differences(covariance_GG)
    above = np.triu_indices(tally.size, 1)
    gap_P = np.abs(strength_G[above[0]] - strength_G[above[1]])
    odds_P = gap_P / np.sqrt(2 * noise * variance_GG[above] + 1e-12)
    weight_GG = np.zeros_like(variance_GG)
    weight_GG[above] = np.array([math.erfc(odds) for odds in odds_P.tolist()]) / 2 / variance_GG[above]
    weight_GG += weight_GG.T
    laplacian_GG = np.diag(weight_GG.sum(axis=1)) - weight_GG
    told_GG = _of_differences(covariance_GG @ laplacian_GG @ covariance_GG)
    told_GG[(slotter.asked_GG & slotter.asked_GG.T) | np.eye(tally.size, dtype=bool)] = -np.inf
    variance_GG += 1
    chosen: list[Slots] = []
    while len(chosen) < count:
        worth_GG = told_GG / variance_GG
        most = worth_GG.max()
        if most == -np.inf:
            break
        # Of games that are equal but for rounding the first, so that it is the same one on every machine.
        i, j = divmod(int((worth_GG >= most - EQUAL * abs(most)).argmax()), tally.size)
        played = slotter.play([(i, j)])
        for _ in played:  # each takes a rank off the covariance; what follows from it is carried along
            taken_G = covariance_GG[:, i] - covariance_GG[:, j]
            taken_G /= math.sqrt(1 + taken_G[i] - taken_G[j])
            weighed_G = laplacian_GG @ taken_G
            taken_GG = taken_G[:, None] - taken_G
            moved_G = (taken_G @ weighed_G) * taken_G - 2 * (covariance_GG @ weighed_G)
            covariance_GG -= taken_G[:, None] * taken_G
            variance_GG -= taken_GG * taken_GG
            told_GG += taken_GG * (moved_G[:, None] - moved_G)
        if slotter.asked_GG[i, j] and slotter.asked_GG[j, i]:
            told_GG[i, j] = told_GG[j, i] = -np.inf
        chosen += played
    return chosen


def _told_apart(values: Matrix) -> Matrix:
    """Rounded, so that what is equal but for the last digits of a sum is a tie, on every machine the same."""
    return np.round(values, 9)


def _of_differences(covariance_GG: Matrix) -> Matrix:
    """Variance of the difference of each two."""
    variance_G = covariance_GG.diagonal()
    return np.asarray(variance_G[:, None] + variance_G - 2 * covariance_GG)


@dataclass(frozen=True)
class Schedule:
    """Who meets, under a name.

    Attributes:
        name: for logs and errors.
        plan: called with the size of a group, limits and a random state for the comparisons (see the module).
        alone: every candidate is judged alone; such a schedule goes with formats that grade, and only with these.
        whole: a comparison shows as many candidates as the format can; otherwise it shows two.
        looks: it looks at the tally before it goes on, so it has several rounds.
    """

    name: str
    plan: Callable[[int, Limits, Random], Plan]
    alone: bool = False
    whole: bool = False
    looks: bool = False


SCHEDULES: dict[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule("pointwise", pointwise, alone=True),
        Schedule("ring", ring),
        Schedule("adaptive", adaptive, looks=True),
        Schedule("all_pairs", all_pairs),
        Schedule("listwise", listwise, whole=True),
        Schedule("anchor", anchor),
        Schedule("swiss", swiss, looks=True),
        Schedule("knockout", knockout, looks=True),
    )
}
