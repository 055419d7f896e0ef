"""One engine call for a whole batch: each distinct request once, none that the cache knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mrjudge_reward.cache import ReplyCache, Verb, request_key
from mrjudge_reward.engines.cancelling import cancelled
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import EngineError
from mrjudge_reward.types import EngineFailure, Reply, Request


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply and whether the engine was asked for it (as against the cache or a twin in the same batch)."""

    reply: Reply | EngineFailure
    fresh: bool


def ask(engine: Engine, verb: Verb, requests: Sequence[Request], cache: ReplyCache | None = None) -> list[Answer]:
    """Ask an engine.

    Requests go to it sorted by their text, so that neighbours share the longest prefix and an engine with a prefix cache
    computes it once. What was answered before the call was cancelled is in the cache.

    Returns:
        As many answers as requests, in their order.

    Raises:
        EngineError: if the engine returns another number of replies than requests, or judging was cancelled: what was
            not answered then has failed for a reason that says nothing.
    """
    if cancelled():
        raise EngineError("judging was cancelled")
    keys = [request_key(engine, verb, request) for request in requests]
    first: dict[bytes, int] = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    known: dict[bytes, Reply | EngineFailure] = dict(cache.get(list(first))) if cache is not None else {}
    open_keys = [key for key in first if key not in known]
    open_keys.sort(key=lambda key: _reading_order(requests[first[key]]))
    if open_keys:
        batch = [requests[first[key]] for key in open_keys]
        replies = engine.generate(batch) if verb == "generate" else engine.label_logprobs(batch)
        if len(replies) != len(batch):
            raise EngineError(f"{engine.name} returned {len(replies)} replies to {len(batch)} requests")
        fresh = dict(zip(open_keys, replies, strict=True))
        if cache is not None:
            cache.put({key: reply for key, reply in fresh.items() if isinstance(reply, Reply)})
        known |= fresh
    if cancelled():
        raise EngineError("judging was cancelled")
    asked = {first[key] for key in open_keys}
    return [Answer(known[key], index in asked) for index, key in enumerate(keys)]


def _reading_order(request: Request) -> tuple[str, ...]:
    return (*(message.text for message in request.messages), request.prefill)
