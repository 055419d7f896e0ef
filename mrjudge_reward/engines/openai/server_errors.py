"""What a server says of its own failure: its sentence, when to come again, and whether it is a bill that must be paid.

Every server shapes this otherwise. Here are those of OpenAI, vLLM, SGLang, llama.cpp, TGI, LiteLLM, OpenRouter, and of what
hosted models of other makers offer as OpenAI's protocol.
"""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

_LONGEST = 500
_SENTENCES = (
    "message",
    "msg",
    "detail",
    "error",
    "errors",
    "status_msg",
    "base_resp",
    "reason",
    "title",
    "code",
    "type",
)
"""Fields that hold the sentence, or something that does; the earlier the better."""
_ELSEWHERE = {"provider returned error", "upstream error", "error"}  # the sentence is the upstream's, in metadata
# Each alternative matches where it begins or fails at once, so that a page is read in linear time.
_MARKUP = re.compile(r"<(script|style)\b.*?(?:</\1>|\Z)|<[^<>]*(?:>|\Z)", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title>(.*?)(?:</title>|\Z)", re.DOTALL | re.IGNORECASE)
_UNPAID = re.compile(
    r"insufficient[_ ](?:quota|balance|credit|funds)|exceeded your current quota|credit balance is too low|out of credits"
    r"|payment required|billing|spend(?:ing)? limit|quota[_ ]exhausted|余额不足",
    re.IGNORECASE,
)
_AGAIN = re.compile(
    r"(?:(?:again|retry|reset) (?:in|after)|retry_?delay\W{1,5}|retry_?after\W{1,5})\s*"
    r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?) ?(ms|s\b|sec))?",
    re.IGNORECASE,
)


def sentence_of(body: Any) -> str:
    """The server's own sentence, on one line; empty if there is none.

    Args:
        body: what it sent: decoded JSON or text, which may be JSON or a page.

    >>> sentence_of({"error": {"message": "Unsupported value", "type": "invalid_request_error", "param": "seed"}})
    'Unsupported value (param: seed)'
    >>> sentence_of({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})
    'seed: Extra inputs are not permitted'
    >>> sentence_of("<html><title>502 Bad Gateway</title></html>")
    '502 Bad Gateway'
    """
    return " ".join(_said(body, depth=0).split())[:_LONGEST]


def _said(body: Any, depth: int) -> str:
    if depth > 6 or isinstance(body, bool) or body is None:
        return ""
    if isinstance(body, str):
        return _said_in_text(body, depth)
    if isinstance(body, Sequence):
        return "; ".join(filter(None, (_said(item, depth + 1) for item in body[:5])))
    if not isinstance(body, Mapping):
        return str(body)
    said = next(filter(None, (_said(body.get(name), depth + 1) for name in _SENTENCES)), "")
    upstream = body.get("metadata")
    if isinstance(upstream, Mapping) and said.strip(". ").lower() in _ELSEWHERE | {""}:
        said = _said(upstream.get("raw"), depth + 1) or said
    if isinstance(body.get("loc"), list):  # FastAPI names the field by its path
        said = f"{'.'.join(str(step) for step in body['loc'] if step != 'body')}: {said}"
    param = body.get("param")
    return f"{said} (param: {param})" if isinstance(param, str) and param and said and param not in said else said


def _said_in_text(text: str, depth: int) -> str:
    text = text.strip()
    if text.startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return _said(json.loads(text), depth + 1)
    if text.startswith("<"):
        title = _TITLE.search(text)
        return html.unescape(_MARKUP.sub(" ", title[1] if title else text))
    return text


def must_be_paid(status: int, said: str, again_s: float | None) -> bool:
    """Whether asking again is of no use before somebody pays or raises a limit.

    Args:
        status: of the answer.
        said: all that the server sent.
        again_s: when it says to come again: a quota that is renewed by itself is a rate limit.
    """
    return status == 402 or (status in (400, 403, 429) and again_s is None and _UNPAID.search(said) is not None)


def come_again_s(headers: Mapping[str, str], said: str) -> float | None:
    """Seconds after which a server wants to be asked again, from its headers or its words; None if it does not say."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with suppress(ValueError):
            return max(0.0, float(value) * scale)
        with suppress(ValueError, OverflowError):
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    for found in _AGAIN.finditer(said):
        hours, minutes, seconds, unit = found.groups()
        if hours or minutes or seconds:
            small = 0.001 if (unit or "").lower() == "ms" else 1.0
            return float(hours or 0) * 3600 + float(minutes or 0) * 60 + float(seconds or 0) * small
    return None
