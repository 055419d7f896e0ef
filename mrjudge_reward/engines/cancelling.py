"""Engine calls that end early, together, when nobody waits for their results any more.

A judge may ask from several threads at once. When the wait for them is interrupted or one of them fails, the others need
not sit out their deadlines: an engine that waits for something elsewhere lets that wait be cancelled, and returns what
it has, with an ``EngineFailure`` in the place of what it has not. So what was answered can still be kept.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from mrjudge_reward.types import EngineFailure

CANCELLED = EngineFailure("cancelled", "nobody waits for the reply any more")
"""Stands for a request without a reply when its call was cancelled. Whoever cancelled must not read it as an answer."""

_CURRENT: ContextVar[Cancellation | None] = ContextVar("mrjudge_cancellation", default=None)


class Cancellation:
    """Ends all calls made under it: ``with cancellation.governs():`` in each thread that makes some."""

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._waited_for: set[concurrent.futures.Future[Any]] = set()

    def cancel(self) -> None:
        """Cancel what is waited for now and whatever will be."""
        with self._lock:
            self.cancelled = True
            waited_for = list(self._waited_for)
        for future in waited_for:
            future.cancel()

    @contextmanager
    def governs(self) -> Iterator[None]:
        """The calls that this thread makes inside belong to this cancellation."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    @contextmanager
    def ends(self, future: concurrent.futures.Future[Any]) -> Iterator[None]:
        """A future that is waited for inside."""
        with self._lock:
            self._waited_for.add(future)
            late = self.cancelled
        if late:
            future.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._waited_for.discard(future)


def governed() -> bool:
    """Whether this thread's calls belong to a cancellation."""
    return _CURRENT.get() is not None


def cancelled() -> bool:
    """Whether the results of this thread's calls are no longer waited for."""
    current = _CURRENT.get()
    return current is not None and current.cancelled


def result_of(future: concurrent.futures.Future[Any]) -> Any:
    """Wait for a future, unless this thread's calls are cancelled meanwhile.

    Raises:
        concurrent.futures.CancelledError: if it was cancelled, for whatever reason.
    """
    current = _CURRENT.get()
    if current is None:
        return future.result()
    with current.ends(future):
        return future.result()
