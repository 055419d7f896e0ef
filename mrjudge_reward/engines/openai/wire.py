"""Replies in the words of the OpenAI chat protocol, as its many servers speak it; no network here.

What is trusted least is the reply: whatever a server, proxy or load balancer sent back becomes a ``Reply`` or a
``EngineFailure``, and nothing in it is guessed. Read are the shapes of vLLM, SGLang, llama.cpp, TGI, Ollama, LiteLLM,
OpenRouter, Mistral, and of Claude, Gemini, Cohere and others behind OpenAI's protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from mrjudge_reward.engines.structured import StructuredOutput, marked
from mrjudge_reward.reasoning import is_thought
from mrjudge_reward.types import EngineFailure, Reply, Request, Usage

from .server_errors import sentence_of

UNREADABLE = (ValueError, RecursionError)
"""What decoding an answer raises: no JSON, no UTF-8, a number of thousands of digits, lists in lists in lists."""
_FLOOR = -9999.0  # what the protocol writes for minus infinity, which JSON does not have

_STOPPED = frozenset({
    "", "none", "null", "stop", "stopped", "eos", "eos_token", "stop_sequence", "stop_token", "stop_str", "end", "end_turn",
    "complete", "completed", "finished", "done", "finish_reason_unspecified",
})  # fmt: skip
_CUT = frozenset({
    "length", "max_tokens", "max_length", "max_output_tokens", "max_completion_tokens", "max_new_tokens", "token_limit",
    "model_length", "context_length", "model_context_window_exceeded", "error_limit", "limit",
})  # fmt: skip
_REFUSED = frozenset({
    "content_filter", "content_filtered", "safety", "refusal", "recitation", "blocklist", "prohibited_content", "spii",
    "sensitive", "error_toxic", "guardrail", "guardrail_intervened", "image_safety",
})  # fmt: skip
_CALLED = frozenset({"tool_calls", "tool_call", "tool_use", "function_call"})

_REASONING_FIELDS = (
    "reasoning_content", "reasoning", "reasoning_text", "reasoning_details", "thinking", "thinking_blocks", "thought",
    "thoughts",
)  # fmt: skip
"""Where servers set reasoning apart; some say the same in several of them."""
_PLAIN_PARTS = frozenset({"text", "output_text", "input_text", "markdown", ""})
_PART_TEXTS = ("thinking", "reasoning", "reasoning_content", "text", "thought", "content", "summary", "value")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _word(value: Any) -> str:
    """A name as every server spells it: ``FinishReason.MAX_TOKENS`` is ``max_tokens``."""
    return value.strip().lower().replace("-", "_").rpartition(".")[2] if isinstance(value, str) else ""


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return text[:300]


def usage_of(payload: Any) -> Usage:
    """Token counts of a reply; what is absent counts as zero."""

    def count(*names: str) -> int:
        values: list[Any] = [counts.get(name) for counts in (usage, details) for name in names]
        return next((int(value) for value in values if type(value) in (int, float) and 0 < value < 1e12), 0)

    usage = _mapping(_mapping(payload).get("usage"))
    details = _mapping(usage.get("prompt_tokens_details")) or _mapping(usage.get("input_tokens_details"))
    cached = count("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens")
    return Usage(count("prompt_tokens", "input_tokens"), cached, count("completion_tokens", "output_tokens"))


def choice_of(payload: Any) -> Mapping[str, Any] | EngineFailure:
    """The one choice of a reply, or why there is none."""
    if isinstance(payload, str):  # JSON that was served under another content type
        try:
            payload = json.loads(payload)
        except ValueError:
            return EngineFailure("malformed reply", f"not JSON: {_excerpt(sentence_of(payload) or payload)}")
    body = _mapping(payload)
    choices = body.get("choices")
    if body.get("error") or body.get("object") == "error" or (not choices and sentence_of(payload)):
        return EngineFailure("server error", sentence_of(payload) or _excerpt(payload))
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        return EngineFailure("malformed reply", f"expected one choice; got {_excerpt(payload)}")
    if choices[0].get("error"):
        return EngineFailure("server error", sentence_of(choices[0]["error"]) or _excerpt(choices[0]["error"]))
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
    message = _mapping(choice.get("message"))
    said = _Said(message.get("content"))
    ended = choice.get("finish_reason")
    reason = _word(_mapping(ended).get("type") if isinstance(ended, Mapping) else ended)
    refusal = message.get("refusal") or said.refusal
    if reason in _REFUSED or refusal:
        return EngineFailure("refused", _excerpt(refusal or said.text or ended), transient=False)
    if _calls(message) or said.called or (reason in _CALLED and not said.text):
        return EngineFailure("tool call", "the judge called a tool instead of answering")
    finish: Literal["stop", "length"] = "length" if reason in _CUT else "stop"
    told = reason or ended is None or isinstance(ended, str)
    if not told or reason not in _STOPPED | _CUT | _CALLED:
        return EngineFailure("unknown finish", _excerpt(ended))
    reasoning = _reasoning(message) or said.reasoning
    nothing = not said.text and not reasoning and not isinstance(message.get("content"), str)
    if not said.readable or (nothing and finish == "stop"):
        return EngineFailure("malformed reply", f"no text to read in {_excerpt(dict(message))}")
    text = _cut_at(said.text, request.stop)
    if reasoning:
        text = _with_reasoning(reasoning, text, finish, request.prefill)
    if way == "response_format" and request.form is not None:
        text = marked(text, request.form)
    return Reply(text, finish, usage=usage_of(payload))


class _Said:
    """A content taken apart: text, or parts of several kinds. What is of no kind known is passed over beside text.

    Attributes:
        text, reasoning, refusal: what it says.
        called: whether a part calls a tool.
        readable: whether there is anything to read, be it empty.
    """

    def __init__(self, content: Any) -> None:
        self.text = self.reasoning = self.refusal = ""
        self.called = False
        self.readable = content is None or content == []
        for part in content if isinstance(content, list) else [content]:
            self._take(part)

    def _take(self, part: Any) -> None:
        if isinstance(part, str):
            self.text += part
            self.readable = True
            return
        fields = _mapping(part)
        kind = _word(fields.get("type"))
        if kind in ("tool_use", "tool_call", "function_call"):
            self.called = True
        elif kind == "refusal":
            self.refusal += _text_of(fields.get("refusal") or fields) or "refused"
        elif is_thought(fields):
            self.reasoning += _text_of(part) or ""
            self.readable = True
        elif kind in _PLAIN_PARTS and (text := _text_of(fields.get("text", fields.get("value")))) is not None:
            self.text += text
            self.readable = True


def _text_of(value: Any, depth: int = 0) -> str | None:
    """The text in a part or a list of parts; None if there is none. What is encrypted or a signature is no text."""
    if isinstance(value, str):
        return value
    if depth > 6:
        return None
    if isinstance(value, list):
        texts = [text for item in value if (text := _text_of(item, depth + 1)) is not None]
        return "".join(texts) if texts or not value else None
    inner = (_text_of(value[name], depth + 1) for name in _PART_TEXTS if name in _mapping(value))
    return next((text for text in inner if text is not None), None)


def _reasoning(message: Mapping[str, Any]) -> str:
    """Reasoning in a field of its own, of the message or of what a gateway adds to it."""
    for holder in (message, _mapping(message.get("provider_specific_fields")), _mapping(message.get("model_extra"))):
        for name in _REASONING_FIELDS:
            if text := _text_of(holder.get(name)):
                return text
    return ""


def _cut_at(text: str, stop: Sequence[str]) -> str:
    """A text up to the first stop string, as it comes from a server that knows the field."""
    return text[: min((at for end in stop if (at := text.find(end)) >= 0), default=len(text))]


def _calls(message: Mapping[str, Any]) -> bool:
    """Whether a message calls a tool; some servers fill the fields with nothing."""
    return any(_sequence(message.get("tool_calls"))) or bool(_mapping(message.get("function_call")).get("name"))


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
