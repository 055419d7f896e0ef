"""Scores to rewards: what is unknown stays without signal, and length moves reward without adding any."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.scoring.rewards import RewardShape, reward_group
from mrjudge_reward.types import Group, Judgement


def judged(*scores: float | None, texts: tuple[str, ...] | None = None) -> Judgement:
    candidates = texts if texts is not None else tuple(f"answer {index}" for index in range(len(scores)))
    return Judgement(Group.of("question", candidates), scores, (1.0,) * len(scores), ())


def test_scores_are_rewards_when_nothing_else_is_asked_for():
    reward = reward_group(judged(0.25, 0.75))
    assert reward.rewards_G == (0.25, 0.75)
    assert reward.abstained == ()


def test_an_unknown_score_stays_none_by_default_and_is_listed():
    reward = reward_group(judged(1.0, None, 0.0))
    assert reward.rewards_G == (1.0, None, 0.0)
    assert reward.abstained == (1,)


def test_with_group_mean_an_unknown_score_takes_the_mean_of_the_known_ones():
    assert reward_group(judged(1.0, None, 0.0), on_abstain="group_mean").rewards_G == (1.0, 0.5, 0.0)


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("length_weight", [0.0, 0.5])
def test_a_group_about_which_nothing_is_known_gets_one_value_for_all(centre: bool, length_weight: float):
    nothing = judged(None, None, None, texts=("a", "bb", "ccc"))
    shape = RewardShape(centre, length_weight)
    assert reward_group(nothing, shape).rewards_G == (None, None, None)
    filled = reward_group(nothing, shape, on_abstain="group_mean", neutral=0.5)
    assert len(set(filled.rewards_G)) == 1
    assert filled.abstained == (0, 1, 2)


def test_centring_subtracts_the_mean_of_the_known_scores_and_puts_the_unknown_at_zero():
    reward = reward_group(judged(3.0, None, 1.0), RewardShape(centre=True), on_abstain="group_mean")
    assert reward.rewards_G == (1.0, 0.0, -1.0)


def test_of_equal_scores_the_longer_answer_gets_less():
    reward = reward_group(judged(0.0, 0.0), RewardShape(length_weight=0.1), lengths_G=[10, 30])
    assert reward.rewards_G == pytest.approx((0.05, -0.05))


def test_lengths_are_characters_of_the_answers_unless_given():
    reward = reward_group(judged(0.0, 0.0, texts=("ab", "abcdef")), RewardShape(length_weight=1.0))
    assert reward.rewards_G == pytest.approx((0.5, -0.5))


def test_the_length_of_an_unknown_candidate_does_not_matter():
    shape = RewardShape(length_weight=1.0)
    one = reward_group(judged(0.0, None, 0.0), shape, lengths_G=[10, 5, 30])
    other = reward_group(judged(0.0, None, 0.0), shape, lengths_G=[10, 5000, 30])
    assert one.rewards_G == other.rewards_G


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 10**6)), min_size=1, max_size=12),
    st.floats(0.01, 3),
)
def test_the_length_term_adds_no_reward_and_is_bounded_by_its_weight(rows: list[tuple[float, int]], weight: float):
    scores, lengths = [row[0] for row in rows], [row[1] for row in rows]
    rewards = reward_group(judged(*scores), RewardShape(length_weight=weight), lengths_G=lengths).rewards_G
    terms = [reward - score for reward, score in zip(rewards, scores, strict=True) if reward is not None]
    assert sum(terms) == pytest.approx(0, abs=1e-9)
    assert max(map(abs, terms)) <= weight * (1 + 1e-9)
    longer = [(lengths[i] - lengths[j]) * (terms[j] - terms[i]) for i in range(len(rows)) for j in range(len(rows))]
    assert min(longer) >= -1e-6, "a longer answer must never get more"


def test_answers_of_no_length_at_all_leave_the_scores_alone():
    assert reward_group(judged(1.0, 2.0), RewardShape(length_weight=1.0), lengths_G=[0, 0]).rewards_G == (1.0, 2.0)


def test_a_wrong_number_of_lengths_is_refused():
    with pytest.raises(InputError, match="3 lengths for 2 candidates"):
        reward_group(judged(1.0, 2.0), lengths_G=[1, 2, 3])


def test_a_negative_length_weight_is_refused():
    with pytest.raises(ConfigError, match="length_weight"):
        RewardShape(length_weight=-0.1)


def test_an_empty_group_has_no_rewards():
    assert reward_group(judged(), RewardShape(True, 1.0), on_abstain="group_mean").rewards_G == ()


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_being_short_does_not_make_up_for_saying_nothing(weight: float):
    group = Group.of("question", ["a long and thorough answer", "a longer and no less thorough answer", ""])
    judgement = Judgement(group, (0.5, 0.25, 0.0), (1.0,) * 3, (), forfeits=(2,))
    reward = reward_group(judgement, RewardShape(length_weight=weight)).rewards_G
    assert None not in reward
    assert reward[2] <= min(reward[0], reward[1])  # type: ignore[type-var]
