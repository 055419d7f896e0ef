"""What a batch of judgements is summed up to."""

from __future__ import annotations

import math
import pickle
from collections import Counter

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import JudgeUnreliableError
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import SENTIMENT, Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.stats import METRICS, MOST_KEPT, JudgeStats, is_tie
from mrjudge_reward.types import (
    Comparison,
    Grades,
    Group,
    JudgedComparison,
    Judgement,
    NoVerdict,
    Outcome,
    Preference,
    RankOrder,
    Tie,
    Usage,
    Verdict,
)

FIRST, SECOND = Preference((1.0, 0.0)), Preference((0.0, 1.0))
TIMEOUT, GARBLED = NoVerdict("timeout", "after 3 s", transient=True), NoVerdict("no verdict", "it said nothing")


def played(outcome: Outcome, *slots: int) -> JudgedComparison:
    return JudgedComparison(Comparison(slots or (0, 1)), Verdict(outcome))


def judged(*items: JudgedComparison, scores: tuple[float | None, ...] = (1.0, 0.0), **more: object) -> Judgement:
    group = Group.of("question", [f"answer {index}" for index in range(len(scores))])
    return Judgement(group, scores, (1.0,) * len(scores), items, **more)  # type: ignore[arg-type]


# -- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judgements", [[], [judged()], [judged(played(TIMEOUT), scores=(None, None))]])
def test_every_metric_is_there_at_every_step_in_one_order(judgements: list[Judgement]):
    assert tuple(JudgeStats.of(judgements).metrics()) == METRICS


def test_rates_are_over_what_they_speak_of():
    stats = JudgeStats.of(
        [
            judged(played(FIRST), played(Tie()), played(TIMEOUT), played(GARBLED), calls=6, usage=Usage(100, 50, 20)),
            judged(scores=(None, 2.0), seconds=3.0, cache_hits=2),
        ]
    )
    metrics = stats.metrics()
    assert metrics["failed_rate"] == 2 / 4
    assert metrics["tie_rate"] == 1 / 2, "of the comparisons that have a verdict"
    assert metrics["abstained_rate"] == 1 / 4
    assert metrics["calls"] == 6
    assert metrics["tokens"] == 120, "cached tokens are part of the prompt's"
    assert metrics["seconds"] == 3.0
    assert stats.cache_hits == 2
    assert stats.reasons == {"timeout": 1, "no verdict": 1}


@pytest.mark.parametrize(
    ("scores", "flat"),
    [((1.0, 1.0), 1), ((None, None), 1), ((None, 1.0), 1), ((), 1), ((1.0, 1.0 + 1e-12), 1), ((0.0, 1.0), 0)],
)
def test_groups_that_teach_nothing_are_counted(scores: tuple[float | None, ...], flat: int):
    assert JudgeStats.of([judged(scores=scores)]).zero_spread_groups == flat


@pytest.mark.parametrize(
    ("outcome", "tie"),
    [
        (Tie(), True),
        (Preference((0.5, 0.5), soft=True), True),
        (FIRST, False),
        (RankOrder(((0, 1),)), True),
        (RankOrder(((0,), (1,))), False),
        (Grades.sampled((3.0, 3.0)), True),
        (Grades.sampled((3.0, 4.0)), False),
        (Grades.sampled((3.0,)), False),  # a grade alone is not a tie with anything
        (TIMEOUT, False),
    ],
)
def test_a_tie_is_a_verdict_that_nobody_is_better(outcome: Outcome, tie: bool):
    assert is_tie(played(outcome)) is tie


@pytest.mark.parametrize(
    ("items", "consistency"),
    [
        ([played(FIRST, 0, 1), played(SECOND, 1, 0)], 1.0),
        ([played(FIRST, 0, 1), played(FIRST, 1, 0)], 0.0),
        ([played(FIRST, 0, 1), played(SECOND, 1, 0), played(FIRST, 0, 2), played(FIRST, 2, 0)], 0.5),
        ([played(FIRST, 0, 1), played(FIRST, 1, 2)], math.nan),  # nothing was mirrored, so nothing is known
        ([played(FIRST, 0, 1), played(TIMEOUT, 1, 0)], math.nan),
        ([played(Grades.sampled((2.0,)), 0), played(Grades.sampled((1.0,)), 1)], math.nan),  # no slot to be biased to
        ([], math.nan),
    ],
)
def test_position_consistency_is_known_unknown_or_not_in_question(items: list[JudgedComparison], consistency: float):
    assert JudgeStats.of([judged(*items)]).metrics()["position_consistency"] == pytest.approx(consistency, nan_ok=True)


def test_quick_reads_of_a_cascade_count_for_position_consistency():
    quick_reads = (played(Preference((0.9, 0.1), True), 0, 1), played(Preference((0.9, 0.1), True), 1, 0))
    stats = JudgeStats.of([judged(played(FIRST), quick_reads=quick_reads)])
    assert (stats.agreeing, stats.mirrored, stats.comparisons) == (0, 1, 1)


def test_stats_of_two_ranks_add_up_to_the_stats_of_the_whole_batch():
    one = [judged(played(FIRST, 0, 1), played(SECOND, 1, 0), calls=2, seconds=1.0)]
    two = [judged(played(TIMEOUT), scores=(None, None), calls=3, seconds=2.0, usage=Usage(5, 0, 1))]
    assert JudgeStats.of(one) + JudgeStats.of(two) == JudgeStats.of(one + two)
    assert (JudgeStats.of(one) + JudgeStats()) == JudgeStats.of(one)


def test_rejected_texts_are_counted_and_the_most_frequent_ones_are_named():
    prefers, other = (Choice().parse(f"<answer>{said}</answer>", 2) for said in ("I prefer B.", "Hm"))
    failed = [played(prefers), played(prefers), played(other), played(TIMEOUT), played(FIRST)]
    stats = JudgeStats.of([judged(*failed)])
    assert stats.rejected == {"I prefer B.": 2, "Hm": 1}
    assert stats.failures == "off-menu label (3), timeout (1); most often rejected: 'I prefer B.' (2), 'Hm' (1)"
    assert JudgeStats.of([judged(played(FIRST))]).failures == ""
    with pytest.raises(JudgeUnreliableError, match=r"most often rejected: 'I prefer B\.' \(2\)"):
        FailureAlarm(0.5, window=5, least=5).observe(item.verdict.outcome for item in failed)
    many = JudgeStats(rejected=Counter({str(number): number for number in range(1, 100)}))
    assert list(many.record()["rejected"]) == [str(number) for number in range(99, 89, -1)], "a log line stays short"
    old = {name: value for name, value in stats.record().items() if name != "rejected"}
    assert JudgeStats.read(old).rejected == {}, "of a log from before they were counted"


def test_what_was_rejected_is_kept_short_and_changes_no_verdict():
    for text in ("no verdict " * 50, "<answer>" + "x" * 500 + "</answer>", "<answer>A > B", "<think>A</think>"):
        outcome = Choice().parse(text, 2)
        assert 0 < len(outcome.rejected) <= 60
        assert outcome == NoVerdict(outcome.reason, outcome.detail)
        assert "rejected" not in repr(outcome)


def test_stats_survive_pickling():
    stats = JudgeStats.of([judged(played(TIMEOUT))])
    assert pickle.loads(pickle.dumps(stats)) == stats


def test_a_real_judge_fills_the_stats():
    judge = Judge(ScriptedEngine.by_utility(len), schedule="all_pairs")
    stats = JudgeStats.of([judge.rank("q", ["a", "bb", "ccc"])])
    assert (stats.groups, stats.candidates, stats.comparisons, stats.calls) == (1, 3, 6, 6)
    assert stats.metrics()["position_consistency"] == 1.0
    alone = Judge(ScriptedEngine.by_utility(len), SENTIMENT, schedule="pointwise", verdict="read")
    assert math.isnan(JudgeStats.of([alone.rank("q", ["a", "bb", "ccc"])]).metrics()["position_consistency"])


# -- slots -----------------------------------------------------------------------------------------------------------


def read(log_odds: float, *slots: int) -> JudgedComparison:
    p = 1 / (1 + math.exp(-log_odds))
    return played(Preference((p, 1 - p), soft=True), *slots)


def reads(bias: float, *gaps: float) -> Judgement:
    """Pairs read in both orders, by a judge with a bias to the earlier slot."""

    both = [(read(bias + gap, i, i + 1), read(bias - gap, i + 1, i)) for i, gap in enumerate(gaps)]
    return judged(*(item for pair in both for item in pair), scores=(0.0,) * (len(gaps) + 1))


def noisy(bias: float, noise: float) -> Judgement:
    """Pairs whose orders differ by noise, so that they agree only by chance."""

    pairs = [
        (read(bias + sign * noise, i, i + 1), read(bias + sign * noise, i + 1, i)) for i, sign in enumerate((0.2, -0.2))
    ]
    return judged(*(item for pair in pairs for item in pair), scores=(0.0, 0.0, 0.0))


def test_reads_that_name_one_slot_always_may_be_consistent_without_their_common_bias():
    metrics = JudgeStats.of([reads(4.0, 1.0, -0.5, 2.0, -1.5), reads(4.0, 0.3)]).metrics()
    assert metrics["position_consistency"] == 0.0
    assert metrics["position_consistency_debiased"] == 1.0


def test_the_bias_of_a_handful_of_reads_and_of_written_verdicts_is_not_known():
    for judgement in (reads(4.0, 1.0), judged(*[played(FIRST, 0, 1), played(FIRST, 1, 0)] * 5)):
        assert math.isnan(JudgeStats.of([judgement]).metrics()["position_consistency_debiased"])


def test_a_sum_over_a_run_keeps_the_texts_that_were_rejected_most_often():
    run = JudgeStats()
    for step in range(500):
        run += JudgeStats(rejected=Counter({"again and again": 3, f"once, at step {step}": 1}))
    assert len(run.rejected) == MOST_KEPT
    assert run.rejected.most_common(1) == [("again and again", 1500)]
