"""What is said of a judge that goes by the slot, and when failures stop a run."""

from __future__ import annotations

import pickle

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import JudgeUnreliableError
from mrjudge_reward.judge import Judge
from mrjudge_reward.scoring.alarms import FailureAlarm, SlotWatch
from mrjudge_reward.types import Group, JudgedComparison, Judgement, NoVerdict, Outcome

from .test_stats import FIRST, GARBLED, SECOND, TIMEOUT, judged, noisy, played, reads


def test_a_judge_that_goes_by_the_slot_is_named_once(caplog: pytest.LogCaptureFixture):
    blind = Judge(ScriptedEngine(lambda _: "<answer>B</answer>"), schedule="ring")
    for step in range(40):
        blind.judge([Group.of("q", ["a", "bb", "ccc"], str(step))])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "position consistency is 0.00" in caplog.text
    assert "reads of label probabilities often still order them" in caplog.text


def test_a_judge_that_is_read_is_not_told_to_be_read(caplog: pytest.LogCaptureFixture):
    """It gets the figure without the common bias: verdicts that name one slot may still order."""
    alternating = [5.0 if i % 2 else -5.0 for i in range(10)]
    watch = SlotWatch()
    for gap in alternating:  # consistent neither with the bias nor without it
        watch.observe([noisy(4.0, gap)] * 5)
    assert "without the bias that all reads share" in caplog.text
    assert "verdict='logprobs'" not in caplog.text


@pytest.mark.parametrize("judgement", [reads(4.0, *[1.0] * 10), judged(played(FIRST, 0, 1), played(SECOND, 1, 0))])
def test_a_judge_whose_orders_agree_or_would_without_bias_is_not_named(
    judgement: Judgement, caplog: pytest.LogCaptureFixture
):
    watch = pickle.loads(pickle.dumps(SlotWatch()))
    for _ in range(40):
        watch.observe([judgement])
    assert not caplog.records


# -- the alarm --------------------------------------------------------------------------------------------------------


def outcomes(*items: JudgedComparison) -> list[Outcome]:
    return [item.verdict.outcome for item in items]


def test_the_alarm_names_the_share_the_reasons_and_the_latest_failure():
    alarm = FailureAlarm(0.5, window=10, least=4)
    with pytest.raises(JudgeUnreliableError) as caught:
        alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT), played(GARBLED), played(FIRST)))
    message = str(caught.value)
    for part in ("3 of the last 4", "50%", "timeout (2)", "no verdict (1)", "it said nothing", "max_failed_fraction"):
        assert part in message


def test_the_alarm_starts_anew_after_it_has_raised():
    alarm = FailureAlarm(0.5, window=256, least=4)
    with pytest.raises(JudgeUnreliableError):
        alarm.observe(outcomes(*[played(TIMEOUT)] * 256))
    alarm.observe(outcomes(*[played(FIRST)] * 8))


def test_truncation_is_met_with_advice_about_the_cap():
    with pytest.raises(JudgeUnreliableError, match="raise max_tokens"):
        FailureAlarm(least=2).observe([NoVerdict("truncated"), NoVerdict("truncated")])


def test_the_alarm_waits_until_enough_has_been_seen():
    alarm = FailureAlarm(0.5, window=10, least=4)
    alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT), played(TIMEOUT)))
    with pytest.raises(JudgeUnreliableError):
        alarm.observe(outcomes(played(TIMEOUT)))


def test_a_window_shorter_than_least_is_enough_once_it_is_full():
    alarm = FailureAlarm(0.5, window=2)
    alarm.observe(outcomes(played(TIMEOUT)))
    with pytest.raises(JudgeUnreliableError):
        alarm.observe(outcomes(played(TIMEOUT)))


def test_exactly_the_limit_is_allowed():
    FailureAlarm(0.5, window=4, least=4).observe(
        outcomes(played(TIMEOUT), played(FIRST), played(TIMEOUT), played(FIRST))
    )


def test_the_window_forgets_old_failures():
    alarm = FailureAlarm(0.5, window=4, least=4)
    alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT)))
    for _ in range(3):
        alarm.observe(outcomes(played(FIRST), played(FIRST)))
    alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT)))  # two of four again, not four of eight
    with pytest.raises(JudgeUnreliableError, match="3 of the last 4"):
        alarm.observe(outcomes(played(TIMEOUT)))


def test_failures_of_earlier_batches_raise_when_a_clean_batch_completes_the_count():
    alarm = FailureAlarm(0.5, window=10, least=4)
    alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT), played(GARBLED)))
    with pytest.raises(JudgeUnreliableError, match="3 of the last 4"):
        alarm.observe(outcomes(played(FIRST)))


def test_a_fraction_of_one_never_raises():
    FailureAlarm(1.0, window=4, least=1).observe(outcomes(*[played(TIMEOUT)] * 50))


def test_a_fraction_of_zero_tolerates_no_failure():
    alarm = FailureAlarm(0.0, window=4, least=1)
    alarm.observe(outcomes(played(FIRST)))
    with pytest.raises(JudgeUnreliableError):
        alarm.observe(outcomes(played(TIMEOUT)))


def test_a_batch_without_comparisons_is_no_news():
    FailureAlarm(0.0, window=4, least=0).observe([])


def test_the_alarm_and_its_error_survive_pickling():
    alarm = FailureAlarm(0.5, window=4, least=4)
    alarm.observe(outcomes(played(TIMEOUT), played(TIMEOUT), played(TIMEOUT)))
    restored = pickle.loads(pickle.dumps(alarm))
    with pytest.raises(JudgeUnreliableError) as caught:
        restored.observe(outcomes(played(FIRST)))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
