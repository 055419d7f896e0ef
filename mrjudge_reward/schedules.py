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
adaptive       2G                   a ring of G calls, then the pairs whose order is least certain
all_pairs      G(G-1)/2 × 2 orders  everybody meets everybody
listwise       4                    all candidates at once, in permutations that balance slots
anchor         (G-1) × 2 orders     everybody meets one candidate (BRPO, arXiv 2506.00103, its pivot)
swiss          ⌊G/2⌋⌈log2 G⌉        neighbours in the standing meet
knockout       2G-2                 seeded by an anchor round, then single elimination (ArenaRL, 2601.06487)
=============  ===================  ==========================================================================

Each takes a budget of calls per group. ``both_orders`` plays every pair in both slot orders; without it the slots are
balanced over the schedule instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from random import Random
from typing import TypeAlias

import numpy as np

from .ratings import log_odds
from .tally import Tally

Slots: TypeAlias = tuple[int, ...]
Plan: TypeAlias = Generator[list[Slots], Tally, None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a schedule may spend.

    Attributes:
        budget: most comparisons per group; None for the schedule's own number.
        both_orders: whether a pair is shown in both slot orders; None for the schedule's own habit.
        max_slots: most candidates in one comparison (listwise).
    """

    budget: int | None = None
    both_orders: bool | None = None
    max_slots: int = 16

    def spend(self, natural: int) -> int:
        """The number of comparisons: the natural one unless a budget is set."""
        return natural if self.budget is None else max(0, self.budget)


def pointwise(size: int, limits: Limits, rng: Random) -> Plan:
    """Every candidate alone."""
    yield [(i,) for i in range(size)][: limits.spend(size)]


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
    eigenvalues = np.full(size - 1, 1e-6)
    chosen: list[int] = []
    while len(chosen) < min(count, size - 1):
        best, best_cost, best_eigenvalues = 0, math.inf, eigenvalues
        for offset in range(1, size):
            if offset in chosen or (symmetric and offset > size - offset):
                continue
            more = eigenvalues + 2 * (1 - np.cos(2 * np.pi * offset * frequencies / size))
            cost = float((1 / more).sum())
            if cost < best_cost * (1 - 1e-9):
                best, best_cost, best_eigenvalues = offset, cost, more
        chosen.append(best)
        eigenvalues = best_eigenvalues
        if symmetric and size - best not in chosen and len(chosen) < count:
            chosen.append(size - best)
    return tuple(chosen)


def _ring_pairs(size: int, calls: int, both_orders: bool) -> list[Slots]:
    if size < 2 or calls <= 0:
        return []
    offsets = ring_offsets(size, math.ceil(min(calls, size * (size - 1)) / size), both_orders)
    pairs = [(i, (i + offset) % size) for offset in offsets for i in range(size)]
    return list(pairs[:calls])


def ring(size: int, limits: Limits, rng: Random) -> Plan:
    """Circulant pairs, 2G of them unless a budget says otherwise."""
    yield _ring_pairs(size, limits.spend(2 * size), bool(limits.both_orders))


def all_pairs(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody meets everybody, in both orders unless switched off; a smaller budget keeps a random part."""
    both = limits.both_orders is not False
    if both:
        pairs: list[Slots] = list(permutations(range(size), 2))
    else:  # each pair once, slots balanced: whoever is fewer steps behind on the circle is shown first
        pairs = [(i, (i + k) % size) for k in range(1, (size - 1) // 2 + 1) for i in range(size)]
        pairs += [(i, i + size // 2) for i in range(size // 2)] if size % 2 == 0 else []
    calls = limits.spend(len(pairs))
    if calls < len(pairs):
        rng.shuffle(pairs)
    yield pairs[:calls]


def listwise(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody at once, in four permutations (or as many as the budget holds) that spread slots evenly.

    Rotations move everybody through the slots, every second one is reversed; with ``both_orders`` each permutation is
    followed by its mirror image. A group larger than ``max_slots`` is cut into chunks, mixed anew in each permutation.
    """
    if size < 2:
        return
    chunks = math.ceil(size / limits.max_slots)
    count = max(1, limits.spend(4 * chunks) // chunks)
    base = list(range(size))
    rng.shuffle(base)
    comparisons: list[Slots] = []
    for index in range(count):
        if limits.both_orders:
            step, mirrored = index // 2 * size // ((count + 1) // 2), index % 2 == 1
        else:
            step, mirrored = index * size // count, index % 2 == 1
        order = base[step % size :] + base[: step % size]
        if chunks > 1 and not (limits.both_orders and mirrored):
            rng.shuffle(base)
            order = list(base)
        elif chunks > 1:
            order = list(base)
        if mirrored:
            order.reverse()
        bounds = [round(size * part / chunks) for part in range(chunks + 1)]
        comparisons += [tuple(order[a:b]) for a, b in zip(bounds, bounds[1:], strict=False) if b - a >= 2]
    yield comparisons[: limits.spend(len(comparisons))]


def _anchor_pairs(size: int, both_orders: bool) -> list[Slots]:
    pairs: list[Slots] = []
    for other in range(1, size):
        if both_orders:
            pairs += [(0, other), (other, 0)]
        else:
            pairs.append((0, other) if other % 2 else (other, 0))
    return pairs


def anchor(size: int, limits: Limits, rng: Random) -> Plan:
    """Everybody meets candidate 0 (which is a random one: candidates are numbered by a seeded hash)."""
    pairs = _anchor_pairs(size, limits.both_orders is not False)
    yield pairs[: limits.spend(len(pairs))]


class _Slotter:
    """Keeps slots balanced while pairs are chosen round by round."""

    def __init__(self, size: int) -> None:
        self.first = [0] * size
        self.played: set[Slots] = set()

    def order(self, i: int, j: int) -> Slots:
        """The order that was not played yet, or else the one that gives the first slot to whoever had it less."""
        forward = self.first[i] <= self.first[j] if (i, j) not in self.played else False
        if not forward and (j, i) in self.played and (i, j) not in self.played:
            forward = True
        return (i, j) if forward else (j, i)

    def play(self, pairs: Sequence[Slots]) -> list[Slots]:
        for pair in pairs:
            self.first[pair[0]] += 1
            self.played.add(pair)
        return list(pairs)


def swiss(size: int, limits: Limits, rng: Random) -> Plan:
    """Rounds in which neighbours of the current standing meet, without rematches; odd groups leave one out."""
    both = bool(limits.both_orders)
    rounds = math.ceil(math.log2(size)) if size > 1 else 0
    left = limits.spend(rounds * (size // 2) * (2 if both else 1))
    slotter = _Slotter(size)
    standing = list(range(size))
    met: set[frozenset[int]] = set()
    while left > 0:
        pairs: list[Slots] = []
        waiting = list(standing)
        while len(waiting) > 1:
            i = waiting.pop(0)
            j = next((other for other in waiting if frozenset((i, other)) not in met), None)
            if j is None:
                continue
            waiting.remove(j)
            met.add(frozenset((i, j)))
            slots = slotter.order(i, j)
            pairs += [slots, slots[::-1]] if both else [slots]
        if not pairs:
            return
        tally = yield slotter.play(pairs[:left])
        left -= len(pairs[:left])
        strength = log_odds(tally)
        standing = sorted(range(size), key=lambda i: -strength[i])


def knockout(size: int, limits: Limits, rng: Random) -> Plan:
    """An anchor round seeds the bracket, then winners meet. A match without a verdict is decided by the standing."""
    both = bool(limits.both_orders)
    left = limits.spend((2 * size - 2) * (2 if both else 1))
    if size < 2:
        return
    slotter = _Slotter(size)
    opening = _anchor_pairs(size, both)[:left]
    tally = yield slotter.play(opening)
    left -= len(opening)
    strength = log_odds(tally)
    alive = sorted(range(size), key=lambda i: -strength[i])
    while len(alive) > 1 and left > 0:
        byes = 2 ** math.ceil(math.log2(len(alive))) - len(alive)
        field = alive[byes:]
        matches = [(field[k], field[-1 - k]) for k in range(len(field) // 2)]
        before = tally.log_odds_GG
        pairs: list[Slots] = []
        for i, j in matches:
            slots = slotter.order(i, j)
            pairs += [slots, slots[::-1]] if both else [slots]
        tally = yield slotter.play(pairs[:left])
        left -= len(pairs[:left])
        strength = log_odds(tally)
        winners = set(alive[:byes])
        for i, j in matches:
            result = tally.log_odds_GG[i, j] - before[i, j]
            winners.add(i if (result if result != 0 else strength[i] - strength[j]) >= 0 else j)
        alive = [i for i in alive if i in winners]


def adaptive(size: int, limits: Limits, rng: Random) -> Plan:
    """A ring of G calls, then disjoint pairs, round by round, where one more game settles most.

    A pair's worth is the chance that its estimated order is wrong, times how much its next game would shrink the
    variance of its difference, under the least-squares fit of :func:`~mrjudge_reward.ratings.log_odds`.
    """
    both = bool(limits.both_orders)
    left = limits.spend(2 * size)
    if size < 2:
        return
    slotter = _Slotter(size)
    opening = _ring_pairs(size, min(left, size * (2 if both else 1)), both)
    tally = yield slotter.play(opening)
    left -= len(opening)
    while left > 0:
        pairs = _most_uncertain(tally, slotter, max(1, size // 2))
        if both:
            pairs = [slots for pair in pairs for slots in (pair, pair[::-1]) if slots not in slotter.played]
        if not pairs:
            return
        tally = yield slotter.play(pairs[:left])
        left -= len(pairs[:left])


def _most_uncertain(tally: Tally, slotter: _Slotter, count: int) -> list[Slots]:
    size = tally.size
    strength = log_odds(tally)
    covariance = np.linalg.inv(np.diag(tally.games_G + 0.1) - tally.games_GG)
    resistance = np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2 * covariance
    difference = strength[:, None] - strength[None, :]
    played = tally.games_GG > 0
    residual = np.where(played, tally.log_odds_GG - tally.games_GG * difference, 0.0)
    freedom = max(1.0, tally.games_GG.sum() / 2 - size + 1)
    noise = max(0.25, float((residual**2)[played].sum() / 2 / freedom))
    deviation = np.sqrt(noise * np.maximum(resistance, 1e-12))
    wrong = 0.5 * np.vectorize(math.erfc)(np.abs(difference) / deviation / math.sqrt(2))
    worth = wrong * deviation * resistance / (1 + resistance)
    chosen: list[Slots] = []
    busy: set[int] = set()
    for flat in np.argsort(-worth, axis=None, kind="stable"):
        i, j = divmod(int(flat), size)
        if i >= j or i in busy or j in busy or {(i, j), (j, i)} <= slotter.played:
            continue
        chosen.append(slotter.order(i, j))
        busy |= {i, j}
        if len(chosen) == count:
            break
    return chosen


Schedule: TypeAlias = Callable[[int, Limits, Random], Plan]

SCHEDULES: dict[str, Schedule] = {
    "pointwise": pointwise,
    "ring": ring,
    "adaptive": adaptive,
    "all_pairs": all_pairs,
    "listwise": listwise,
    "anchor": anchor,
    "swiss": swiss,
    "knockout": knockout,
}
