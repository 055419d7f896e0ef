from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrjudge_reward.scoring.ratings import RATINGS, rate
from mrjudge_reward.scoring.tally import (
    HARD_LOG_ODDS,
    MAX_LOG_ODDS,
    GameCount,
    Tally,
    best_in,
    bounded_log_odds,
    count_games,
    cyclic_triads,
    hard_winner,
    position_consistency,
)
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
    steps_between,
)

SIZE = 5
repeatable = settings(derandomize=True, deadline=None, max_examples=60)


def played(slots: Sequence[int], outcome: Outcome, repeat: int = 0) -> JudgedComparison:
    return JudgedComparison(Comparison(tuple(slots), repeat), Verdict(outcome))


def one_hot(winner: int, size: int = 2) -> Preference:
    return Preference(tuple(float(slot == winner) for slot in range(size)))


def soft(*probabilities: float) -> Preference:
    return Preference(probabilities, soft=True)


def mirrored(outcome: Outcome) -> Outcome:
    """The verdict a judge without position bias gives when the slots are reversed."""
    match outcome:
        case Preference(probabilities):
            return Preference(probabilities[::-1], outcome.soft)
        case Grades(values, grades):
            return Grades(values[::-1], grades[::-1])
        case RankOrder(tiers):
            last = sum(map(len, tiers)) - 1
            return RankOrder(tuple(tuple(last - position for position in tier) for tier in tiers), outcome.strengths)
        case _:
            return outcome


@st.composite
def comparisons(draw: st.DrawFn) -> JudgedComparison:
    slots = draw(st.permutations(range(SIZE)))[: draw(st.integers(2, SIZE))]
    count = len(slots)
    kind = draw(st.sampled_from(["soft", "hard", "tie", "order", "scores", "failed"]))
    match kind:
        case "soft":
            masses = draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
            outcome: Outcome = soft(*(mass / sum(masses) for mass in masses))
        case "hard":
            outcome = one_hot(draw(st.integers(0, count - 1)), count)
        case "order":
            tier_of = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
            tiers = (tuple(k for k in range(count) if tier_of[k] == tier) for tier in range(3))
            tiers = [tier for tier in tiers if tier]
            strengths = tuple(draw(st.lists(st.integers(1, 3), min_size=len(tiers) - 1, max_size=len(tiers) - 1)))
            outcome = RankOrder(tuple(tiers), strengths)
        case "scores":
            outcome = Grades.sampled(draw(st.lists(st.integers(1, 10).map(float), min_size=count, max_size=count)))
        case "tie":
            outcome = Tie()
        case _:
            outcome = NoVerdict("truncated")
    return played(slots, outcome)


def same_games(a: Tally, b: Tally) -> bool:
    return all(
        np.allclose(getattr(a, name), getattr(b, name), atol=1e-12) for name in ("wins_GG", "games_GG", "log_odds_GG")
    )


def assert_same(a: Tally, b: Tally) -> None:
    for name, value in vars(a.games).items():
        np.testing.assert_array_equal(value, getattr(b.games, name), name)
    for name in ("ties", "grades_G", "graded_G", "steepness"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert a.columns == b.columns


@repeatable
@given(st.lists(st.lists(comparisons(), max_size=4), max_size=5))
def test_games_counted_round_by_round_are_those_counted_at_once(rounds: list[list[JudgedComparison]]) -> None:
    count = GameCount(SIZE)
    for items in rounds:
        count.add(items)
        count.tally()  # what a schedule looks at between rounds
    at_once = count_games(SIZE, [item for items in rounds for item in items])
    assert_same(count.tally(), at_once)


@repeatable
@given(st.lists(comparisons(), max_size=12))
def test_swapping_slots_and_mirroring_the_verdict_leaves_every_game_the_same(items: list[JudgedComparison]) -> None:
    tally = count_games(SIZE, items)
    swapped = [JudgedComparison(item.comparison.swap(), Verdict(mirrored(item.verdict.outcome))) for item in items]
    other = count_games(SIZE, swapped)
    assert same_games(tally, other)
    assert tally.ties == other.ties


@repeatable
@given(st.lists(comparisons(), max_size=12))
def test_games_are_wins_of_either_side(items: list[JudgedComparison]) -> None:
    tally = count_games(SIZE, items)
    assert np.allclose(tally.games_GG, tally.wins_GG + tally.wins_GG.T)
    assert np.allclose(tally.log_odds_GG, -tally.log_odds_GG.T)
    assert np.allclose(tally.games_G, tally.games_GG.sum(axis=1))
    assert not tally.games_GG.diagonal().any()


@repeatable
@given(st.lists(comparisons(), max_size=12))
def test_a_failed_verdict_changes_nothing(items: list[JudgedComparison]) -> None:
    failed = [played((i, j), NoVerdict("no verdict")) for i, j in combinations(range(SIZE), 2)]
    tally, other = count_games(SIZE, items), count_games(SIZE, [*failed, *items])
    for name, value in vars(tally.games).items():
        if not name.startswith(
            "slot"
        ):  # where everybody was seen in one place only, failures say that more was planned
            assert np.array_equal(value, getattr(other.games, name)), name
    assert tally.ties == other.ties


@pytest.mark.parametrize("rating", RATINGS)
def test_a_candidate_without_any_game_has_no_score(rating: str) -> None:
    tally = count_games(
        3,
        [
            played((0, 1), Grades.sampled((7.0, 3.0))),
            played((1, 0), Grades.sampled((3.0, 7.0))),
            played((1, 2), NoVerdict("timeout")),
        ],
    )
    scores = rate(RATINGS[rating], tally)
    assert scores[2] is None
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] > scores[1]


def test_a_tie_is_half_a_win_each() -> None:
    tally = count_games(3, [played((0, 1, 2), Tie())])
    assert tally.wins_GG.tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert tally.ties == 3


def test_a_win_each_way_adds_up_to_the_games_of_two_ties() -> None:
    each_way = count_games(2, [played((0, 1), one_hot(0)), played((1, 0), one_hot(0))])
    ties = count_games(2, [played((0, 1), Tie()), played((1, 0), Tie())])
    assert same_games(each_way, ties)
    assert (each_way.ties, ties.ties) == (0, 2), "ratings learn from it what the slot is worth"


def test_soft_verdicts_that_lean_either_way_are_no_ties() -> None:
    assert count_games(2, [played((0, 1), soft(0.6, 0.4)), played((1, 0), soft(0.6, 0.4))]).ties == 0


def test_one_choice_among_k_is_k_minus_one_games_of_the_winner() -> None:
    tally = count_games(4, [played((2, 0, 3, 1), one_hot(2, 4))])
    assert tally.games_G.tolist() == [1, 1, 1, 3]
    assert tally.wins_GG.sum() == tally.wins_GG[3].sum() == 3


@repeatable
@given(st.lists(st.floats(0.01, 1), min_size=SIZE, max_size=SIZE), st.permutations(range(SIZE)))
def test_a_soft_choice_among_k_is_the_expectation_of_hard_ones(masses: list[float], slots: list[int]) -> None:
    probabilities = [mass / sum(masses) for mass in masses]
    tally = count_games(SIZE, [played(slots, soft(*probabilities))])
    hard = [count_games(SIZE, [played(slots, one_hot(k, SIZE))]) for k in range(SIZE)]
    assert np.allclose(tally.wins_GG, sum(p * h.wins_GG for p, h in zip(probabilities, hard, strict=True)))
    assert np.allclose(tally.games_GG, sum(p * h.games_GG for p, h in zip(probabilities, hard, strict=True)))


def test_orders_and_grades_are_games_between_all_pairs() -> None:
    order = count_games(3, [played((2, 0, 1), RankOrder(((1,), (0, 2))))])
    grades = count_games(3, [played((2, 0, 1), Grades.sampled((5.0, 9.0, 5.0)))])
    assert np.allclose(order.log_odds_GG, grades.log_odds_GG), "their mean difference is a game won outright"
    assert order.wins_GG.tolist() == [[0, 1, 1], [0, 0, 0.5], [0, 0.5, 0]]
    assert order.ties == grades.ties == 1
    assert grades.grades_G.tolist() == [9, 5, 5]


def test_a_stronger_step_credits_a_larger_margin_and_the_same_win() -> None:
    plain = count_games(3, [played((2, 0, 1), RankOrder(((1,), (0,), (2,))))])
    graded = count_games(3, [played((2, 0, 1), RankOrder(((1,), (0,), (2,)), (2, 1)))])
    assert (plain.wins_GG == graded.wins_GG).all()
    assert plain.log_odds_GG[0].tolist() == [0, HARD_LOG_ODDS, HARD_LOG_ODDS]
    assert graded.log_odds_GG[0].tolist() == [0, 2 * HARD_LOG_ODDS, 2 * HARD_LOG_ODDS], "0 leads by the strongest step"
    assert graded.log_odds_GG[2, 1] == HARD_LOG_ODDS
    assert 3 * HARD_LOG_ODDS <= MAX_LOG_ODDS


@pytest.mark.parametrize(
    ("order", "steps"),
    [
        (RankOrder(((0,), (1,), (2,))), {(0, 1): 1, (0, 2): 1, (2, 0): -1}),
        (RankOrder(((0,), (1,), (2,)), (3, 1)), {(0, 1): 3, (1, 2): 1, (0, 2): 3, (2, 0): -3, (1, 0): -3}),
        (RankOrder(((1,), (0, 2)), (2,)), {(1, 0): 2, (0, 1): -2, (0, 2): 0}),
        (RankOrder(((0, 1, 2),)), {(0, 1): 0, (2, 1): 0}),
    ],
)
def test_the_steps_between_two_slots(order: RankOrder, steps: dict[tuple[int, int], int]) -> None:
    steps_KK = steps_between(order)
    assert {(a, b): steps_KK[a][b] for a, b in steps} == steps


def test_candidates_graded_alone_meet_afterwards() -> None:
    unsure = Grades((3.5,), (((3.0, 0.5), (4.0, 0.5)),))
    tally = count_games(
        4, [played((0,), Grades.sampled((4.0,))), played((1,), Grades.sampled((3.0,))), played((2,), unsure)]
    )
    assert tally.log_odds_GG[0, 1] == HARD_LOG_ODDS
    assert tally.wins_GG[0, 2] == 1, "where the grades differ, 4 is the higher"
    assert tally.wins_GG[2, 1] == 1
    assert tally.games_GG[3].sum() == 0
    assert np.isnan(tally.grades_G[3])
    assert not tally.columns, "nobody was shown before anybody else"


def test_equal_grades_alone_are_a_tie() -> None:
    tally = count_games(2, [played((i,), Grades.sampled((4.0,))) for i in range(2)])
    assert tally.wins_GG[0, 1] == 0.5
    assert tally.ties == 1


def test_distributions_of_grades_meet_by_the_chance_that_one_is_higher() -> None:
    low, high = (((1.0, 0.7), (2.0, 0.3)), ((1.0, 0.4), (2.0, 0.6)))
    tally = count_games(2, [played((0,), Grades((1.3,), (low,))), played((1,), Grades((1.6,), (high,)))])
    assert tally.wins_GG[1, 0] == pytest.approx(0.42 / (0.42 + 0.12))
    assert tally.log_odds_GG[1, 0] == pytest.approx(np.log(0.42 / 0.12))


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (0.5, 0.5, 0.0),
        (0.8, 0.2, np.log(4)),
        (1.0, 0.0, MAX_LOG_ODDS),  # certainty is bounded
        (0.0, 1.0, -MAX_LOG_ODDS),
        (1.0, 1e-300, MAX_LOG_ODDS),
        (0.0, 0.0, 0.0),  # two labels the judge gave no mass
    ],
)
def test_log_odds_are_bounded(p: float, q: float, expected: float) -> None:
    assert bounded_log_odds(p, q) == pytest.approx(expected)


def test_labels_without_any_mass_did_not_meet() -> None:
    tally = count_games(3, [played((0, 1, 2), soft(1.0, 0.0, 0.0))])
    assert tally.games_GG[1, 2] == 0
    assert tally.log_odds_GG[0].tolist() == [0, MAX_LOG_ODDS, MAX_LOG_ODDS]


def test_hard_games_have_a_fixed_margin() -> None:
    assert count_games(2, [played((1, 0), one_hot(0))]).log_odds_GG[1, 0] == HARD_LOG_ODDS


@pytest.mark.parametrize(
    ("outcome", "winner"),
    [
        (one_hot(1), 3),
        (soft(0.7, 0.3), 8),
        (soft(0.5, 0.5), None),
        (RankOrder(((1,), (0,))), 3),
        (RankOrder(((1,), (0,)), (3,)), 3),
        (RankOrder(((0, 1),)), None),
        (Grades.sampled((2.0, 5.0)), 3),
        (Grades.sampled((5.0, 5.0)), None),
        (Tie(), None),
        (NoVerdict("timeout"), None),
    ],
)
def test_the_winner_of_a_comparison(outcome: Outcome, winner: int | None) -> None:
    assert hard_winner(played((8, 3), outcome)) == winner
    nobody: tuple[int, ...] = () if isinstance(outcome, NoVerdict) else (8, 3)
    assert best_in(played((8, 3), outcome)) == (nobody if winner is None else (winner,))


@pytest.mark.parametrize(
    ("outcome", "best"),
    [
        (soft(0.4, 0.2, 0.4), (8, 5)),
        (soft(0.2, 0.4, 0.4), (3, 5)),
        (RankOrder(((2, 0), (1,))), (5, 8)),
        (RankOrder(((1,), (0, 2))), (3,)),
        (Grades.sampled((5.0, 5.0, 1.0)), (8, 3)),
        (Grades.sampled((5.0, 5.0, 5.0)), (8, 3, 5)),
        (Tie(), (8, 3, 5)),
        (NoVerdict("timeout"), ()),
    ],
)
def test_those_that_share_the_first_place_are_all_best(outcome: Outcome, best: tuple[int, ...]) -> None:
    assert best_in(played((8, 3, 5), outcome)) == best
    assert hard_winner(played((8, 3, 5), outcome)) == (best[0] if len(best) == 1 else None)


def test_what_was_graded_alone_has_won_nothing() -> None:
    assert hard_winner(played((8,), Grades.sampled((5.0,)))) is None


def test_position_consistency_counts_mirrored_comparisons_with_verdicts() -> None:
    items = [
        played((0, 1), one_hot(0)),
        played((1, 0), one_hot(1)),  # agrees
        played((0, 2), one_hot(0)),
        played((2, 0), one_hot(0)),  # the first slot won both times
        played((1, 2), Tie()),
        played((2, 1), Tie()),  # a tie both ways agrees
        played((1, 3), one_hot(0)),
        played((3, 1), NoVerdict("truncated")),  # no pair
        played((2, 3), one_hot(0)),
        played((3, 2), one_hot(1), repeat=1),  # another vote, no pair
    ]
    assert position_consistency(items) == (2, 3)


def test_cyclic_triads_are_counted_once_each() -> None:
    cycle = [played((0, 1), one_hot(0)), played((1, 2), one_hot(0)), played((2, 0), one_hot(0))]
    assert cyclic_triads(count_games(3, cycle)) == 1
    assert cyclic_triads(count_games(3, [*cycle[:2], played((0, 2), one_hot(0))])) == 0
