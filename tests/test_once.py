"""What was said is not said again: not in a copy, and not by another thread."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from mrjudge_reward.once import Once


def test_what_was_said_stays_said_in_a_copy(caplog: pytest.LogCaptureFixture) -> None:
    once = Once()
    once.warn("a", "first")
    pickle.loads(pickle.dumps(once)).warn("a", "again")
    once.warn("b", "second")
    assert [record.getMessage().split()[0] for record in caplog.records] == ["first", "second"]


def test_threads_that_come_at_once_say_it_once(caplog: pytest.LogCaptureFixture) -> None:
    once = Once()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: once.warn(str(number % 4), "it happened."), range(400)))
    assert [record.getMessage() for record in caplog.records] == ["it happened. This is said once."] * 4
    assert caplog.records[0].filename == "test_once.py", "a reader of the log learns who said it"
