"""A judge behind any server that speaks the OpenAI chat protocol: vLLM, SGLang, llama.cpp, TGI, or a hosted API.

>>> engine = OpenAIEngine("Qwen/Qwen3-8B", base_url="http://127.0.0.1:8000/v1")  # doctest: +SKIP
>>> engine.generate([Request(as_messages("Which is better? ..."))])  # doctest: +SKIP
[Reply(text='<think>...</think><answer>A</answer>', finish='stop', ...)]

**Calling.** Synchronous, from any thread, also while an event loop runs in it (TRL, notebooks): one background thread
per engine holds one event loop and one client with pooled connections. It starts with the first call and ends with
``close()``, with the last reference to the engine, or with the interpreter. Pickled or forked, an engine starts anew.

**Failing.** Lost connections, 408 and 5xx are tried again, with exponentially growing, jittered pauses (or the server's
own), until the request's deadline, which begins when a slot is free for it and not while it queues. What answers 500
again and again has crashed on this prompt and is given up after a few tries. A 429 is waited out as long as the server
wants, and a quota that is used up is not tried again; nor are other 4xx and replies that make no sense. A server that
answers nobody is waited for (see ``Connection.post``): one request asks again, the others wait, those that were in flight
too, for at most ``outage_wait_s``. A field that a server rejects is left out where that is safe (see ``dialect``).
Failures: ``timeout``, ``server down``, ``cannot connect``, ``connection lost``, ``http <status>`` with the server's own
sentence, ``quota``, ``malformed reply``, ``server error`` (a 200 that holds an error), ``refused``, ``tool call``,
``unknown finish``, ``image`` (one that cannot be shown), ``label not in top logprobs``, ``labels share a token``,
``no log-probabilities``, ``no token ids``, ``cancelled`` (which only whoever cancelled gets to see, see ``cancelling``), or
the name of an unexpected exception.

**Reading.** One token at temperature 0 with log-probabilities, after a judge's turn that is continued
(``continue_final_message``). Which of two ways a server offers is found out with the first read:

1. ``logprob_token_ids`` (vLLM ≥ 0.31 with its ``/tokenize``): exactly the labels are asked for. Of a label that takes
   several tokens the first one is read, so labels must differ in it.
2. ``top_logprobs``: a label that is not among the most likely tokens, or takes more than one, is a failure, never a
   zero. The whole label must be one token.

A server that rejects the fields or gives no log-probabilities (hosted APIs as a rule) is refused with an
``EngineError``. *What cannot be detected*: a server that accepts ``continue_final_message`` and ignores it. Its
log-probabilities belong to the first token of a new turn; it shows in labels missing from the top tokens, or in
``label_logprobs`` that hold next to no probability together. Nor can a server's chat template be seen: some rewrite or
strip an assistant turn that holds ``</think>``, and vLLM then answers 400 with the template's complaint.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from mrjudge_reward import special_tokens
from mrjudge_reward.credentials import Address, Hidden, hidden_address, hidden_fields, is_hidden, reply_fields_hash
from mrjudge_reward.engines.cancelling import CANCELLED, cancelled, result_of
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.pace import Pace
from mrjudge_reward.engines.structured import StructuredOutput
from mrjudge_reward.errors import ConfigError, EngineError, InputError, require
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import EngineFailure, Reply, Request

from .access import Access, proxy_of
from .connection import Connection
from .context import ContextWindow
from .counting import Estimate, ServerCounts
from .dialect import Dialect
from .reading import LabelReader
from .requests import ChatBody
from .transport import OneServerTransport, http_library
from .wire import written_reply

logger = logging.getLogger(__name__)

_IMAGES_KEPT = 32
_ABANDONED: list[Connection] = []  # of a parent process: its sockets must neither be closed nor collected here


class OpenAIEngine(Engine):
    """Judges through an OpenAI-compatible chat endpoint; see the module for retries and reading.

    Args:
        model: name under which the server knows the judge.
        base_url: up to and including ``/v1``. A login in it (``https://user:password@host/v1``) is sent as HTTP basic
            authorization, parameters with each request.
        api_key: ``None`` takes it from the environment when the first call is made.
        api_key_env: the variable that holds it, empty for none; a server that wants none gets ``"none"``.
        extra_headers: further headers of every request; they win over a login and a key.
        insecure_http: whether credentials may go over ``http://`` to another machine.
        max_concurrency: most requests in flight.
        deadline_s: seconds within which all tries of a request must end.
        outage_wait_s: seconds that a request waits besides, while the server is silent or asks to be left alone (429).
        context_tokens: the most tokens a request and its reply may hold together; the server is asked besides, and the
            smaller number holds.
        extra_body: further fields of every request, e.g. ``{"chat_template_kwargs": {"enable_thinking": False}}``. They
            win over our own; ``None`` as a value removes a field, e.g. ``{"temperature": None}`` for hosted models
            that reject it. ``env:NAME`` as a value, here and in headers, is taken from the environment.
        token_parameter: field that bounds the reply; hosted reasoning models want ``max_completion_tokens``.
        can_read: whether the server can read labels; ``None`` to find out with the first read.
        top_logprobs: how many tokens to ask for in the second way of reading; some servers allow only 5.
        fold_system: put system text into the first user turn, for models whose chat template refuses a system role.
        structured_output: how the server holds the judge to verdicts that can be read; see ``engines.structured``.

    Attributes:
        base_url: without what is sent and not shown.

    Raises:
        ConfigError: on construction or with the first call, if a credential is not to be had in this process, or would go
            unencrypted to another machine.
    """

    concurrent_calls = True
    repeats_reads = False
    """Calls of several threads share the connections and ``max_concurrency``."""

    def __init__(
        self,
        model: str,
        base_url: str = "http://127.0.0.1:8000/v1",
        *,
        api_key: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        extra_headers: Mapping[str, str] | None = None,
        insecure_http: bool = False,
        max_concurrency: int = 64,
        deadline_s: float = 120.0,
        outage_wait_s: float = 600.0,
        context_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
        token_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        can_read: bool | None = None,
        top_logprobs: int = 20,
        fold_system: bool = False,
        structured_output: StructuredOutput | None = None,
    ) -> None:
        require("openai", extra="openai")
        if max_concurrency < 1 or not deadline_s > 0 or top_logprobs < 1 or not outage_wait_s >= 0:
            raise ConfigError(
                "max_concurrency, deadline_s and top_logprobs must be positive, outage_wait_s not negative; "
                f"got {max_concurrency}, {deadline_s}, {top_logprobs} and {outage_wait_s}"
            )
        if token_parameter not in ("max_tokens", "max_completion_tokens"):
            raise ConfigError(f"token_parameter must be max_tokens or max_completion_tokens; got {token_parameter!r}")
        self.model = model
        self.reserved = special_tokens.of_model(model)
        self._address = hidden_address(base_url)
        self.base_url = Address.of(self._address).url
        self.max_concurrency = max_concurrency
        self.deadline_s, self.outage_wait_s = deadline_s, outage_wait_s
        self._context = ContextWindow(model, self.base_url, context_tokens)
        self._estimate = Estimate()
        self.extra_body = hidden_fields(extra_body or {}, "extra_body")
        self.can_read = can_read is not False
        self.identity = f"openai:{model}"  # not the address: the same judge elsewhere says the same
        if deciding := reply_fields_hash(self.extra_body):
            self.identity += f" extra_body {deciding}"
        if fold_system:
            self.identity += " fold_system"
        if structured_output:
            self.identity += f" {structured_output}"
        self.structured_output = structured_output
        self._api_key = api_key if api_key is None else Hidden("***", api_key, "api_key")
        self._api_key_env, self._insecure_http = api_key_env, insecure_http
        self._headers = hidden_fields(extra_headers or {}, "extra_headers")
        self._access()  # a fault in it is said now
        # What holds credentials is put on by the transport, and not twice.
        plain = {name: None if is_hidden(value) else value for name, value in self.extra_body.items()}
        self._body = ChatBody(model, token_parameter, plain, fold_system, structured_output)
        self._dialect = Dialect(self.name, self.extra_body)
        tokenize_url = self.base_url.removesuffix("/v1") + "/tokenize"
        self._counts = ServerCounts(model, tokenize_url)
        self._reader = LabelReader(self._body, self._dialect, tokenize_url, top_logprobs)
        if not self.can_read:
            self._reader.refuse("the engine was built with can_read=False")
        self._said_pace: bool | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_connection": None, "_finalizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def name(self) -> str:
        """The model as the server knows it."""
        return f"openai:{self.model}"

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write.

        Raises:
            EngineError: if the engine is closed by another thread meanwhile.
        """
        encoded, replies = _LatestImages(), _unanswered(requests)

        async def write(connection: Connection, request: Request) -> Reply | EngineFailure:
            payload = await self._dialect.ask(connection, self._body.of(request, encoded))
            return (
                payload
                if isinstance(payload, EngineFailure)
                else written_reply(payload, request, self._body.structured_output)
            )

        if requests:
            self._say_pace(max(request.sampling.max_tokens for request in requests))
            self._wait_for(lambda connection: self._each(connection, requests, write, replies))
        return list(replies)

    def _say_pace(self, tokens: int) -> None:
        """Whether long replies can meet their deadline: with the first call, and when a later one first asks too much."""
        pace = Pace(tokens, self.deadline_s, self.max_concurrency)
        if not pace.fits and self._said_pace is not False:
            logger.warning(
                "%s: %s. Where the server is slower, long replies fail as 'timeout'. Raise deadline_s to %d, or lower "
                "max_tokens (thinking_tokens where labels are read), or max_concurrency, so that each request gets more of "
                "the server. This is said once.",
                self.name, pace, pace.enough_s,
            )  # fmt: skip
        elif self._said_pace is None:
            logger.info("%s: %s", self.name, pace)
        self._said_pace = pace.fits and self._said_pace is not False

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill.

        Raises:
            EngineError: if the server cannot do it, with what it lacks.
        """
        encoded, replies = _LatestImages(), _unanswered(requests)

        async def read(connection: Connection, request: Request) -> Reply | EngineFailure:
            return await self._reader.read(connection, request, encoded)

        async def read_all(connection: Connection) -> None:
            async with connection.probing:
                if self._reader.refusal:  # found out by another call meanwhile
                    raise EngineError(self._reader.refusal)
                unknown = await self._reader.probe(connection, requests)
            if unknown:
                replies[:] = [unknown] * len(requests)
            else:
                await self._each(connection, requests, read, replies)

        if self._reader.refusal:
            raise EngineError(self._reader.refusal)
        try:
            if requests:
                self._wait_for(read_all)
            return list(replies)
        finally:
            self.can_read = not self._reader.refusal

    def reads_labels(self) -> bool | None:
        """Whether labels can be read; a server that was never asked is asked with a tiny chat.

        Returns:
            None if the server does not answer, so that nothing is known yet.
        """
        probe = Request(as_messages("Which?"), prefill="<answer>", labels=("A", "B"))
        found: list[EngineFailure | None] = []

        async def ask(connection: Connection) -> None:
            async with connection.probing:
                found.append(await self._reader.probe(connection, [probe]))

        if not self._reader.refusal:
            try:
                self._wait_for(ask)
            except EngineError:
                if not self._reader.refusal:
                    raise
        self.can_read = not self._reader.refusal
        return None if found[-1:] != [None] and self.can_read else self.can_read

    @property
    def context_tokens(self) -> int | None:
        """The most tokens a request and its reply may hold together: the smaller of what was given and what the server
        says, which is asked when this is first looked at; None if neither says."""

        async def ask(connection: Connection) -> None:
            async with connection.probing:
                if self._context.is_due:
                    await self._context.ask(connection.client, self.deadline_s)

        if self._context.is_due:
            self._wait_for(ask)
        return self._context.known

    @context_tokens.setter
    def context_tokens(self, tokens: int | None) -> None:
        self._context.given = tokens

    def count_tokens(self, text: str) -> int:
        """As the server counts (``/tokenize``), else an upper estimate; see ``counting``."""

        async def ask(connection: Connection) -> None:
            async with connection.probing:
                await self._counts.find_out(connection.client)
            if self._counts.can_be_asked:
                await self._counts.ask(connection.client, text)

        if text and self._counts.known(text) is None and self._counts.can_be_asked:
            self._wait_for(ask)
        count = self._counts.known(text)
        return self._estimate(text) if count is None else count

    def _learn(self, request: Request, reply: Reply | EngineFailure) -> None:
        """See what a prompt took, where that is estimated."""
        told = isinstance(reply, Reply) and reply.usage.prompt_tokens
        if told and not self._counts.is_understood and not any(message.images for message in request.messages):
            self._estimate.learn([*(message.text for message in request.messages), request.prefill], told)

    def close(self) -> None:
        """Cancel what is in flight and close all connections; a later call opens new ones."""
        with self._lock:
            connection, self._connection = self._connection, None
            if self._finalizer is not None:
                self._finalizer.detach()
        if connection is not None:
            connection.close()

    def _access(self) -> Access:
        return Access.of(
            self._address, self._api_key, self._api_key_env, self._headers, self.extra_body, self._insecure_http
        )

    def _connected(self) -> Connection:
        if self._connection is not None and self._connection.pid == os.getpid():
            return self._connection
        if self._connection is not None:
            _ABANDONED.append(self._connection)
        if self._finalizer is not None:
            self._finalizer.detach()
        openai = require("openai", extra="openai")
        http = http_library(openai.DefaultAsyncHttpxClient)
        carrying = http.AsyncHTTPTransport(limits=openai.DEFAULT_CONNECTION_LIMITS, proxy=proxy_of(self.base_url))
        transport = OneServerTransport(http, carrying, self._access())
        client = openai.AsyncOpenAI(
            api_key="none",
            base_url=self.base_url,
            max_retries=0,
            timeout=openai.Timeout(None, connect=min(10.0, self.deadline_s)),  # the deadline bounds all else
            http_client=openai.DefaultAsyncHttpxClient(transport=transport, follow_redirects=False, trust_env=False),
        )
        self._connection = Connection(client, transport, self.max_concurrency, self.deadline_s, self.outage_wait_s)
        self._finalizer = weakref.finalize(self, self._connection.close)
        return self._connection

    def _wait_for(self, work: Callable[[Connection], Coroutine[Any, Any, None]]) -> None:
        if self._pid != os.getpid():  # forked: another thread may have held the lock at that moment
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            connection = self._connected()
            future = asyncio.run_coroutine_threadsafe(work(connection), connection.loop)
        try:
            result_of(future)
        except concurrent.futures.CancelledError:
            if not cancelled():
                raise EngineError(f"{self.name} was closed while requests were in flight") from None
        finally:
            future.cancel()  # does nothing unless an interrupt ended the wait

    async def _each(
        self,
        connection: Connection,
        requests: Sequence[Request],
        work: Callable[[Connection, Request], Awaitable[Reply | EngineFailure]],
        replies: list[Reply | EngineFailure],
    ) -> None:
        """Put the reply to each request in its place, in the order of the requests as slots become free."""
        waiting = iter(enumerate(requests))

        async def serve() -> None:
            for index, request in waiting:
                async with connection.slots:
                    try:
                        replies[index] = await work(connection, request)
                        self._learn(request, replies[index])
                    except InputError as error:
                        replies[index] = EngineFailure("image", str(error)[:500], transient=False)
                    except Exception as error:  # noqa: BLE001 (one bad request must not cost the batch)
                        lasting = isinstance(error, ValueError | OSError)
                        replies[index] = EngineFailure(type(error).__name__, str(error)[:500], transient=not lasting)

        # As many as can be in flight, not one per request: of ten thousand, most would only wait.
        await asyncio.gather(*(serve() for _ in range(min(self.max_concurrency, len(requests)))))


class _LatestImages(dict[int, str]):
    """Encoded images by ``id``. Requests that share one are neighbours, so the latest few are enough."""

    def __setitem__(self, image: int, url: str) -> None:
        if len(self) >= _IMAGES_KEPT:
            del self[next(iter(self))]
        super().__setitem__(image, url)


def _unanswered(requests: Sequence[Request]) -> list[Reply | EngineFailure]:
    return [CANCELLED] * len(requests)
