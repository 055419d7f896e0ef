"""Label probabilities over the OpenAI protocol: which way a server offers, and the reading itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import numpy as np

from mrjudge_reward.engines.label_tokens import distinct_tokens, spellings
from mrjudge_reward.errors import EngineError
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import EngineFailure, Reply, Request, Sampling

from .connection import Connection
from .dialect import REJECTED, Dialect
from .requests import ChatBody
from .wire import choice_of, token_ids, top_tokens, usage_of

_NO_SUCH_PATH = REJECTED | {"http 401", "http 403", "http 404", "http 405"}
_TAIL = 8  # characters before a label that can change how it is tokenized
_NONE_GIVEN = "no log-probabilities"
_MISSING = "label not in top logprobs"

_Way = Literal["ids", "top"]


class LabelReader:
    """Reads labels, and remembers what it found out about the server.

    Args:
        body: builds request bodies.
        dialect: how the server takes them.
        tokenize_url: where vLLM tells token ids.
        top_logprobs: how many of the most likely tokens to ask for, where token ids cannot be asked for.

    Attributes:
        refusal: why the server cannot read; empty as long as it is not known that it cannot.
    """

    def __init__(self, body: ChatBody, dialect: Dialect, tokenize_url: str, top_logprobs: int) -> None:
        self.refusal = ""
        self._body, self._dialect = body, dialect
        self._tokenize_url = tokenize_url
        self._top_logprobs = top_logprobs
        self._ways: dict[bool, _Way] = {}  # by whether the prefill holds a closed reasoning
        self._label_ids: dict[tuple[str, str], int] = {}  # by end of the prefill and label

    async def probe(self, connection: Connection, requests: Sequence[Request]) -> EngineFailure | None:
        """Find out how labels are read, unless that is known; a failure if the server cannot be asked now.

        Raises:
            EngineError: if the server cannot read labels.
        """
        for closed in sorted({_closed(request) for request in requests} - self._ways.keys()):
            # A tiny chat with a real prefill: if it is rejected, that is not for the length of the request.
            request = next(request for request in requests if _closed(request) is closed)
            way = await self._find_way(connection, replace(request, messages=as_messages("Answer with a label.")))
            if isinstance(way, EngineFailure):
                return way
            self._ways[closed] = way
        return None

    async def _find_way(self, connection: Connection, request: Request) -> _Way | EngineFailure:
        outcome = await self._ask(connection, request, "ids", {})
        if isinstance(outcome, Reply):
            return "ids"
        if outcome.reason not in {*REJECTED, _NONE_GIVEN, _MISSING, "no token ids"}:
            return outcome
        outcome = await self._ask(connection, request, "top", {})
        if isinstance(outcome, Reply) or outcome.reason == _MISSING:
            return "top"
        if outcome.reason not in {*REJECTED, _NONE_GIVEN}:
            return outcome
        needs = f"logprobs with top_logprobs={self._top_logprobs}"
        if request.prefill:
            needs += " on a begun turn (continue_final_message)"
        answer = f"{outcome.reason}: {outcome.detail}" if outcome.reason in REJECTED else _NONE_GIVEN
        raise EngineError(self.refuse(f"it takes {needs}, to which the server answers {answer.rstrip('.: ')}"))

    def refuse(self, why: str) -> str:
        """Note that labels cannot be read, and say so."""
        self.refusal = (
            f"labels of {self._body.model} cannot be read: {why}. Use verdict='generate', or a server that can (vLLM)."
        )
        return self.refusal

    async def read(self, connection: Connection, request: Request, encoded: dict[int, str]) -> Reply | EngineFailure:
        """Read one request in the way found by ``probe``."""
        return await self._ask(connection, request, self._ways[_closed(request)], encoded)

    async def _ask(
        self, connection: Connection, request: Request, way: _Way, encoded: dict[int, str]
    ) -> Reply | EngineFailure:
        spelt = [spellings(label, request.prefill) for label in request.labels]
        names: Sequence[Sequence[str]] = spelt
        fields: dict[str, Any] = {"top_logprobs": self._top_logprobs}
        if way == "ids":
            found: list[list[int]] = [[] for _ in spelt]
            for label, texts in enumerate(spelt):
                for text in texts:
                    number = await self._label_id(connection, request.prefill[-_TAIL:], text)
                    if isinstance(number, EngineFailure):
                        return number
                    found[label].append(number)
            try:
                ids = distinct_tokens(found, request)
            except EngineError:
                begin = [numbers[0] for numbers in found]
                return EngineFailure(
                    "labels share a token", f"{request.labels} begin with tokens {begin}", transient=False
                )
            names = [[f"token_id:{number}" for number in numbers] for numbers in ids]
            asked = list(chain.from_iterable(ids))
            fields = {"logprob_token_ids": asked, "return_tokens_as_token_ids": True}
        greedy = replace(request, sampling=Sampling(max_tokens=1), stop=(), seed=None)
        body = self._body.of(greedy, encoded, logprobs=True, **{self._body.token_parameter: 1}, **fields)
        payload = await self._dialect.ask(connection, body)
        tokens = payload if isinstance(payload, EngineFailure) else top_tokens(payload)
        if isinstance(tokens, EngineFailure):
            return tokens
        if not tokens:
            return EngineFailure(_NONE_GIVEN, transient=False)
        values = [[tokens[name] for name in spelt if name in tokens] for spelt in names]
        missing = [label for label, known in zip(request.labels, values, strict=True) if not known]
        if missing:
            return EngineFailure(_MISSING, f"{missing} not among {list(tokens)}"[:500], transient=False)
        said = choice_of(payload)
        likeliest = "" if isinstance(said, EngineFailure) else str((said.get("message") or {}).get("content") or "")
        logprobs = tuple(float(np.logaddexp.reduce(known)) for known in values)
        return Reply(likeliest, label_logprobs=logprobs, usage=usage_of(payload))

    async def _label_id(self, connection: Connection, tail: str, label: str) -> int | EngineFailure:
        # Where it stands: many tokenizers write "A" at the start of a text and "A" after ">" as different tokens.
        if (tail, label) not in self._label_ids:
            before = await self._tokens(connection, tail) if tail else []
            both = await self._tokens(connection, tail + label)
            if isinstance(before, EngineFailure):
                return before
            if isinstance(both, EngineFailure):
                return both
            start = len(before)
            if both[:start] != before or len(both) == start:  # the end of the prefill and the label share a token
                both = await self._tokens(connection, label)
                if isinstance(both, EngineFailure):
                    return both
                start = 0
            self._label_ids[tail, label] = both[start]
        return self._label_ids[tail, label]

    async def _tokens(self, connection: Connection, text: str) -> list[int] | EngineFailure:
        body = {"model": self._body.model, "prompt": text, "add_special_tokens": False}
        payload = await connection.post(self._tokenize_url, body)
        if isinstance(payload, EngineFailure):
            lacks = payload.reason in _NO_SUCH_PATH
            return EngineFailure("no token ids", payload.reason, transient=False) if lacks else payload
        return token_ids(payload)


def _closed(request: Request) -> bool:
    return "</think>" in request.prefill
