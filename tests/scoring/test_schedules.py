from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations, permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrjudge_reward.scoring import schedules
from mrjudge_reward.scoring.ratings import RATINGS, log_odds, rate
from mrjudge_reward.scoring.schedules import MAX_ADAPTIVE, SCHEDULES, Limits, ring_offsets
from mrjudge_reward.scoring.tally import MAX_GROUP, Matrix, Tally, count_games
from mrjudge_reward.types import Comparison, JudgedComparison, NoVerdict, Outcome, Preference, Verdict
from tests.benchmarks.adaptive import games_of
from tests.benchmarks.schedules import CONFIDENT, LEVELS, SLIPPING, TIED, Judge, hold

PAIRWISE = [name for name in SCHEDULES if name not in ("pointwise", "listwise")]
LOG_ODDS_GG = vars(Tally)["log_odds_GG"].func
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def noisy_outcome(slots: tuple[int, ...], seed: int, failure_rate: float) -> Outcome:
    """A soft verdict that prefers low indices, or a failure; always the same for the same slots."""
    rng = np.random.default_rng((seed, *slots))
    if rng.random() < failure_rate:
        return NoVerdict("timeout")
    mass = np.exp(rng.normal(size=len(slots)) - np.array(slots))
    return Preference(tuple((mass / mass.sum()).tolist()), soft=True)


def rounds_of(
    name: str, size: int, limits: Limits | None = None, seed: int = 0, failure_rate: float = 0.0
) -> tuple[list[list[tuple[int, ...]]], list[JudgedComparison]]:
    """Let a schedule play to its end."""
    plan = SCHEDULES[name].plan(size, limits or Limits(), Random(seed))
    rounds: list[list[tuple[int, ...]]] = []
    played: list[JudgedComparison] = []
    tally = None
    while True:
        try:
            asked = next(plan) if tally is None else plan.send(tally)
        except StopIteration:
            return rounds, played
        rounds.append(asked)
        for slots in asked:
            played.append(JudgedComparison(Comparison(slots), Verdict(noisy_outcome(slots, seed, failure_rate))))
        tally = count_games(size, played)


def slots_of(name: str, size: int, limits: Limits | None = None, seed: int = 0) -> list[tuple[int, ...]]:
    return [slots for asked in rounds_of(name, size, limits, seed)[0] for slots in asked]


sizes = st.integers(0, 20)
limits = st.builds(
    Limits,
    budget=st.none() | st.integers(0, 90),
    both_orders=st.sampled_from([None, False, True]),
    max_slots=st.integers(2, 8),
    audit=st.booleans(),
)


@pytest.mark.parametrize("name", SCHEDULES)
@repeatable
@given(size=sizes, limits=limits, seed=st.integers(0, 9), failure_rate=st.sampled_from([0.0, 0.3, 1.0]))
def test_comparisons_are_valid_distinct_within_budget_and_repeatable_even_when_verdicts_fail(
    name: str, size: int, limits: Limits, seed: int, failure_rate: float
) -> None:
    rounds, _ = rounds_of(name, size, limits, seed, failure_rate)
    asked = [slots for batch in rounds for slots in batch]
    for slots in asked:
        assert len(set(slots)) == len(slots), "a candidate met itself"
        assert all(0 <= i < size for i in slots)
        assert len(slots) == 1 if name == "pointwise" else len(slots) >= 2
        assert len(slots) <= (limits.max_slots if name == "listwise" else 2)
    assert len(set(asked)) == len(asked), "the same comparison was asked twice"
    assert limits.budget is None or len(asked) <= limits.budget
    assert all(rounds[1:]), "a round after the first asked nothing"
    assert rounds_of(name, size, limits, seed, failure_rate)[0] == rounds


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "pointwise"])
@pytest.mark.parametrize("size", [0, 1])
def test_a_group_without_two_candidates_is_not_judged_in_comparisons(name: str, size: int) -> None:
    assert slots_of(name, size) == []


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("pointwise", 8),
        ("ring", 16),
        ("adaptive", 16),
        ("all_pairs", 56),
        ("listwise", 4),
        ("anchor", 14),
        ("swiss", 12),
        ("knockout", 14),
    ],
)
def test_eight_candidates_cost_what_the_table_says(name: str, calls: int) -> None:
    assert len(slots_of(name, 8)) == calls


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("size", [2, 3, 8, 13])
def test_with_both_orders_every_pair_is_played_in_mirrored_slots(name: str, size: int) -> None:
    asked = set(slots_of(name, size, Limits(both_orders=True)))
    unpaired = {slots for slots in asked if slots[::-1] not in asked}
    assert len(unpaired) <= (1 if name == "adaptive" else 0)  # its last call may be half a pair
    assert asked


def test_listwise_with_both_orders_mirrors_every_permutation_even_in_chunks() -> None:
    for size, max_slots in ((5, 16), (16, 16), (5, 3), (13, 4)):
        asked = slots_of("listwise", size, Limits(both_orders=True, max_slots=max_slots))
        assert {slots[::-1] for slots in asked} == set(asked)


@repeatable
@given(size=st.integers(3, 40), rings=st.integers(1, 4), both=st.booleans())
def test_a_ring_shows_everybody_first_as_often_as_second(size: int, rings: int, both: bool) -> None:
    asked = slots_of("ring", size, Limits(budget=rings * size, both_orders=both))
    first, second = Counter(slots[0] for slots in asked), Counter(slots[1] for slots in asked)
    assert first == second
    assert set(first.values()) == {min(rings, size - 1)}


@repeatable
@given(size=st.integers(2, 40), count=st.integers(1, 4))
def test_a_ring_connects_everybody(size: int, count: int) -> None:
    offsets = ring_offsets(size, count, False)
    assert np.gcd.reduce([*offsets, size]) == 1
    assert len(set(offsets)) == len(offsets) == min(count, size - 1)


def test_ring_offsets_of_the_largest_group_take_no_time() -> None:
    ring_offsets.cache_clear()
    started = time.thread_time()
    assert len(ring_offsets(MAX_GROUP, 2, False)) == 2
    assert time.thread_time() - started < 2


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_all_pairs_are_all_pairs(size: int) -> None:
    assert sorted(slots_of("all_pairs", size)) == sorted(permutations(range(size), 2))
    once = slots_of("all_pairs", size, Limits(both_orders=False))
    assert sorted(tuple(sorted(slots)) for slots in once) == sorted(combinations(range(size), 2))
    lead = Counter(slots[0] for slots in once)
    lead.subtract(slots[1] for slots in once)
    assert all(abs(difference) <= 1 for difference in lead.values()), "slots are not balanced"


@pytest.mark.parametrize("size", [2, 4, 9, 16, 20])
def test_listwise_moves_everybody_through_early_and_late_slots(size: int) -> None:
    asked = slots_of("listwise", size, Limits(max_slots=size))
    mean_slot = [np.mean([slots.index(i) for slots in asked]) for i in range(size)]
    assert max(abs(slot - (size - 1) / 2) for slot in mean_slot) <= size / 4


def test_anchor_meets_everybody() -> None:
    assert {frozenset(slots) for slots in slots_of("anchor", 6)} == {frozenset((0, i)) for i in range(1, 6)}
    balanced = slots_of("anchor", 7, Limits(both_orders=False))
    assert sum(slots[0] == 0 for slots in balanced) == 3


@pytest.mark.parametrize("size", [4, 7, 16])
def test_swiss_has_no_rematches_and_nobody_plays_twice_in_a_round(size: int) -> None:
    rounds, _ = rounds_of("swiss", size)
    for batch in rounds:
        players = [i for slots in batch for i in slots]
        assert len(set(players)) == len(players)
    pairs = [frozenset(slots) for batch in rounds for slots in batch]
    assert len(set(pairs)) == len(pairs) == size // 2 * int(np.ceil(np.log2(size)))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 11])
@pytest.mark.parametrize("failure_rate", [0.0, 0.5, 1.0])
def test_a_knockout_ends_with_one_champion_whatever_fails(size: int, failure_rate: float) -> None:
    rounds, _ = rounds_of("knockout", size, failure_rate=failure_rate)
    matches = [slots for batch in rounds[1:] for slots in batch]
    assert len(rounds[0]) == size - 1
    assert len(matches) == size - 1  # each match throws out one
    assert len(rounds) == 1 + int(np.ceil(np.log2(size)))


@pytest.mark.parametrize("size", [4, 8, 16, 33])
def test_adaptive_asks_a_ring_and_then_at_most_four_batches(size: int) -> None:
    rounds, _ = rounds_of("adaptive", size)
    assert rounds[0] == [(i, (i + 1) % size) for i in range(size)]
    assert len(rounds) <= 5
    assert sum(map(len, rounds)) == 2 * size


def test_adaptive_asks_about_neighbours_more_than_about_distant_pairs() -> None:
    # No order along the opening: there the ring's last game alone would tell first from last, and be taken for a slip.
    distances = []
    for group in range(20):
        judge = Judge(16, group, LEVELS[0], soft=True)
        games = hold("adaptive", 16, group, judge, Limits()).tally.games
        place_G = judge.s_G.argsort().argsort()
        distances += np.abs(place_G[games.first] - place_G[games.second])[16:].tolist()
    every_pair = [abs(i - j) for i, j in combinations(range(16), 2)]
    assert np.mean(distances) < 0.7 * np.mean(every_pair)


def test_adaptive_keeps_slots_nearly_balanced() -> None:
    for seed in range(10):
        lead = Counter(slots[0] for slots in slots_of("adaptive", 16, seed=seed))
        lead.subtract(slots[1] for slots in slots_of("adaptive", 16, seed=seed))
        assert max(abs(difference) for difference in lead.values()) <= 4


def test_adaptive_with_enough_budget_plays_everything() -> None:
    assert sorted(slots_of("adaptive", 6, Limits(budget=1000))) == sorted(permutations(range(6), 2))


@pytest.mark.parametrize("limits", [Limits(), Limits(both_orders=True, audit=True), Limits(budget=60)], ids=repr)
@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 12, 16, 23, 40])
def test_adaptive_plays_the_games_that_it_would_if_all_were_computed_anew_for_each(size: int, limits: Limits) -> None:
    for group in range(6):
        judge = Judge(size, group, (*LEVELS, TIED, SLIPPING, CONFIDENT)[group], soft=group % 2 == 0)
        anew, _ = games_of(size, group, judge, limits, anew=True)
        carried, _ = games_of(size, group, judge, limits, anew=False)
        assert carried == anew


def test_adaptive_tolerates_groups_in_which_all_are_equal() -> None:
    plan = SCHEDULES["adaptive"].plan(6, Limits(), Random(0))
    played: list[JudgedComparison] = []
    asked = next(plan)
    while len(played) + len(asked) < 12:
        played += [JudgedComparison(Comparison(slots), Verdict(Preference((0.5, 0.5), soft=True))) for slots in asked]
        asked = plan.send(count_games(6, played))
    assert len(played) + len(asked) == 12


@pytest.mark.parametrize("both_orders", [False, True])
@pytest.mark.parametrize("size", [3, 4, 5, 6, 7, 8, 9, 12, 16, 17])
@pytest.mark.parametrize("name", [schedule.name for schedule in SCHEDULES.values() if schedule.looks])
def test_rounding_decides_nobodys_next_game(
    name: str, size: int, both_orders: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties are common: few games, and verdicts of the same weight. What a sum's last digits say must not settle them."""

    def played(noise: float) -> list[tuple[int, ...]]:
        rng = np.random.default_rng(size)

        def nearly(of: Callable[[Tally], Matrix]) -> Callable[[Tally], Matrix]:
            return lambda tally: (found := of(tally)) + noise * rng.normal(size=found.shape)

        with monkeypatch.context() as patched:
            patched.setattr(schedules, "log_odds", nearly(log_odds))
            patched.setattr(Tally, "log_odds_GG", property(nearly(LOG_ODDS_GG)))
            plan = SCHEDULES[name].plan(size, Limits(both_orders=both_orders), Random(0))
            games: list[JudgedComparison] = []
            asked = next(plan)
            while True:
                # Circles of equals: each beats the next third of them, always by as much.
                sure = (0.9 if (j - i) % size <= size // 3 else 0.1 for i, j in asked)
                games += [
                    JudgedComparison(Comparison(slots), Verdict(Preference((p, 1 - p), soft=True)))
                    for slots, p in zip(asked, sure, strict=True)
                ]
                try:
                    asked = plan.send(count_games(size, games))
                except StopIteration:
                    return [item.comparison.slots for item in games]

    assert played(1e-13) == played(0.0)


def test_adaptive_above_its_limit_is_the_ring() -> None:
    size = MAX_ADAPTIVE + 1
    first, second = (next(SCHEDULES[name].plan(size, Limits(), Random(0))) for name in ("adaptive", "ring"))
    assert first == second


@pytest.mark.parametrize("name", PAIRWISE)
def test_most_verdicts_failing_leaves_scores_for_those_who_played(name: str) -> None:
    _, played = rounds_of(name, 9, failure_rate=0.7, seed=3)
    tally = count_games(9, played)
    scores = rate(RATINGS["log_odds"], tally)
    assert [score is not None for score in scores] == (tally.games_G > 0).tolist()
