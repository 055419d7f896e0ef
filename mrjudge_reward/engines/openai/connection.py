"""One background thread with one event loop and one client, and how long it keeps trying.

Kept apart from the engine so that nothing in the thread refers to the engine: when the last reference to the engine is
gone, its finalizer closes the connection.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import tenacity

from mrjudge_reward.errors import require
from mrjudge_reward.types import EngineFailure

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SERVER_DOWN = "server down"  # a failure's reason
_LONGEST_DOWN_S = 30.0  # how long a silent server is left alone at most
_CRASH_TRIES = 5  # tries of a request that is answered 500 each time
_LONGEST_PAUSE_S = 60.0  # bound on Retry-After
_BACKOFF = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0.0, 0.25)


class Connection:
    """One thread, one event loop, one client.

    A breaker keeps a dead server from costing a deadline per post: see ``post``. Its state is touched by the loop's
    thread alone.

    Args:
        client: without retries of its own.
        max_concurrency: size of ``slots``, which callers hold while they post.
        deadline_s: seconds for all tries of a post together.

    Attributes:
        probing: held by the one of several calls that finds out what the server can do.
    """

    def __init__(self, client: AsyncOpenAI, max_concurrency: int, deadline_s: float) -> None:
        self.pid = os.getpid()
        self.client = client
        self.deadline_s = deadline_s
        self.slots = asyncio.Semaphore(max_concurrency)
        self.probing = asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self._answered_at = self._down_until = -math.inf  # in the loop's time
        self._down_because = ""
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="mrjudge-openai", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.close()

    def close(self) -> None:
        """Cancel what is in flight, close the sockets, end the thread."""
        if self.pid != os.getpid():
            return
        with suppress(RuntimeError):  # the loop is closed already
            self.loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # the garbage collector runs anywhere
            self._thread.join()

    async def post(self, url: str, body: dict[str, Any]) -> Any:
        """The decoded answer (text, if it is not JSON by its content type), or an ``EngineFailure``.

        When a post comes to its deadline and the server has answered nothing, neither to it nor to another one, since
        it began, the server is down: posts that begin within the next ``min(30 s, deadline)`` fail at once. Any answer,
        whatever its status, ends that.
        """
        began = self.loop.time()
        if began < self._down_until:
            return EngineFailure(SERVER_DOWN, self._down_because, transient=False)
        last: list[Exception] = []

        def again(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            if _is_answer(error):
                self._answered_at, self._down_until = self.loop.time(), -math.inf
            if error is None:
                return False
            if isinstance(error, Exception):  # not the cancellation that ends the last try
                last[:] = [error]
            return _worth_another(error, state.attempt_number)

        retrying = tenacity.AsyncRetrying(
            retry=again, wait=_pause, stop=tenacity.stop_before_delay(self.deadline_s), sleep=asyncio.sleep
        )
        try:
            async with asyncio.timeout(self.deadline_s):
                return await retrying(self.client.post, url, cast_to=object, body=body)
        except (TimeoutError, tenacity.RetryError):
            seen = f"; last: {last[0]!r:.300}" if last else ""
            detail = f"no answer within {self.deadline_s:g} s{seen}"
            if self._answered_at < began:
                self._down_until = self.loop.time() + min(_LONGEST_DOWN_S, self.deadline_s)
                self._down_because = f"an earlier request got {detail}"
            return EngineFailure("timeout", detail, transient=False)
        except json.JSONDecodeError as error:
            return EngineFailure("malformed reply", f"not JSON: {error}")
        except Exception as error:
            status = getattr(error, "status_code", None)
            if not isinstance(status, int):
                raise
            transient = _worth_another(error, tries=0)
            return EngineFailure(f"http {status}", str(getattr(error, "message", error))[:500], transient)


def _is_answer(error: BaseException | None) -> bool:
    """Whether a try that ended so shows that the server lives."""
    return error is None or isinstance(error, json.JSONDecodeError) or hasattr(error, "status_code")


def _worth_another(error: BaseException, tries: int) -> bool:
    openai = require("openai", extra="openai")
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return isinstance(error, openai.APIConnectionError)
    if status == 500:
        return tries < _CRASH_TRIES
    return status in (408, 429) or (status > 501)


def _pause(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    headers = getattr(getattr(error, "response", None), "headers", {})
    return max(_BACKOFF(state), min(_retry_after_s(headers.get("retry-after")), _LONGEST_PAUSE_S))


def _retry_after_s(value: str | None) -> float:
    """Seconds named by a ``Retry-After`` header, which holds seconds or a date; 0 if it holds neither."""
    try:
        return float(value or 0)
    except ValueError:
        with suppress(ValueError):
            return parsedate_to_datetime(value or "").timestamp() - time.time()
        return 0.0
