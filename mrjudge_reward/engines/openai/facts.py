"""A question about the server itself: asked quickly, and not again and again. Nothing fails if it is not answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrjudge_reward.errors import require

from .wire import UNREADABLE

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT_S = 10.0
AGAIN_S = 30.0
"""After so many seconds a server that did not answer is worth another question."""


@dataclass(frozen=True)
class Fact:
    """What came of a question.

    Attributes:
        answered: whether the server answered, be it that there is no such thing; else it could not be asked now.
        payload: its decoded answer; None where it has none.
    """

    answered: bool
    payload: Any = None


async def fact(client: AsyncOpenAI, url: str, body: dict[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> Fact:
    """Ask once: with a body by POST, else by GET."""
    openai = require("openai", extra="openai")
    options: Any = {"timeout": min(timeout_s, TIMEOUT_S)}
    try:
        if body is None:
            return Fact(True, await client.get(url, cast_to=object, options=options))
        return Fact(True, await client.post(url, cast_to=object, body=body, options=options))
    except openai.APIStatusError as error:
        return Fact(error.status_code < 500 and error.status_code not in (408, 429))
    except openai.APIConnectionError:
        return Fact(False)
    except UNREADABLE:
        return Fact(True)
