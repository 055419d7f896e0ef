"""Ask each judge call once: inside a batch, and on disk across runs.

The key of a call is everything that decides its answer: the engine's identity (model, adapter, precision), the verb, and
the whole request (rendered messages, prefill, labels, sampling, stop strings, seed). What is kept is the engine's raw
reply, so a stricter parser applies to old replies as well. Failures are never kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from .errors import ConfigError
from .types import Engine, Failure, ImagePart, Reply, Request, Usage

Verb: TypeAlias = Literal["generate", "label_probabilities"]

_CHUNK = 500  # sqlite's default limit of variables in one statement is 999 in old builds


def _image_fingerprint(image: Any) -> str:
    if isinstance(image, str | os.PathLike):
        # Not Path.is_file: it raises where a (data) URL is too long for a file name.
        content = Path(image).read_bytes() if os.path.isfile(image) else str(image).encode(errors="surrogatepass")
    elif isinstance(image, bytes):
        content = image
    else:  # a PIL image
        content = f"{image.mode}{image.size}".encode() + image.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def request_key(engine: Engine, verb: Verb, request: Request) -> bytes:
    """The identity of a judge call, 32 bytes."""
    messages = tuple(
        (
            message.role,
            tuple(_image_fingerprint(p.image) if isinstance(p, ImagePart) else (p.text,) for p in message.content),
        )
        for message in request.messages
    )
    rest = (request.prefill, request.labels, request.sampling, request.stop, request.seed)
    return hashlib.blake2b(repr((engine.identity, verb, messages, rest)).encode(), digest_size=32).digest()


class ReplyCache:
    """Replies on disk, in one sqlite file that several processes may share.

    Args:
        path: the file; made if it does not exist.

    Raises:
        ConfigError: if the file is not such a cache or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._owner = 0
        self._connection: sqlite3.Connection | None = None
        self._connect()

    def _connect(self) -> sqlite3.Connection:
        # A connection must not cross a fork: each process opens its own.
        if self._connection is None or self._owner != os.getpid():
            connection = None
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL)")
                connection.execute("SELECT key, reply FROM replies LIMIT 0")
            except (sqlite3.Error, OSError) as error:
                if connection is not None:
                    connection.close()
                raise ConfigError(f"{self.path} cannot serve as a reply cache ({error}); name another file") from error
            self._connection, self._owner = connection, os.getpid()
        return self._connection

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Reply]:
        """The replies that are known."""
        found: dict[bytes, Reply] = {}
        with self._lock:
            connection = self._connect()
            for chunk in _chunks(list(keys)):
                marks = ",".join("?" * len(chunk))
                rows = connection.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", chunk)
                found |= {bytes(key): _decode(text) for key, text in rows}
        return found

    def put(self, replies: dict[bytes, Reply]) -> None:
        """Keep replies; one that is there already stays."""
        rows = [(key, json.dumps(dataclasses.asdict(reply))) for key, reply in replies.items()]
        with self._lock:
            connection = self._connect()
            with connection:
                connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", rows)

    def __len__(self) -> int:
        with self._lock:
            return int(self._connect().execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
            self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _chunks(items: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _decode(text: str) -> Reply:
    fields = json.loads(text)
    fields["usage"] = Usage(**fields["usage"])
    if fields["label_logprobs"] is not None:
        fields["label_logprobs"] = tuple(fields["label_logprobs"])
    return Reply(**fields)


def _reading_order(request: Request) -> tuple[str, ...]:
    return (*(message.text for message in request.messages), request.prefill)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A reply and whether the engine was asked for it (as against the cache or a twin in the same batch)."""

    reply: Reply | Failure
    fresh: bool


def ask(engine: Engine, verb: Verb, requests: Sequence[Request], cache: ReplyCache | None = None) -> list[Answer]:
    """One engine call for a whole batch, each distinct request once.

    Requests go to the engine sorted by their text, so that neighbours share the longest prefix and an engine with a
    prefix cache computes it once.

    Returns:
        As many answers as requests, in their order.
    """
    keys = [request_key(engine, verb, request) for request in requests]
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    known: dict[bytes, Reply | Failure] = dict(cache.get(list(first))) if cache is not None else {}
    open_keys = [key for key in first if key not in known]
    open_keys.sort(key=lambda key: _reading_order(requests[first[key]]))
    if open_keys:
        batch = [requests[first[key]] for key in open_keys]
        replies = engine.generate(batch) if verb == "generate" else engine.label_probabilities(batch)
        fresh = dict(zip(open_keys, replies, strict=True))
        if cache is not None:
            cache.put({key: reply for key, reply in fresh.items() if isinstance(reply, Reply)})
        known |= fresh
    asked = {first[key] for key in open_keys}
    return [Answer(known[key], index in asked) for index, key in enumerate(keys)]
