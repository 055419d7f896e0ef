"""One background thread with one event loop and one client, and how long it keeps trying.

Kept apart from the engine so that nothing in the thread refers to the engine: when the last reference to the engine is
gone, its finalizer closes the connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrjudge_reward.errors import require
from mrjudge_reward.types import EngineFailure

from .server_errors import come_again_s, must_be_paid, sentence_of
from .wire import UNREADABLE

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from .transport import OneServerTransport

logger = logging.getLogger(__name__)

CANNOT_CONNECT = "cannot connect"  # a failure's reason
_CRASH_TRIES = 5  # tries of a request that is answered 500 each time
_SILENT_TRIES = 3  # tries without any sign of life after which the server counts as silent
_LONGEST_BACKOFF_S = 8.0
_LONGEST_REST_S = 30.0  # how long a server that stayed silent is left alone at most
_CAUSES: dict[type[BaseException], str] = {
    ConnectionRefusedError: "connection refused",
    socket.gaierror: "the host's name is not known",
    ssl.SSLError: "TLS",
    TimeoutError: "no connection in time",
}
# By name: the client's exceptions are httpx's and, of late, httpx2's.
_LASTING = {"SSLError", "LocalProtocolError", "UnsupportedProtocol", "InvalidURL"}
_UNSENT = {"ConnectError", "ConnectTimeout", "ConnectionRefusedError", "gaierror"}


@dataclass
class _Call:
    """A post on its way.

    Attributes:
        since: when its present deadline began, in the loop's time.
        left_s: how much of that is left; neither a silent server nor a wait that one asks for takes of it.
        patience_s: how long one may yet ask it to wait.
        tries: since then.
        lost_at: when the first of them ended without a sign of the server, if one did.
        timeouts: deadlines that it has used up.
        last: why the latest try failed.
    """

    url: str
    body: dict[str, Any]
    since: float
    left_s: float
    patience_s: float
    tries: int = 0
    lost_at: float = -math.inf
    timeouts: int = 0
    last: EngineFailure | None = None

    def renew(self, now: float, deadline_s: float) -> None:
        self.since, self.left_s, self.tries, self.lost_at = now, deadline_s, 0, -math.inf


@dataclass(frozen=True)
class _Again:
    """Try again after a pause."""

    pause_s: float = 0.0


class _Silence:
    """A server that answers nobody. One call at a time asks it again; the others wait for what comes of that.

    Attributes:
        began, until: when it was noticed, and until when calls wait, in the loop's time.
        why: what was seen last.
        probing: whether a call is asking.
        probes: how often one has asked.
        rested_until: a server that stayed silent for longer is not asked again before.
    """

    def __init__(self, began: float, patience_s: float, why: EngineFailure) -> None:
        self.began, self.until, self.why = began, began + patience_s, why
        self.probing, self.probes, self.rested_until = False, 0, -math.inf
        self._changed = asyncio.Event()

    async def change(self, within_s: float | None = None) -> None:
        """Wait until the server answered or the call that asked it steps down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    def changed(self) -> None:
        """Tell all who wait."""
        self._changed.set()
        self._changed = asyncio.Event()


class Connection:
    """One thread, one event loop, one client.

    Its state is touched by the loop's thread alone.

    Args:
        client: without retries of its own.
        transport: of the client, which knows whether the server was ever reached.
        max_concurrency: size of ``slots``, which callers hold while they post.
        deadline_s: seconds for all tries of a post together.
        outage_wait_s: seconds that a post waits besides, while the server is silent or asks to be left alone.

    Attributes:
        probing: held by the one of several calls that finds out what the server can do.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        transport: OneServerTransport,
        max_concurrency: int,
        deadline_s: float,
        outage_wait_s: float,
    ) -> None:
        self.pid = os.getpid()
        self.client, self.transport = client, transport
        self.deadline_s, self.outage_wait_s = deadline_s, outage_wait_s
        self.slots = asyncio.Semaphore(max_concurrency)
        self.probing = asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self._silence: _Silence | None = None
        self._answered_at = -math.inf  # when the server last showed life
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

        The server is silent when a post comes to its deadline and nobody has been answered for half of it, or to its third
        lost connection (or 502 and more) and nobody has been answered since the first. Then posts wait, also those that
        ran into their deadlines, and one at a time asks again; the first answer of any kind ends that, and deadlines begin
        anew. After ``outage_wait_s`` all that wait fail; from then on one post in a while asks, and others fail at once. A
        server that was never reached has one deadline, so that a wrong address is not waited for.
        """
        call = _Call(url, body, self.loop.time(), self.deadline_s, max(self.deadline_s, self.outage_wait_s))
        while True:
            silence = self._silence
            if silence is None:
                outcome = await self._attempt(call)
                if isinstance(outcome, _Again):
                    await asyncio.sleep(outcome.pause_s)
            elif silence.probing:
                await silence.change()
                call.renew(self.loop.time(), self.deadline_s)
                continue
            elif silence.rested_until > self.loop.time():
                return self._gave_up(silence)
            else:
                outcome = await self._probe(call, silence)
            if not isinstance(outcome, _Again):
                return outcome

    # -- a server that is silent ----------------------------------------------------------------------------------------

    async def _probe(self, call: _Call, silence: _Silence) -> Any:
        """Ask a silent server once, for all."""
        silence.probing = True
        silence.probes += 1
        try:
            call.renew(self.loop.time(), self.deadline_s)
            outcome = await self._attempt(call, probe=True)
            if isinstance(outcome, _Again):
                call.renew(self.loop.time(), self.deadline_s)
                pause_s = max(outcome.pause_s, _backoff_s(silence.probes))
                left_s = silence.until - self.loop.time()
                if self._silence is not silence:  # it answers, and asks to be left alone
                    await asyncio.sleep(outcome.pause_s)
                elif left_s > 0:
                    await silence.change(min(pause_s, left_s))
                else:
                    self._rest(silence)
            return outcome
        finally:
            silence.probing = False
            silence.changed()

    def _silent(self, call: _Call, why: EngineFailure) -> None:
        patience_s = max(call.left_s, self.outage_wait_s if self.transport.reached else 0.0)
        self._silence = _Silence(self.loop.time(), patience_s, why)
        if patience_s <= 0:
            self._rest(self._silence)
            return
        logger.warning(
            "the judge's server at %s does not answer (%s: %s); requests wait for it, up to %.0f s",
            self.client.base_url.host, why.reason, why.detail, patience_s,
        )  # fmt: skip

    def _rest(self, silence: _Silence) -> None:
        silence.rested_until = self.loop.time() + min(_LONGEST_REST_S, self.deadline_s)

    def _alive(self) -> None:
        self._answered_at = self.loop.time()
        silence, self._silence = self._silence, None
        if silence is not None:
            if silence.until > silence.began:
                logger.warning("the judge's server answers again, after %.0f s", self._answered_at - silence.began)
            silence.changed()

    def _gave_up(self, silence: _Silence) -> EngineFailure:
        why, waited_s = silence.why, self.loop.time() - silence.began
        waited = f"; requests have waited for it for {waited_s:.0f} s" if waited_s > 0.5 else ""
        return EngineFailure("server down" if why.reason == "timeout" else why.reason, why.detail + waited)

    # -- one try --------------------------------------------------------------------------------------------------------

    async def _attempt(self, call: _Call, probe: bool = False) -> Any:
        """What one try came to: an answer, a failure, or ``_Again``."""
        openai = require("openai", extra="openai")
        began = self.loop.time()
        call.tries += 1
        try:
            async with asyncio.timeout(call.left_s):
                answer = await self.client.post(call.url, cast_to=object, body=call.body)
            self._alive()
            return answer
        except TimeoutError:
            call.timeouts += not probe
            call.left_s = 0.0
            return self._no_answer(call, "timeout")
        except UnicodeEncodeError:  # of what was asked
            raise
        except UNREADABLE as error:
            self._alive()
            return EngineFailure("malformed reply", f"not JSON: {error}")
        except openai.APIConnectionError as error:
            call.last = _lost(error)
            if not call.last.transient:
                return call.last
            pause_s = _backoff_s(call.tries)
            call.left_s -= self.loop.time() - began + pause_s
            return self._no_life(call, call.last, pause_s)
        except openai.APIStatusError as error:
            return self._status(call, error, began)

    def _no_answer(self, call: _Call, reason: str) -> EngineFailure | _Again:
        """A post used up its deadline. It has another one only where the server was silent to all."""
        reached = self.transport.reached
        reason, missing = (reason, "answer") if reached else (CANNOT_CONNECT, "connection")
        detail = f"no {missing} within {self.deadline_s:g} s" + (f"; last: {call.last.detail}" if call.last else "")
        failure = EngineFailure(reason, detail)
        if call.timeouts < 2 and (self._silence is not None or self._is_quiet(call)):
            return self._no_life(call, failure)
        # Others were answered meanwhile, so it was unlucky; one that had two deadlines is too long for them.
        return EngineFailure(reason, detail, transient=call.timeouts < 2)

    def _is_quiet(self, call: _Call) -> bool:
        """Whether nobody has been answered since a call began or was first lost, or for half a deadline.

        A server that stops has mostly just answered calls that began later than those it leaves hanging.
        """
        quiet_s = self.loop.time() - self._answered_at
        long = self.outage_wait_s > 0 and quiet_s >= self.deadline_s / 2
        return long or self._answered_at < max(call.since, call.lost_at)

    def _no_life(self, call: _Call, why: EngineFailure, pause_s: float = 0.0) -> EngineFailure | _Again:
        """A try ended without a sign of the server."""
        if call.lost_at < call.since:
            call.lost_at = self.loop.time()
        if self._silence is not None:
            self._silence.why = why
        elif self._is_quiet(call) and (call.tries >= _SILENT_TRIES or call.left_s <= 0):
            self._silent(call, why)
            pause_s = 0.0
        elif call.left_s <= 0:
            return self._no_answer(call, why.reason)
        else:
            return _Again(pause_s)
        if self._silence is not None and self._silence.rested_until > self.loop.time():
            return why
        call.renew(self.loop.time(), self.deadline_s)
        return _Again(pause_s)

    def _status(self, call: _Call, error: Any, began: float) -> EngineFailure | _Again:
        status, said = error.status_code, error.response.text
        again_s = come_again_s(error.response.headers, said)
        call.last = failure = EngineFailure(f"http {status}", sentence_of(said) or str(error)[:300])
        if status <= 501:
            self._alive()
        if must_be_paid(status, said, again_s):
            return EngineFailure("quota", f"{failure.reason}: {failure.detail}", transient=False)
        backoff_s = _backoff_s(call.tries)
        if status == 429:
            pause_s = max(backoff_s, again_s or 0.0)
            call.patience_s -= pause_s
            call.left_s = self.deadline_s
            if call.patience_s >= 0:
                return _Again(pause_s)
            asked = f"; it asks to come again in {again_s:.0f} s" if again_s else ""
            return EngineFailure(failure.reason, f"{failure.detail}{asked}; longer than outage_wait_s allows")
        call.left_s -= self.loop.time() - began
        # However long it asks to be left alone, there is time for another try.
        pause_s = max(backoff_s, min(again_s or 0.0, call.left_s / 2))
        call.left_s -= pause_s
        if status > 501:  # mostly from what stands before the server and does not reach it
            return self._no_life(call, failure, pause_s)
        if status == 408 or (status == 500 and call.tries < _CRASH_TRIES):
            return _Again(pause_s) if call.left_s > 0 else self._no_answer(call, failure.reason)
        return EngineFailure(failure.reason, failure.detail, transient=status == 500)


def _backoff_s(tries: int) -> float:
    return min(_LONGEST_BACKOFF_S, 0.1 * 2.0 ** (min(tries, 9) - 1)) + random.uniform(0.0, 0.1)


def _lost(error: BaseException) -> EngineFailure:
    """Why there is no connection, in the words of whoever noticed first; not transient if that will not change."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    known = ((words, one) for one in reversed(chain) for kind, words in _CAUSES.items() if isinstance(one, kind))
    words, first = next(known, (type(chain[-1]).__name__, chain[-1]))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    lasting = not kinds.isdisjoint(_LASTING)
    reason = CANNOT_CONNECT if lasting or not kinds.isdisjoint(_UNSENT) else "connection lost"
    return EngineFailure(reason, f"{words}: {first}"[:300].rstrip(": "), transient=not lasting)
