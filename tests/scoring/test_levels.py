"""Which rewards have a level: whether a group of good answers is worth more than a group of bad ones.

A critic (PPO) learns what a prompt's completions score on average; from rewards without a level it learns a constant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from statistics import fmean

import pytest

from mrjudge_reward import Group, Judge, Request, ScriptedEngine
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.scoring.rewards import RewardShape, reward_group

ORDINARY = "an ordinary answer"
GOOD = {"a good answer": 0.7, "a very good answer": 0.8, "quite a good answer": 0.9, "the best answer": 1.0}
BAD = {"a bad answer": 0.0, "a very bad answer": 0.1, "quite a bad answer": 0.2, "a poor answer": 0.3}
WORTH = GOOD | BAD | {ORDINARY: 0.5}


def script_of(format: Format) -> Callable[[Request], str | dict[str, float]]:
    """A judge that knows what each answer is worth, and says so in the format's own form."""

    def script(request: Request) -> str | dict[str, float]:
        shown = {label: WORTH[text] for label, text in shown_candidates(request).items()}
        if format is SENTIMENT:
            (worth,) = shown.values()
            return {" negative": 1.01 - worth, " positive": 0.01 + worth}
        best_first = sorted(shown, key=lambda label: -shown[label])
        if isinstance(format, Score | PairScores):
            said = [format.grades[round(worth * (len(format.grades) - 1))][0] for worth in shown.values()]
        else:
            said = [" > ".join(best_first)] if isinstance(format, Ranking) else best_first[:1]
        return "".join(f"<answer>{one}</answer>" for one in said)

    return script


def mean_reward(
    format: Format, rating: str, schedule: str, answers: Iterable[str], centre: bool, anchors: str | None = None
) -> float:
    verdict = "logprobs" if format is SENTIMENT else "generate"
    judge = Judge(ScriptedEngine(script_of(format)), format, schedule=schedule, rating=rating, verdict=verdict)
    (judgement,) = judge.judge([Group.of("How?", list(answers), "g", anchors=anchors)])
    rewards_G = reward_group(judgement, RewardShape(centre)).rewards_G
    assert None not in rewards_G, judgement.played
    assert len({*rewards_G}) > 1, "within the group it tells"
    return fmean(reward for reward in rewards_G if reward is not None)


@pytest.mark.parametrize(
    ("format", "rating", "schedule", "centre", "level"),
    [
        (Score(), "mean_score", "pointwise", False, True),
        (SENTIMENT, "mean_score", "pointwise", False, True),
        (PairScores(), "mean_score", "all_pairs", False, True),
        (PairScores(), "mean_score", "listwise", False, True),
        (Score(), "mean_score", "pointwise", True, False),  # centring takes the level out
        (PairScores(), "mean_score", "all_pairs", True, False),
        (Score(), "log_odds", "pointwise", False, False),  # grades as games against each other
        (Score(), "bradley_terry", "pointwise", False, False),
        (SENTIMENT, "log_odds", "pointwise", False, False),
        (PairScores(), "win_rate", "all_pairs", False, False),
        (Choice(), "log_odds", "all_pairs", False, False),
        (Choice(), "win_rate", "all_pairs", False, False),
        (Choice(), "borda", "ring", False, False),
        (Ranking(), "bradley_terry", "listwise", False, False),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else str(value),
)  # fmt: skip
def test_only_mean_grades_that_are_not_centred_have_a_level(
    format: Format, rating: str, schedule: str, centre: bool, level: bool
) -> None:
    good, bad = (mean_reward(format, rating, schedule, answers, centre) for answers in (GOOD, BAD))
    if level:
        assert good - bad > 0.3
    else:
        assert good == pytest.approx(bad, abs=0.02)


@pytest.mark.parametrize(
    ("format", "rating", "schedule"),
    [
        (Score(), "mean_score", "pointwise"),
        (Score(), "log_odds", "pointwise"),
        (Score(), "bradley_terry", "pointwise"),
        (Score(), "win_rate", "pointwise"),
        (SENTIMENT, "log_odds", "pointwise"),
        (SENTIMENT, "mean_score", "pointwise"),
        (PairScores(), "mean_score", "all_pairs"),
        (PairScores(), "win_rate", "all_pairs"),
        (PairScores(), "log_odds", "listwise"),
        (Choice(), "log_odds", "all_pairs"),
        (Choice(), "win_rate", "all_pairs"),
        (Choice(), "log_odds", "adaptive"),
        (Choice(), "borda", "ring"),
        (Ranking(), "bradley_terry", "listwise"),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else str(value),
)
def test_with_an_anchor_every_rating_has_a_level_and_it_is_the_anchors(
    format: Format, rating: str, schedule: str
) -> None:
    good, bad = (mean_reward(format, rating, schedule, answers, False, ORDINARY) for answers in (GOOD, BAD))
    assert good > 0.2
    assert bad < -0.2
