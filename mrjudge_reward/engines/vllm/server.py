"""A judge in a vLLM server that this process starts, watches and ends: the way beside a trainer.

>>> engine = VLLMServerEngine("Qwen/Qwen3-8B", gpu_memory_utilization=0.4, enable_sleep_mode=True)  # doctest: +SKIP
>>> engine.sleep(); ...; engine.wake()  # while the policy takes its step  # doctest: +SKIP

The server listens on 127.0.0.1, on a port of its own, and every path wants a random key. It ends with ``close()``, with
the last reference to the engine, and with this process, also by ``kill -9`` (on Linux at the latest after some seconds).

**Failing.** A server that dies takes the calls in flight with it: each of their requests becomes an ``EngineFailure``
(``judge server died``, with the end of its log). The next call starts it anew, ``restarts`` times; then calls raise.

**Sleeping.** ``sleep`` waits for the calls in flight; until ``wake`` new ones raise. Which of two engines on one device
is awake is for their owner to settle. Not yet run on a GPU; on a CPU the server says it sleeps and frees nothing.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.local.model import tokenizer_version
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.errors import ConfigError, EngineError, require
from mrjudge_reward.reasoning import without_hidden
from mrjudge_reward.types import EngineFailure, Reply, Request

from .child import ServerChild, call_to, command_line, environment, reserve_port
from .setup import ADAPTER, VLLMSetup, cannot_sleep, wake_in_steps

logger = logging.getLogger(__name__)

DIED = "judge server died"  # a failure's reason
_RENEWED_AFTER_S = 3600.0  # a server that lasted has earned its restarts again: runs take weeks


class VLLMServerEngine(Engine):
    """Runs a causal language model in a vLLM server of its own.

    Args:
        model: hub name or path.
        device: e.g. ``"cuda:1"``; None for all visible ones, or under a launcher (torchrun) for the rank's own.
        max_concurrency, deadline_s, outage_wait_s: see ``OpenAIEngine``.
        start_timeout_s: seconds until the server must be ready.
        restarts: how many times a server that died is started anew; counted afresh once one has lasted an hour.
        log_path: file that its output is appended to; None for one in the temporary folder, removed by ``close()``.
        settings: see ``VLLMSetup``.

    Raises:
        ConfigError: if an argument is out of range.
        EngineError: if the server does not come up; with the end of its log.
        MissingPackageError: if vLLM or openai is missing.
    """

    can_read = True
    concurrent_calls = True

    def __init__(
        self,
        model: str,
        *,
        device: str | None = None,
        max_concurrency: int = 64,
        deadline_s: float = 120.0,
        outage_wait_s: float = 600.0,
        start_timeout_s: float = 600.0,
        restarts: int = 1,
        log_path: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        if restarts < 0 or not start_timeout_s > 0:
            raise ConfigError(
                f"restarts must not be negative, start_timeout_s positive; got {restarts}, {start_timeout_s}"
            )
        self._setup = VLLMSetup(model, **settings)
        self._device, self._max_concurrency = device, max_concurrency
        self._deadline_s, self._outage_wait_s = deadline_s, outage_wait_s
        self._start_timeout_s, self._restarts = start_timeout_s, restarts
        self._given_log = None if log_path is None else os.fspath(log_path)
        self.context_tokens: int | None = self._setup.max_model_len
        self._prepare()
        try:
            self._start()
        except BaseException:
            self._release()
            raise

    def _prepare(self) -> None:
        if importlib.util.find_spec("vllm") is None:  # looked for, not imported: only the child needs it
            require("vllm", extra="vllm")
        require("openai", extra="openai")
        self._lock = threading.RLock()
        self._child: ServerChild | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._port: socket.socket | None = None
        self._log: Path | None = None
        self._restarts_left, self._started_at = self._restarts, 0.0
        self._asleep: bool | None = False  # None while it changes, and after an interrupt of that
        self._closed, self._told = False, False
        self._tokens = self._setup.load_tokenizer()
        self.reserved = self._tokens.reserved
        self.identity = self._setup.identity("vllm-server") + tokenizer_version(self._tokens.tokenizer)
        self.structured_output = self._setup.structured_output

    # -- the child ------------------------------------------------------------------------------------------------------

    def _start(self) -> ServerChild:
        setup = self._setup
        if self._port is None:
            self._port = reserve_port()
        if self._log is None:
            self._log = Path(self._given_log) if self._given_log else _temporary_log()
        port, key = self._port.getsockname()[1], secrets.token_urlsafe(32)
        adapter = None if setup.adapter is None else (ADAPTER, setup.adapter)
        extra: dict[str, Any] = {}
        if setup.chat_template_kwargs:
            extra["chat_template_kwargs"] = dict(setup.chat_template_kwargs)
        if self._tokens.hidden:
            extra["skip_special_tokens"] = False
        client = OpenAIEngine(
            setup.model if adapter is None else ADAPTER,
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key=key,
            max_concurrency=self._max_concurrency,
            deadline_s=self._deadline_s,
            outage_wait_s=self._outage_wait_s,
            extra_body=extra or None,
            fold_system=self._tokens.chat.folds_system,
            structured_output=setup.structured_output,
        )
        arguments = {**setup.engine_arguments(), "served_model_name": setup.model}
        child = ServerChild(
            command_line(arguments, port, adapter),
            environment(key, self._device, setup.enable_sleep_mode, os.environ, setup.tensor_parallel_size),
            port,
            self._log,
            client,
        )
        try:
            self.context_tokens = child.wait_until_ready(self._start_timeout_s)
        except BaseException:
            child.stop()
            raise
        if self._finalizer is not None:
            self._finalizer.detach()
        self._child, self._finalizer = child, weakref.finalize(self, child.stop)
        self._started_at = time.monotonic()
        return child

    def _serving(self) -> ServerChild:
        """The server, started anew if it died."""
        if self._closed:
            raise EngineError(f"{self.name} was closed")
        if self._child is not None and not self._child.died:
            return self._child
        if self._child is not None:
            if time.monotonic() - self._started_at > _RENEWED_AFTER_S:
                self._restarts_left = self._restarts
            if self._restarts_left == 0:
                raise EngineError(f"{self.name}: {self._child.died}")
            self._restarts_left -= 1
            logger.warning("starting the judge server again: %s", self._child.died)
            self._child.stop()
        return self._start()

    @property
    def pid(self) -> int:
        """Process id of the server; 0 if there is none."""
        return 0 if self._child is None or self._child.died else self._child.pid

    @property
    def log_path(self) -> Path | None:
        """File with the server's output."""
        return self._log

    # -- the two verbs --------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Let the judge write.

        Raises:
            EngineError: if the engine is asleep or closed, or its server died too often or cannot be started anew.
        """
        replies = self._call("generate", requests)
        shown = [
            replace(reply, text=without_hidden(reply.text, self._tokens.hidden)) if isinstance(reply, Reply) else reply
            for reply in replies
        ]
        return [self._tokens.chat.whole_reply(*pair) for pair in zip(requests, shown, strict=True)]

    def label_logprobs(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        """Read how likely each label is right after the prefill.

        Raises:
            EngineError: as ``generate``, or if the server cannot read labels.
        """
        return self._call("label_logprobs", requests)

    def _call(
        self, verb: Literal["generate", "label_logprobs"], requests: Sequence[Request]
    ) -> list[Reply | EngineFailure]:
        if not requests:
            return []
        with self._lock:
            if self._asleep is not False:
                raise EngineError(f"{self.name} is asleep; call wake() first")
            child = self._serving()
            child.begin()
        with call_to(child) as client:
            try:
                return client.generate(requests) if verb == "generate" else client.label_logprobs(requests)
            except EngineError:
                if not child.died:
                    raise
        return [EngineFailure(DIED, child.died)] * len(requests)

    # -- the device -------------------------------------------------------------------------------------------------------

    def sleep(self) -> None:
        """Give the GPU's memory back until ``wake``; waits for the calls in flight.

        Without ``enable_sleep_mode`` nothing happens, and on a CPU nothing is freed; both are logged once. A server that
        does not go to sleep is ended, which gives its memory back all the same; ``wake`` then starts it anew, as often
        as ``restarts`` allows.
        """
        with self._lock:
            if self._asleep or self._child is None:
                return
            why = cannot_sleep(self._setup)
            if why and not self._told:
                self._told = True
                logger.warning("%s keeps its memory while it sleeps: %s", self.name, why)
            if not self._setup.enable_sleep_mode:
                return
            child = self._child
            child.drain()  # no call begins meanwhile: the lock is held
            self._asleep = None
            with child.ended_if_this_fails("go to sleep", raises=False):
                child.ask("POST", f"/sleep?level={self._setup.sleep_level}")
                if child.ask("GET", "/is_sleeping") != {"is_sleeping": True}:
                    raise EngineError("it answers that it is awake")
            self._asleep = True  # also if it was ended: then wake() must start it anew

    def wake(self) -> None:
        """Take the GPU again; does nothing for an engine that is awake. A server that died asleep is started anew.

        Raises:
            EngineError: if the server does not wake, mostly for want of memory. It is ended then, so that it does not keep
                what it took; the next ``wake`` starts it anew, as often as ``restarts`` allows.
        """
        with self._lock:
            if self._asleep is False:
                return
            child = self._child
            if child is None or child.died:
                self._serving()
            else:
                self._asleep = None
                with child.ended_if_this_fails("wake"):
                    wake_in_steps(
                        self._setup,
                        lambda tag: child.ask("POST", "/wake_up" if tag is None else f"/wake_up?tags={tag}"),
                        lambda: child.ask("POST", "/collective_rpc", {"method": "reload_weights"}),
                    )
            self._asleep = False

    def close(self) -> None:
        """End the server, also with calls in flight, which raise then; safe to call twice."""
        child = self._child
        if child is not None:
            child.stop()  # before the lock, which a sleep may hold while it waits for the calls in flight
        with self._lock:
            if self._child is not None:
                self._child.stop()
            self._closed, self._asleep = True, False
            self._release()

    def _release(self) -> None:
        died = self._child is not None and bool(self._child.died)
        if self._finalizer is not None:
            self._finalizer.detach()
        if self._port is not None:
            self._port.close()
        if self._log is not None and self._given_log is None and self._child is not None and not died:
            self._log.unlink(missing_ok=True)
        self._child = self._port = self._finalizer = None

    def prompt_text(self, request: Request) -> str:
        """A request as the model reads it."""
        return self._tokens.chat.text(request)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text without special ones."""
        return len(self._tokens.encode(text))

    def __getstate__(self) -> dict[str, Any]:
        kept = (
            "_setup", "_device", "_max_concurrency", "_deadline_s", "_outage_wait_s", "_start_timeout_s", "_restarts",
            "_given_log",
        )  # fmt: skip
        return {name: getattr(self, name) for name in (*kept, "context_tokens")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled engine is its description; the first call starts a server of its own."""
        self.__dict__.update(state)
        self._prepare()


def _temporary_log() -> Path:
    handle, name = tempfile.mkstemp(prefix="mrjudge-vllm-", suffix=".log")
    os.close(handle)
    return Path(name)
