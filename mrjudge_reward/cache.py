"""Ask each judge call once, across runs: replies on disk.

The key of a call is everything that decides its answer: the engine's identity (model, revision, adapter, precision,
tokenizer; not its address), the verb, and the whole request (rendered messages, prefill, labels, sampling, stop strings,
seed). What is kept is the engine's raw reply, so a stricter parser applies to old replies as well. Failures are never kept.
An image counts by its content, so a file that has changed is another image (what lies behind a web address is not looked
at).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from mrjudge_reward.engines.contract import Engine

from .errors import ConfigError
from .images import fingerprint
from .messages import ImagePart
from .once import Once
from .types import Reply, Request, Usage

Verb: TypeAlias = Literal["generate", "label_logprobs"]

_ABANDONED: list[sqlite3.Connection] = []  # of a parent process

_CHUNK = 500  # sqlite's default limit of variables in one statement is 999 in old builds


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def request_key(engine: Engine, verb: Verb, request: Request) -> bytes:
    """The identity of a judge call, 32 bytes."""
    content = (engine.identity, verb, *request_content(request), request.seed)
    return hashlib.blake2b(repr(content).encode(), digest_size=32).digest()


def request_content(request: Request) -> tuple[object, ...]:
    """What a request asks, whatever its seed; images by their content. Its ``repr`` tells requests apart."""
    messages = tuple(
        (
            message.role,
            tuple(fingerprint(p.image) if isinstance(p, ImagePart) else (p.text,) for p in message.content),
        )
        for message in request.messages
    )
    return messages, request.prefill, request.labels, request.sampling, request.stop, request.form


class ReplyCache:
    """Replies on disk, in one sqlite file that several processes may share.

    A cache that breaks while it is used costs calls, never the run: what cannot be read is not known, what cannot be
    written is not kept, and a warning says so once.

    Args:
        path: the file; made if it does not exist.
        timeout_s: how long to wait for another process that writes.

    Raises:
        ConfigError: if the file is not such a cache or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 60) -> None:
        self.path = Path(path)
        self.timeout_s = timeout_s
        self._lock = threading.Lock()
        self._undecodable: set[bytes] = set()
        self._once = Once()
        self._owner = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = self._open()
            except (sqlite3.Error, OSError) as error:
                raise ConfigError(f"{self.path} cannot serve as a reply cache ({error}); name another file") from error
        return self._connection

    def _open(self) -> sqlite3.Connection:
        # sqlite does not wait for its own timeout where two processes turn a new file to WAL at once: one is told
        # "locked" straight away. So the opening as a whole is tried again until the timeout.
        for attempt in Retrying(
            retry=retry_if_exception(_is_locked),
            stop=stop_after_delay(self.timeout_s),
            wait=wait_random(0.005, 0.05),
            reraise=True,
        ):
            with attempt, ExitStack() as undo:
                connection = sqlite3.connect(self.path, timeout=self.timeout_s, check_same_thread=False)
                undo.callback(connection.close)
                connection.text_factory = bytes  # one row that is no UTF-8 must not cost the others
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL)")
                connection.execute("SELECT key, reply FROM replies LIMIT 0")
                undo.pop_all()
        return connection

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the lock. After a fork it is a new one, as another thread may have held the old one at that moment, and the
        connection is left alone: sqlite allows neither its use nor its end in another process."""
        if self._owner != os.getpid():
            if self._connection is not None:
                _ABANDONED.append(self._connection)
            self._connection, self._lock, self._owner = None, threading.Lock(), os.getpid()
        with self._lock:
            yield

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Reply]:
        """The replies that are known."""
        found: dict[bytes, Reply] = {}
        with self._held():
            try:
                for key, text in self._rows(list(keys)):
                    try:
                        found[key] = _decode(text)
                    except (ValueError, TypeError, KeyError) as error:
                        self._undecodable.add(key)
                        self._warn("holds a reply that cannot be decoded", error, "it is asked for again")
            except (sqlite3.Error, ConfigError) as error:
                self._warn("cannot be read", error, "judging goes on without what it holds")
                return {}
        return found

    def _rows(self, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        connection = self._connect()
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            yield from connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", chunk)

    def _warn(self, what: str, error: Exception, so: str) -> None:
        self._once.warn(what, f"the reply cache {self.path} {what} ({error}); {so}.")

    def put(self, replies: dict[bytes, Reply]) -> None:
        """Keep replies; one that is there already stays, unless it could not be decoded."""
        rows = [(key, json.dumps(dataclasses.asdict(reply))) for key, reply in replies.items()]
        with self._held():
            spoiled = self._undecodable & replies.keys()
            try:
                with self._connect() as transaction:
                    transaction.executemany("DELETE FROM replies WHERE key = ?", [(key,) for key in spoiled])
                    transaction.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)
                self._undecodable -= spoiled
            except (sqlite3.Error, ConfigError) as error:
                self._warn("cannot be written", error, "judging goes on, and replies are not kept")

    def __len__(self) -> int:
        with self._held():
            return int(self._connect().execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._held():
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "timeout_s": self.timeout_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _decode(text: bytes) -> Reply:
    fields = json.loads(text)
    fields["usage"] = Usage(**fields["usage"])
    if fields["label_logprobs"] is not None:
        fields["label_logprobs"] = tuple(fields["label_logprobs"])
    return Reply(**fields)
