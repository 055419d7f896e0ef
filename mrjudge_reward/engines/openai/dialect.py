"""Fields that a server rejects and a request can do without, found out by being told so.

A hosted reasoning model takes no ``temperature``, another API no ``seed``, a third one bounds replies by another field. A
400 that names such a field is asked again without it, and so is every later request. Nothing is left out on a guess.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

from mrjudge_reward.types import EngineFailure

from .connection import Connection

logger = logging.getLogger(__name__)

REJECTED = frozenset({"http 400", "http 422", "http 501"})
"""Failures that mean that a server does not take a request as it is."""

_WITHOUT = {
    "seed": "its replies cannot be repeated",
    "temperature": "it samples at a temperature of its own",
    "top_p": "it samples with a top_p of its own",
    "stop": "replies are cut here",
}
"""What can be left out, and what that means. What a verdict is read from (``logprobs``), and what holds a reply to its form
or its turn, cannot."""
_NEUTRAL = {"temperature": 0.0, "top_p": 1.0}
"""Values that some servers refuse although they mean no more than the field left out, or the likeliest token."""
_BOUNDS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_UNKNOWN = re.compile(
    r"unsupported|not supported|unknown|un(?:recogni[sz]ed|expected)|not permitted|not allowed|forbidden|cannot find field"
    r"|does not (?:support|exist)|deprecated|extra input|cannot both",
    re.IGNORECASE,
)
_KIND = r"(?:argument|param(?:eter)?|field|propert(?:y|ie)|input|key)s?"


def _named(field: str, said: str) -> bool:
    """Whether a sentence names a field, and not a word of English."""
    name = rf"(?:[\w.]+,\s)*{re.escape(field)}\b"
    quotes = "[\"'`‘’“”]"
    forms = (
        f"{quotes}{name}", f"{name}{quotes}", f"^{name}:", rf":\s{name}(?=[.,;)]|\s*$)",
        rf"\b{_KIND}(?:\ssupplied)?:?\s{name}", rf"\b{name}\s{_KIND}",
    )  # fmt: skip
    plain = (rf"\b{field}\b",) if field in ("seed", "temperature") or "_" in field else ()
    return re.search("|".join(forms + plain), said) is not None


class Dialect:
    """Chat requests as one server takes them. It is remembered as long as the engine lives.

    Args:
        name: of the judge, for the log.
        given: fields that the user set; these are sent as they are.
    """

    def __init__(self, name: str, given: Collection[str]) -> None:
        self._name, self._given = name, frozenset(given)
        self._without: frozenset[str] = frozenset()
        self._renamed: dict[str, str] = {}

    async def ask(self, connection: Connection, body: Mapping[str, Any]) -> Any:
        """The answer to a chat request, or an ``EngineFailure``; see ``Connection.post``."""
        while True:
            sent = self._spoken(body)
            answer = await connection.post("/chat/completions", sent)
            if not isinstance(answer, EngineFailure) or not self._learns(answer, sent):
                return answer

    def _spoken(self, body: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in body.items() if name not in self._without}
        return {self._renamed.get(name, name): value for name, value in kept.items()}

    def _learns(self, failure: EngineFailure, sent: Mapping[str, Any]) -> bool:
        """Note which field a server rejects; whether the request can be asked otherwise now."""
        if failure.reason not in REJECTED:
            return False
        said = failure.detail
        fields = {name for name in sent if name not in self._given and _named(name, said)}
        if "both" in said and {"temperature", "top_p"} <= fields:
            fields.remove("temperature")
        unknown = _UNKNOWN.search(said) is not None
        without = {name for name in fields & _WITHOUT.keys() if unknown or sent[name] == _NEUTRAL.get(name)}
        for name in sorted(without - self._without):
            logger.warning("%s rejects %s and is asked without it; %s: %s", self._name, name, _WITHOUT[name], said)
        self._without |= without
        bound = next(iter(fields & _BOUNDS.keys() - set(self._renamed.values())), "")
        if bound and unknown and not without:
            if bound not in self._renamed:
                logger.warning("%s takes %s, not %s: %s", self._name, _BOUNDS[bound], bound, said)
            self._renamed[bound] = _BOUNDS[bound]
            return True
        return bool(without)
