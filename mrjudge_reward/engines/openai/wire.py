"""Requests and replies in the words of the OpenAI chat protocol; no network here.

What is trusted least is the reply: whatever a server, proxy or load balancer sent back becomes a ``Reply`` or a
``EngineFailure``, and nothing in it is guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from mrjudge_reward.engines import fold_system
from mrjudge_reward.engines.structured import StructuredOutput, fields, marked
from mrjudge_reward.images import data_url, is_web_address, load_picture
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.types import EngineFailure, Reply, Request, Usage

_FLOOR = -9999.0  # what the protocol writes for minus infinity, which JSON does not have
_STOPPED = frozenset({None, "stop", "eos", "eos_token", "stop_sequence", "end_turn"})


def image_url(image: Any) -> str:
    """An image as something a server can open: web addresses stay, all else becomes a data URL of a normalised picture.

    Args:
        image: whatever ``images.load_picture`` takes, or a web address.

    Raises:
        InputError: if it is no image that can be shown.
        MissingPackageError: if Pillow is missing.
    """
    return str(image) if is_web_address(image) else data_url(load_picture(image))


def chat_messages(
    messages: Sequence[Message], prefill: str = "", encoded: dict[int, str] | None = None
) -> list[dict[str, Any]]:
    """Messages as the protocol writes them, ending in the judge's begun turn if there is a prefill.

    Args:
        messages: the chat.
        prefill: text with which the judge's own turn begins.
        encoded: image URLs already made, by ``id`` of the image; the images of one question are in every comparison.
    """
    encoded = {} if encoded is None else encoded
    chat: list[dict[str, Any]] = []
    for message in messages:
        if not message.images:
            chat.append({"role": message.role, "content": message.text})
            continue
        parts: list[dict[str, Any]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            if id(part.image) not in encoded:
                encoded[id(part.image)] = image_url(part.image)
            parts.append({"type": "image_url", "image_url": {"url": encoded[id(part.image)]}})
        chat.append({"role": message.role, "content": parts})
    if prefill:
        chat.append({"role": "assistant", "content": prefill})
    return chat


@dataclass(frozen=True)
class ChatBody:
    """The body of a chat request.

    Attributes:
        model: the judge's name on the server.
        token_parameter: field that bounds the reply.
        extra: further fields, which win; ``None`` removes a field.
        fold_system: whether system text goes into the first user turn.
        structured_output: how the server holds a judge to its form.
    """

    model: str
    token_parameter: str
    extra: Mapping[str, Any]
    fold_system: bool = False
    structured_output: StructuredOutput | None = None

    def of(self, request: Request, encoded: dict[int, str], **own: Any) -> dict[str, Any]:
        """A request's body; ``own`` fields win over everything."""
        messages = fold_system(request.messages) if self.fold_system else request.messages
        body: dict[str, Any] = {
            "model": self.model,
            "messages": chat_messages(messages, request.prefill, encoded),
            "temperature": request.sampling.temperature,
            "top_p": request.sampling.top_p,
            self.token_parameter: request.sampling.max_tokens,
            "stop": list(request.stop) or None,
            "seed": request.seed,
        }
        if request.prefill:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        body |= fields(request.form, self.structured_output) | dict(self.extra)
        return {name: value for name, value in (body | own).items() if value is not None}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return text[:300]


def usage_of(payload: Any) -> Usage:
    """Token counts of a reply; what is absent counts as zero."""

    def count(counts: Mapping[str, Any], name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) else 0

    usage = _mapping(_mapping(payload).get("usage"))
    cached = count(_mapping(usage.get("prompt_tokens_details")), "cached_tokens")
    return Usage(count(usage, "prompt_tokens"), cached, count(usage, "completion_tokens"))


def choice_of(payload: Any) -> Mapping[str, Any] | EngineFailure:
    """The one choice of a reply, or why there is none."""
    if isinstance(payload, str):  # JSON that was served under another content type
        try:
            payload = json.loads(payload)
        except ValueError:
            return EngineFailure("malformed reply", f"not JSON: {_excerpt(payload)}")
    body = _mapping(payload)
    if body.get("error") or body.get("object") == "error":
        return EngineFailure("server error", _excerpt(body.get("error") or body.get("message")))
    choices = body.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        return EngineFailure("malformed reply", f"expected one choice; got {_excerpt(payload)}")
    return choices[0]


def written_reply(payload: Any, request: Request, way: StructuredOutput | None = None) -> Reply | EngineFailure:
    """What the judge wrote, with reasoning that a server's parser set apart put back where it came from.

    Args:
        payload: the server's answer.
        request: what it answers.
        way: how the judge was held to its form.
    """
    choice = choice_of(payload)
    if isinstance(choice, EngineFailure):
        return choice
    message, reason = _mapping(choice.get("message")), choice.get("finish_reason")
    apart, content = _parts(message.get("content"))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or apart
    if reason == "content_filter" or message.get("refusal"):
        return EngineFailure("refused", _excerpt(message.get("refusal") or content or reason), transient=False)
    if message.get("tool_calls") or message.get("function_call") or reason in ("tool_calls", "function_call"):
        return EngineFailure("tool call", "the judge called a tool instead of answering")
    finish: Literal["stop", "length"] = "stop"
    if reason in ("length", "max_tokens"):
        finish = "length"
    elif not (reason is None or isinstance(reason, str)) or reason not in _STOPPED:
        return EngineFailure("unknown finish", _excerpt(reason))
    if not isinstance(reasoning, str) or not (content is None or isinstance(content, str)):
        return EngineFailure("malformed reply", f"text expected; got {_excerpt(dict(message))}")
    if content is None and finish == "stop" and not reasoning:
        return EngineFailure("malformed reply", f"neither content nor reasoning; got {_excerpt(dict(message))}")
    text = (content or "") if not reasoning else _with_reasoning(reasoning, content or "", finish, request.prefill)
    if way == "response_format" and request.form is not None:
        text = marked(text, request.form)
    return Reply(text, finish, usage=usage_of(payload))


def _parts(content: Any) -> tuple[str, Any]:
    """Reasoning and text of a content that is a list of parts, as Mistral's servers give it; other content as it is."""
    parts = [_mapping(part) for part in content] if isinstance(content, list) else []
    if not all(part.get("type") in ("text", "thinking") for part in parts) or not parts:
        return "", content
    said: dict[str, str] = {"thinking": "", "text": ""}
    for part in parts:
        text = part.get(part["type"])
        text = _parts(text)[1] if part["type"] == "thinking" else text
        if not isinstance(text, str):
            return "", content
        said[part["type"]] += text
    return said["thinking"], said["text"]


def _with_reasoning(reasoning: str, content: str, finish: str, prefill: str) -> str:
    # A prefill may have opened the reasoning already, or closed it: then a server that looks for the end of a
    # reasoning it never saw open files the whole answer under reasoning.
    if "</think>" in prefill:
        return reasoning + content
    opened = reasoning if "<think>" in prefill else f"<think>{reasoning}"
    return opened if not content and finish == "length" else f"{opened}</think>{content}"


def top_tokens(payload: Any) -> dict[str, float] | EngineFailure:
    """Log-probability of each token text reported for the first position; empty if the server reports none."""
    choice = choice_of(payload)
    if isinstance(choice, EngineFailure):
        return choice
    positions = _sequence(_mapping(choice.get("logprobs")).get("content"))
    if not positions:
        return {}
    found: dict[str, float] = {}
    first = _mapping(positions[0])
    for entry in (*_sequence(first.get("top_logprobs")), first):
        logprob = _mapping(entry).get("logprob")
        if not isinstance(logprob, int | float) or not math.isfinite(logprob) or logprob <= _FLOOR:
            continue
        for name in _names(_mapping(entry)):
            found.setdefault(name, float(logprob))
    return found


def _names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = [entry["token"]] if isinstance(entry.get("token"), str) else []
    with suppress(KeyError, TypeError, ValueError):  # a token's text may be mangled ("ĠA", "▁A"); its bytes are not
        names.append(bytes(entry["bytes"]).decode())
    return tuple(dict.fromkeys(names))


def token_ids(payload: Any) -> list[int] | EngineFailure:
    """Token ids as a ``/tokenize`` endpoint gives them."""
    tokens = _mapping(payload).get("tokens")
    if isinstance(tokens, list) and tokens and all(type(token) is int for token in tokens):
        return tokens
    return EngineFailure("no token ids", _excerpt(payload), transient=False)
