from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mrjudge_reward.scoring.ratings import PRIOR_GAMES, RATINGS, rate
from mrjudge_reward.scoring.tally import Tally, count_games
from mrjudge_reward.types import Comparison, Grades, JudgedComparison, Outcome, Preference, Tie, Verdict

COMPARING = [name for name in RATINGS if name != "mean_score"]
FIRST, SECOND = Preference((1.0, 0.0)), Preference((0.0, 1.0))
repeatable = settings(derandomize=True, deadline=None, max_examples=40)


def played(slots: tuple[int, ...], outcome: Outcome) -> JudgedComparison:
    return JudgedComparison(Comparison(slots), Verdict(outcome))


def soft(logit: float) -> Preference:
    p = 1 / (1 + np.exp(-logit))
    return Preference((p, 1 - p), soft=True)


def times(tally: Tally, factor: float) -> Tally:
    """The tally of the same games played ``factor`` times, which makes every prior negligible."""
    games = replace(tally.games, weight=tally.games.weight * factor)
    return replace(tally, games=games, ties=tally.ties * factor)


def both_orders(pair: tuple[int, int], outcome: Outcome) -> list[JudgedComparison]:
    """The comparison, and its mirror image with the same winner, so that the slots explain nothing."""
    other = {FIRST: SECOND, SECOND: FIRST}.get(outcome, outcome)
    return [played(pair, outcome), played(pair[::-1], other)]


def scores(rating: str, tally: Tally) -> np.ndarray:
    return np.array(rate(RATINGS[rating], tally), dtype=float)  # None becomes NaN


@st.composite
def groups(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("soft", "hard", "tie", "scores")
) -> tuple[int, list[JudgedComparison]]:
    size = draw(st.integers(2, 7))
    pairs = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda pair: pair[0] != pair[1])
    items = []
    for slots in draw(st.lists(pairs, min_size=1, max_size=20)):
        match draw(st.sampled_from(kinds)):
            case "soft":
                outcome: Outcome = soft(draw(st.floats(-6, 6)))
            case "hard":
                outcome = draw(st.sampled_from([FIRST, SECOND]))
            case "scores":
                outcome = Grades.sampled(draw(st.tuples(st.integers(1, 9).map(float), st.integers(1, 9).map(float))))
            case _:
                outcome = Tie()
        items.append(played(slots, outcome))
    return size, items


@pytest.mark.parametrize("rating", RATINGS)
@repeatable
@given(group=groups(), data=st.data())
def test_permuting_candidates_permutes_scores(
    rating: str, group: tuple[int, list[JudgedComparison]], data: st.DataObject
) -> None:
    size, items = group
    new_index = data.draw(st.permutations(range(size)))
    renamed = [
        JudgedComparison(Comparison(tuple(new_index[i] for i in item.comparison.slots)), item.verdict) for item in items
    ]
    before, after = scores(rating, count_games(size, items)), scores(rating, count_games(size, renamed))
    np.testing.assert_allclose(after[list(new_index)], before, atol=1e-6)


@pytest.mark.parametrize("rating", RATINGS)
@repeatable
@given(group=groups())
def test_exactly_those_without_a_game_have_no_score(rating: str, group: tuple[int, list[JudgedComparison]]) -> None:
    size, items = group
    known = {
        i
        for item in items
        for i in item.comparison.slots
        if rating != "mean_score" or isinstance(item.verdict.outcome, Grades)
    }
    result = rate(RATINGS[rating], count_games(size, items))
    assert {i for i, score in enumerate(result) if score is not None} == known
    assert all(np.isfinite(score) for score in result if score is not None)


@pytest.mark.parametrize("rating", COMPARING)
@repeatable
@given(pairs=st.sets(st.sampled_from(list(permutations(range(6), 2))), min_size=1), is_soft=st.booleans())
def test_a_group_of_ties_has_equal_scores_the_neutral_one(
    rating: str, pairs: set[tuple[int, int]], is_soft: bool
) -> None:
    outcome = soft(0.0) if is_soft else Tie()
    tally = count_games(6, [played(pair, outcome) for pair in pairs])
    known = [score for score in rate(RATINGS[rating], tally) if score is not None]
    assert known == [RATINGS[rating].neutral] * len(known)


def test_equal_grades_have_equal_mean_scores() -> None:
    items = [played((i, j), Grades.sampled((6.0, 6.0))) for i, j in combinations(range(4), 2)]
    assert rate(RATINGS["mean_score"], count_games(4, items)) == [6.0] * 4


@pytest.mark.parametrize("rating", RATINGS)
def test_nobody_to_rate(rating: str) -> None:
    assert rate(RATINGS[rating], count_games(0, [])) == []
    assert rate(RATINGS[rating], count_games(1, [])) == [None]
    assert rate(RATINGS[rating], count_games(3, [])) == [None] * 3


@pytest.mark.parametrize("is_soft", [False, True])
def test_win_rate_is_borda_on_a_complete_schedule(is_soft: bool) -> None:
    rng = np.random.default_rng(0)
    items = []
    for slots in permutations(range(6), 2):
        logit = rng.normal()
        items.append(played(slots, soft(logit) if is_soft else (FIRST if logit > 0 else SECOND)))
    tally = count_games(6, items)
    assert rate(RATINGS["win_rate"], tally) == pytest.approx(rate(RATINGS["borda"], tally))


def test_borda_counts_an_opponent_once_however_often_it_was_met() -> None:
    tally = count_games(3, both_orders((0, 1), FIRST) * 3 + both_orders((0, 2), SECOND))
    assert rate(RATINGS["borda"], tally)[0] == 0.5
    assert rate(RATINGS["win_rate"], tally)[0] == 0.75


@repeatable
@given(wins=st.integers(1, 40), losses=st.integers(1, 40))
def test_bradley_terry_of_two_players_is_the_log_of_wins_over_losses(wins: int, losses: int) -> None:
    tally = count_games(2, both_orders((0, 1), FIRST) * wins + both_orders((0, 1), SECOND) * losses)
    strong, weak = scores("bradley_terry", times(tally, 1e4))
    assert strong - weak == pytest.approx(np.log(wins / losses), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [3, 8])
def test_bradley_terry_agrees_with_choix(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    true_G = rng.normal(size=size)
    # The circle in both directions keeps the maximum finite for choix, which has no prior here.
    data = [(i, (i + step) % size) for i in range(size) for step in (1, size - 1)]
    for i, j in combinations(range(size), 2):
        data += [(i, j) if rng.random() < 1 / (1 + np.exp(true_G[j] - true_G[i])) else (j, i) for _ in range(5)]
    tally = count_games(size, [item for pair in data for item in both_orders(pair, FIRST)])
    ours_G = scores("bradley_terry", times(tally, 1e5))
    np.testing.assert_allclose(ours_G, choix.ilsr_pairwise(size, data), atol=1e-4)
    np.testing.assert_allclose(ours_G, choix.opt_pairwise(size, data, alpha=1e-9, tol=1e-10), atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_davidsons_ties_maximise_the_likelihood(seed: int) -> None:
    size = 7
    rng = np.random.default_rng(seed)
    true_G = rng.normal(size=size)
    pairs = list(combinations(range(size), 2))
    results = []  # -1, 0, 1
    for i, j in pairs:
        margin = true_G[i] - true_G[j] + rng.logistic()
        results.append(0 if abs(margin) < 0.7 else int(np.sign(margin)))
    assert 0 in results
    outcomes = {1: FIRST, 0: Tie(), -1: SECOND}
    pairs, results = pairs * 2, results * 2
    games = zip(pairs[: len(pairs) // 2], results, strict=False)
    tally = count_games(size, [item for pair, result in games for item in both_orders(pair, outcomes[result])])

    def negative_log_likelihood(parameters: np.ndarray) -> float:
        s_G, log_nu = parameters[:-1], parameters[-1]
        total = (PRIOR_GAMES / 2 * (np.logaddexp(0, s_G) + np.logaddexp(0, -s_G))).sum()
        for (i, j), result in zip(pairs, results, strict=True):
            tie = log_nu + (s_G[i] + s_G[j]) / 2
            chosen = {1: s_G[i], 0: tie, -1: s_G[j]}[result]
            total -= chosen - np.logaddexp(np.logaddexp(s_G[i], s_G[j]), tie)
        return float(total)

    best = minimize(negative_log_likelihood, np.zeros(size + 1), method="BFGS", options={"gtol": 1e-6}).x[:-1]
    np.testing.assert_allclose(scores("bradley_terry", tally), best - best.mean(), atol=1e-3)


@pytest.mark.parametrize("rating", ["bradley_terry", "log_odds"])
@repeatable
@given(group=groups(kinds=("soft", "hard", "tie")))
def test_log_odds_ratings_stay_finite_and_centred_for_the_unbeaten(
    rating: str, group: tuple[int, list[JudgedComparison]]
) -> None:
    size, items = group
    raw = RATINGS[rating].fit(count_games(size, items))
    assert np.isfinite(raw).all()
    assert abs(raw.sum()) < 1e-6
    assert np.abs(raw).max() < 40


@repeatable
@given(
    strengths=st.lists(st.floats(-1.5, 1.5), min_size=2, max_size=8),
    bias=st.floats(-2, 2),
    seed=st.integers(0, 99),
    extra=st.integers(0, 6),
)
def test_log_odds_recovers_exact_differences_on_any_connected_schedule_with_any_slot_bias(
    strengths: list[float], bias: float, seed: int, extra: int
) -> None:
    size, rng = len(strengths), np.random.default_rng(seed)
    tree = [(int(rng.integers(i)), i) for i in range(1, size)]
    slots = [(j, i) if rng.random() < 0.5 else (i, j) for i, j in tree]
    slots.append(slots[0][::-1])  # one pair in both orders tells the bias from the strengths
    slots += [tuple(rng.choice(size, 2, replace=False).tolist()) for _ in range(extra)]
    items = [played(pair, soft(strengths[pair[0]] - strengths[pair[1]] + bias)) for pair in slots]
    fitted_G = scores("log_odds", times(count_games(size, items), 1e6))
    np.testing.assert_allclose(fitted_G, np.array(strengths) - np.mean(strengths), atol=1e-4)


@repeatable
@given(bias=st.floats(-3, 3))
def test_a_slot_bias_drops_out_exactly_where_slots_are_balanced(bias: float) -> None:
    def fit(b: float) -> np.ndarray:
        items = [played((i, (i + m) % 6), soft(0.3 * (i - (i + m) % 6) + b)) for m in (1, 2) for i in range(6)]
        return scores("log_odds", count_games(6, items))

    np.testing.assert_allclose(fit(bias), fit(0.0), atol=1e-8)


def test_log_odds_of_a_complete_schedule_orders_by_mean_log_odds() -> None:
    rng = np.random.default_rng(1)
    logits = {pair: float(rng.choice([-1.3, 1.3])) + 0.01 * rng.normal() for pair in combinations(range(6), 2)}
    items = [
        played(order, soft(logit if order == pair else -logit))
        for pair, logit in logits.items()
        for order in (pair, pair[::-1])
    ]
    tally = count_games(6, items)
    mean_G = tally.log_odds_GG.sum(axis=1) / tally.games_G
    assert np.argsort(scores("log_odds", tally)).tolist() == np.argsort(mean_G).tolist()


def test_an_equal_record_is_an_equal_score_to_the_last_digit() -> None:
    cycle = [played((i, (i + 1) % 5), FIRST) for i in range(5)]
    for rating in COMPARING:
        assert len(set(rate(RATINGS[rating], count_games(5, cycle)))) == 1, rating
