"""Replies and errors in the shapes of the servers that exist, as their sources and documentation show them."""

from __future__ import annotations

import itertools
import json
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Timer
from typing import Any, Literal

import pytest

from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.openai.server_errors import come_again_s, must_be_paid, sentence_of
from mrjudge_reward.engines.openai.wire import top_tokens, usage_of, written_reply
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import as_messages
from mrjudge_reward.prompting.formats import Choice, read_reply
from mrjudge_reward.scoring.cures import cure_of
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Preference, Reply, Request, Sampling, Usage
from tests.support.judge_server import JudgeServer

V = "<answer>A</answer>"
HM = "Is it A or <answer>B</answer>? "


def outcome(choice: Mapping[str, Any], prefill: str = "") -> Any:
    reply = written_reply({"choices": [{"index": 0, **choice}]}, Request(as_messages("Which?"), prefill=prefill))
    return read_reply(Choice(), reply, 2).outcome if isinstance(reply, Reply) else reply


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "finish_reason": "stop"}


TEXT = {"type": "text", "text": V}
READABLE: dict[str, Any] = {
    # content
    "text": said(V),
    "a text part": said([TEXT]),
    "two text parts": said([{"type": "text", "text": "<answer>"}, {"type": "text", "text": "A</answer>"}]),
    "an output_text part (Responses API)": said([{"type": "output_text", "text": V, "annotations": []}]),
    "a part without a type (Gemini)": said([{"text": V}]),
    "a part that is text": said([V]),
    "one part, no list": said({"type": "text", "text": V}),
    "text with annotations (Assistants API)": said([{"type": "text", "text": {"value": V, "annotations": []}}]),
    "a part of a kind unknown beside text": said([{"type": "citation", "source": "x"}, TEXT]),
    "null parts": said([None, TEXT]),
    # reasoning in parts
    "thinking, a list (Mistral)": said([{"type": "thinking", "thinking": [{"type": "text", "text": HM}]}, TEXT]),
    "thinking, closed (Mistral)": said(
        [{"type": "thinking", "closed": True, "thinking": [{"type": "text", "text": HM}]}, TEXT]
    ),
    "thinking, text (Claude)": said([{"type": "thinking", "thinking": HM, "signature": "x"}, TEXT]),
    "redacted thinking (Claude)": said([{"type": "redacted_thinking", "data": "<answer>B</answer>"}, TEXT]),
    "reasoning (LangChain)": said([{"type": "reasoning", "reasoning": HM}, TEXT]),
    "reasoning, summary (Responses API)": said(
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": HM}], "encrypted_content": "x"}, TEXT]
    ),
    "reasoning_content (Bedrock)": said([{"type": "reasoning_content", "reasoning_content": {"text": HM}}, TEXT]),
    "thought: true (Gemini)": said([{"text": HM, "thought": True}, {"text": V, "thoughtSignature": "x"}]),
    # reasoning in a field
    **{
        f"reasoning in {name}": said(V, **{name: HM})
        for name in ("reasoning_content", "reasoning", "thinking", "reasoning_text", "thought", "thoughts")
    },
    "reasoning null": said(V, reasoning=None, reasoning_content=None),
    "reasoning in two fields (vLLM, OpenRouter)": said(V, reasoning=HM, reasoning_content=HM),
    "reasoning_details (OpenRouter, MiniMax)": said(V, reasoning_details=[{"type": "reasoning.text", "text": HM}]),
    "reasoning_details, summary": said(V, reasoning_details=[{"type": "reasoning.summary", "summary": HM}]),
    "reasoning_details, encrypted": said(V, reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}]),
    "thinking_blocks (LiteLLM)": said(V, thinking_blocks=[{"type": "thinking", "thinking": HM, "signature": "x"}]),
    "thinking_blocks, nothing in them": said(V, thinking_blocks=[]),
    "a field of the provider (LiteLLM)": said(V, provider_specific_fields={"reasoning_content": HM}),
    "reasoning that is no text": said(V, reasoning={"effort": "low"}),
    # nulls and empties of vLLM, SGLang, llama.cpp, Azure, DeepSeek
    "nulls everywhere": said(V, refusal=None, tool_calls=None, function_call=None, audio=None, annotations=None),
    "no calls in a list": said(V, tool_calls=[]),
    "null calls in a list": said(V, tool_calls=[None]),
    "an empty function call": said(V, function_call={}),
    "a function call without a name": said(V, function_call={"name": "", "arguments": ""}),
    "an empty refusal": said(V, refusal=""),
    "more fields of a choice": said(V)
    | {"logprobs": None, "matched_stop": 151645, "stop_reason": None, "hidden_states": None, "native_finish_reason": "STOP",
       "content_filter_results": {"hate": {"filtered": False}}, "token_ids": None, "routed_experts": None},
    # finish reasons
    **{
        f"finish {finish!r}": said(V) | {"finish_reason": finish}
        for finish in (
            None, "", " ", "stop", "STOP", "Stop", "eos", "EOS_TOKEN", "stop_sequence", "end_turn", "COMPLETE", "completed",
            "FinishReason.STOP", "stop-sequence", "tool_calls", {"type": "stop", "matched": 2}, "FINISH_REASON_UNSPECIFIED",
        )
    },
    "no finish reason": {"message": {"content": V}},
}  # fmt: skip


@pytest.mark.parametrize("shape", READABLE)
def test_a_verdict_is_read_in_every_shape_a_server_gives_it(shape: str) -> None:
    assert outcome(READABLE[shape]) == Preference((1.0, 0.0))


@pytest.mark.parametrize(
    "finish",
    ["length", "LENGTH", "Length", "max_tokens", "MAX_TOKENS", "model_length", "max_output_tokens",
     "FinishReason.MAX_TOKENS", "model_context_window_exceeded", {"type": "length", "length": 9}],
)  # fmt: skip
@pytest.mark.parametrize("content", [V, "", None, [], [TEXT]], ids=repr)
def test_a_reply_that_was_cut_is_truncated_whatever_it_holds(finish: Any, content: Any) -> None:
    for more in ({}, {"reasoning_content": HM}):
        assert outcome(said(content, **more) | {"finish_reason": finish}).reason == "truncated"


FAILED: dict[str, tuple[Any, str, str]] = {
    "all in reasoning_content": (said(None, reasoning_content=f"A is kinder. {V}"), "no verdict", "reasoning_content"),
    "all in reasoning, content empty": (said("", reasoning=f"A is kinder. {V}"), "no verdict", "reasoning_content"),
    "all in a thinking part": (said([{"type": "thinking", "thinking": V}]), "no verdict", "reasoning_content"),
    "a verdict in a call's arguments": (
        said(None, tool_calls=[{"function": {"name": "answer", "arguments": V}}]), "tool call", "tool"),
    "a tool_use part (Claude)": (said([{"type": "tool_use", "name": "x", "input": {}}, TEXT]), "tool call", "tool"),
    "finish tool_calls, nothing said": (said(None) | {"finish_reason": "tool_calls"}, "tool call", "tool"),
    "an old function call": (said(None, function_call={"name": "x", "arguments": "{}"}), "tool call", "tool"),
    "refusal": (said(None, refusal="I cannot."), "refused", "I cannot."),
    "a refusal part": (said([{"type": "refusal", "refusal": "I cannot."}]), "refused", "I cannot."),
    "finish content_filter": (said("") | {"finish_reason": "content_filter"}, "refused", "content_filter"),
    "finish SAFETY (Gemini)": (said(V) | {"finish_reason": "SAFETY"}, "refused", ""),
    "finish sensitive (GLM)": (said("") | {"finish_reason": "sensitive"}, "refused", "sensitive"),
    "finish abort (SGLang, vLLM)": (said(V) | {"finish_reason": "abort"}, "unknown finish", "abort"),
    "finish error": (said(V) | {"finish_reason": "error"}, "unknown finish", "error"),
    "finish insufficient_system_resource (DeepSeek)": (
        said(V) | {"finish_reason": "insufficient_system_resource"}, "unknown finish", "insufficient"),
    "finish 7": (said(V) | {"finish_reason": 7}, "unknown finish", "7"),
    "an error in the choice (OpenRouter)": (
        {"error": {"code": 502, "message": "Upstream idle"}, "finish_reason": "error", "message": {"content": ""}},
        "server error", "Upstream idle"),
    "no text in the parts": (said([{"type": "image_url", "image_url": {}}]), "malformed reply", "image_url"),
    "content a number": (said(7), "malformed reply", "7"),
    "no message": ({"finish_reason": "stop"}, "malformed reply", ""),
    "message null": ({"message": None, "finish_reason": "stop"}, "malformed reply", ""),
    "deeply nested": (said([json.loads("[" * 50 + '"A"' + "]" * 50)]), "malformed reply", ""),
}  # fmt: skip


@pytest.mark.parametrize("shape", FAILED)
def test_a_reply_without_a_verdict_is_a_failure_that_says_what_came(shape: str) -> None:
    choice, reason, says = FAILED[shape]
    found = outcome(choice)
    assert isinstance(found, NoVerdict | EngineFailure)
    assert found.reason == reason
    assert says in found.detail


def test_no_mixture_of_shapes_invents_a_verdict() -> None:
    """Content, reasoning and finish in all combinations: a preference comes only out of a content that holds it."""
    contents = [None, "", [], "Hm.", V, [TEXT], [{"type": "thinking", "thinking": HM}], 7]
    fields: list[dict[str, Any]] = [
        {},
        {"reasoning": V},
        {"reasoning_content": HM},
        {"tool_calls": []},
        {"refusal": "No."},
    ]
    finishes = ["stop", None, "length", "abort", "content_filter", "", 7]
    for content, more, finish in itertools.product(contents, fields, finishes):
        found = outcome(said(content, **more) | {"finish_reason": finish})
        good = content in (V, [TEXT]) and finish in ("stop", None, "") and "refusal" not in more
        assert isinstance(found, Preference) is good, (content, more, finish, found)


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        ({"error": {"message": "No.", "type": "x", "code": 500}}, "server error", "No."),
        ({"error": "Model is overloaded", "error_type": "overloaded"}, "server error", "overloaded"),
        ({"object": "error", "message": "No.", "code": 400}, "server error", "No."),
        ({"error": {"message": "No."}, "choices": [said(V)]}, "server error", "No."),
        ({"detail": "Not Found"}, "server error", "Not Found"),
        ({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "no balance"}}, "server error", "balance"),
        ([{"error": {"code": 429, "message": "Slow down."}}], "server error", "Slow down."),
        ({"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}, "malformed reply", "SAFETY"),
        ({"choices": [said(V), said(V)]}, "malformed reply", "one choice"),
        ({"choices": {}}, "malformed reply", "one choice"),
        ("<html><title>Sign in</title></html>", "malformed reply", "Sign in"),
    ],
)  # fmt: skip
def test_an_error_that_came_as_200_is_told_in_the_servers_words(body: Any, reason: str, says: str) -> None:
    failure = written_reply(body, Request(as_messages("Which?")))
    assert isinstance(failure, EngineFailure)
    assert (failure.reason, says in failure.detail) == (reason, True), failure


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}, Usage(9, 0, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}, Usage(9, 4, 2)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 4}, Usage(9, 4, 2)),  # Moonshot
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, Usage(9, 4, 2)),  # DeepSeek
        ({"input_tokens": 9, "output_tokens": 2, "cache_read_input_tokens": 4}, Usage(9, 4, 2)),  # Claude
        ({"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}, Usage(9, 4, 2)),
        ({"prompt_tokens": 9.0, "completion_tokens": "2"}, Usage(9, 0, 0)),
        ({"prompt_tokens": True, "completion_tokens": float("inf")}, Usage()),
        ({"prompt_tokens": -1, "completion_tokens": float("nan")}, Usage()),
        (None, Usage()),
        ([], Usage()),
    ],
)
def test_usage_is_read_under_every_name(usage: Any, expected: Usage) -> None:
    assert usage_of({"usage": usage}) == expected


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": None}, {"content": []}, {"content": [None]}, {"content": [{"top_logprobs": None}]}, [], "x",
     {"content": [{"token": None, "logprob": None, "top_logprobs": [None, {"token": 1, "logprob": "x"}]}]},
     {"content": [{"token": "A", "logprob": float("nan"), "bytes": None}]}, {"tokens": ["A"], "token_logprobs": [-1.0]}],
)  # fmt: skip
def test_log_probabilities_that_are_none_are_none(logprobs: Any) -> None:
    assert top_tokens({"choices": [said(V) | {"logprobs": logprobs}]}) == {}


# -- errors ---------------------------------------------------------------------------------------------------------------

SENTENCES: list[tuple[Any, str]] = [
    ({"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}},
     "The model `m` does not exist."),  # vLLM
    ({"error": {"message": "Unsupported value", "param": "seed"}}, "Unsupported value (param: seed)"),  # OpenAI
    ({"object": "error", "message": "Requested token count exceeds", "type": "BadRequest", "param": None, "code": 400},
     "Requested token count exceeds"),  # SGLang, older vLLM
    ({"error": {"code": 400, "message": "request (9412 tokens) exceeds", "type": "exceed_context_size_error", "n_ctx": 8}},
     "request (9412 tokens) exceeds"),  # llama.cpp
    ({"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"},
     "Input validation error: `temperature` must be strictly positive"),  # TGI
    ({"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": '{"error":{"message":"Too hot"}}'}}},
     "Too hot"),  # OpenRouter
    ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "Overloaded"),  # Claude
    ([{"error": {"code": 400, "message": 'Unknown name "seed": Cannot find field.', "status": "INVALID_ARGUMENT"}}],
     'Unknown name "seed": Cannot find field.'),  # Gemini
    ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 7}]},
     "seed: Extra inputs are not permitted"),  # Mistral, FastAPI
    ({"detail": {"error_type": "rate_limit", "message": "Try later"}}, "Try later"),
    ({"detail": "Not Found"}, "Not Found"),
    ({"message": "invalid api token"}, "invalid api token"),  # Cohere
    ({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "insufficient balance"),  # MiniMax
    ({"error": {"message": "{\"error\": {\"message\": \"inner\"}}"}}, "inner"),  # a gateway around another
    ({"error": {"code": "DeploymentNotFound", "message": ""}}, "DeploymentNotFound"),
    ({"error": True}, ""),
    ("<html><head><title>502 Bad Gateway</title></head><body><h1>no</h1></body></html>", "502 Bad Gateway"),
    ("<html><body><h1>Service&nbsp;Unavailable</h1></body></html>", "Service Unavailable"),
    ("upstream connect error", "upstream connect error"),
    ("", ""),
    (None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "sentence"), SENTENCES)
def test_the_servers_own_sentence_is_found_in_every_shape(body: Any, sentence: str) -> None:
    assert sentence_of(body) == sentence
    assert sentence_of(json.dumps(body)) == sentence or isinstance(body, str | None)


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("<p>Bad <b>gate</b>way</p>", "Bad gate way"),
        ("<style>p { x: 1 }</style><p>Busy</p><SCRIPT>if (a < b) {}</script>", "Busy"),
        ("<p>Busy</p><script>never closed < 1 >", "Busy"),
        ("<html><title>Busy", "Busy"),
        ("<p>Busy<br", "Busy"),
        ("<p>5 < 6 and <i>so</i></p>", "5 < 6 and so"),
    ],
)
def test_a_page_says_what_a_reader_sees_of_it(page: str, sentence: str) -> None:
    assert sentence_of(page) == sentence


@pytest.mark.parametrize(
    "piece",
    ["<", "<a", "<a ", "<>", "<script", "<script ", "<style>", "<title>", "<title", "</", "<!--", "&", "&#", "<&lt;"],
)
def test_a_page_of_any_size_is_read_at_once(piece: str) -> None:
    began = time.thread_time()
    assert len(sentence_of(piece * (1_000_000 // len(piece)))) <= 500
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize(
    ("headers", "words", "seconds"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"retry-after": "-3"}, "", 0.0),
        ({"retry-after-ms": "250", "retry-after": "1"}, "", 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, "", 0.0),
        ({"retry-after": "soon"}, "", None),
        ({}, "Rate limit reached. Please try again in 1.2s.", 1.2),
        ({}, "Please try again in 6m0s.", 360.0),
        ({}, "Please try again in 1h2m3s.", 3723.0),
        ({}, "try again in 250ms", 0.25),
        ({}, '{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "11s"}', 11.0),
        ({}, "Please retry in 17.5s", 17.5),
        ({}, "Rate limit exceeded", None),
        ({}, "try again in a while", None),
    ],
)
def test_when_to_come_again_is_read_from_headers_and_words(
    headers: dict[str, str], words: str, seconds: float | None
) -> None:
    assert come_again_s(headers, words) == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize(
    ("status", "said", "again", "paid"),
    [
        (429, '{"error":{"type":"insufficient_quota","message":"You exceeded your current quota"}}', None, True),
        (429, '{"error":{"message":"You exceeded your current quota"}}', 11.0, False),  # Gemini: a rate, with a delay
        (429, "Rate limit reached for requests", None, False),
        (402, "anything", None, True),
        (400, "Your credit balance is too low to access the API", None, True),  # Claude
        (403, "This account has insufficient balance", None, True),
        (403, "Forbidden", None, False),
        (404, "no billing page here", None, False),
        (500, "billing", None, False),
        (429, "check your plan and billing details", None, True),
    ],
)
def test_a_bill_is_told_from_a_rate(status: int, said: str, again: float | None, paid: bool) -> None:
    assert must_be_paid(status, said, again) is paid


@pytest.mark.parametrize(
    ("reason", "detail", "cure"),
    [
        ("no verdict", "it ends: 'I prefer B.'", "verdict: logprobs"),
        ("no verdict", "it ends: 'I prefer B.'", "structured_output"),
        ("no verdict", "nothing follows its reasoning (reasoning_content, where ...)", "reasoning parser"),
        ("http 400", "This model's maximum context length is 4096 tokens. However, you requested 5000", "context_tokens"),
        ("http 400", "The input (5000 tokens) is longer than the model's context length (4096 tokens).", "context_tokens"),
        ("http 400", "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it",
         "context_tokens"),
        ("http 422", "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096", "context_tokens"),
        ("http 400", "prompt is too long: 210000 tokens > 200000 maximum", "context_tokens"),
        ("http 500", "the input exceeds the context window", "max_candidate_tokens"),
        ("http 400", "response_format is not supported", "structured_output"),
        ("http 400", "logprobs is not supported", "verdict: generate"),
        ("http 400", "top_k must be positive", "extra_body"),
        ("http 401", "Incorrect API key", "api_key_env"),
        ("http 403", "no access", "api_key_env"),
        ("http 404", "The model `m` does not exist.", "model is the name"),
        ("http 404", "Not Found", "/v1"),
        ("cannot connect", "connection refused", "is the server running"),
        ("connection lost", "Server disconnected", "--no-enable-chunked-prefill"),
        ("http 500", "EngineCore encountered an issue", "--no-enable-chunked-prefill"),
        ("quota", "http 429: You exceeded your current quota", "pay"),
        ("http 429", "slow down", "max_concurrency"),
        ("timeout", "no answer within 120 s", "deadline_s"),
        ("server down", "no answer within 120 s", "outage_wait_s"),
        ("truncated", "after 9 tokens", "max_tokens"),
        ("RuntimeError", "boom", "mrjudge doctor"),
    ],
)  # fmt: skip
def test_a_failure_comes_with_its_cure(reason: str, detail: str, cure: str) -> None:
    assert cure in cure_of(reason, detail)


# -- fields that a server rejects, over a socket ------------------------------------------------------------------------

ASKED = Request(as_messages("Which?"), sampling=Sampling(0.7, 0.9, 5), stop=("</x>",), seed=7)


def rejecting(*rules: tuple[str, Callable[[Mapping[str, Any]], bool]]) -> Callable[[Mapping[str, Any]], str | None]:
    def answer(body: Mapping[str, Any]) -> str | None:
        return next((words for words, rejects in rules if rejects(body)), None)

    return answer


REJECTIONS: dict[str, tuple[Any, str, str]] = {
    # what is rejected: the error, the field, and by what it is replaced
    "OpenAI, max_tokens": ({"error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.",
        "param": "max_tokens", "code": "unsupported_parameter"}}, "max_tokens", "max_completion_tokens"),
    "OpenAI, temperature": ({"error": {
        "message": "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is "
        "supported.", "param": "temperature", "code": "unsupported_value"}}, "temperature", ""),
    "OpenAI, top_p": ({"error": {"message": "Unsupported parameter.", "param": "top_p"}}, "top_p", ""),
    "OpenAI, stop": ({"error": {"message": "Unsupported parameter: 'stop' is not supported with this model."}}, "stop", ""),
    "xAI, stop": ({"error": "Argument not supported on this model: stop"}, "stop", ""),
    "Gemini, seed": ([{"error": {"message": 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'}}],
                     "seed", ""),
    "Mistral, seed": ({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"],
                                   "msg": "Extra inputs are not permitted"}]}, "seed", ""),
    "Claude, temperature": ({"error": {"message": "`temperature` is deprecated for this model."}}, "temperature", ""),
    "a gateway, seed": ({"message": "Unrecognized request argument supplied: seed"}, "seed", ""),
    "a gateway, max_completion_tokens": ({"error": {"message": "unknown field max_completion_tokens"}},
                                         "max_completion_tokens", "max_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("server", REJECTIONS)
def test_a_field_that_a_server_rejects_is_left_out_where_that_is_safe_and_that_is_said_once(
    server: str, caplog: pytest.LogCaptureFixture
) -> None:
    error, field, instead = REJECTIONS[server]
    with JudgeServer(lambda _: "kept</x>cut", rejects=lambda body: error if field in body else None) as judge:
        bound: Any = field if field == "max_completion_tokens" else "max_tokens"
        engine = OpenAIEngine("judge", judge.base_url, token_parameter=bound, max_concurrency=2)
        with caplog.at_level(logging.WARNING, "mrjudge_reward"):
            replies = engine.generate([ASKED] * 6)
        engine.close()
        taken = judge.requests[-1]
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["kept"] * 6
    assert field not in taken
    assert not instead or taken[instead] == 5
    assert len(judge.requests) <= 6 + 2, "remembered after the first answers"
    assert len([record for record in caplog.records if field in record.message]) == 1


def test_several_rejected_fields_are_found_one_by_one() -> None:
    sentences = {
        "max_tokens": "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "temperature": "'temperature' does not support 0.7 with this model.",
        "seed": "Unknown name \"seed\"", "top_p": "top_p is not supported", "stop": "unsupported parameter: stop",
    }  # fmt: skip

    def rejects(body: Mapping[str, Any]) -> Any:
        return next(({"error": {"message": said}} for name, said in sentences.items() if name in body), None)

    with JudgeServer(lambda _: V, rejects=rejects) as server:
        engine = OpenAIEngine("judge", server.base_url)
        assert engine.generate([ASKED])[0] == Reply(V, usage=engine.generate([ASKED])[0].usage)  # type: ignore[union-attr]
        engine.close()
        assert server.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}
        assert len(server.requests) == 7


KEPT: list[tuple[Any, str]] = [
    ({"error": {"message": "This model's maximum context length is 16 tokens. However, you requested 20 tokens (15 in the "
                "messages, 5 in `max_tokens`). Please reduce the length."}}, "maximum context length"),
    ({"error": {"message": "max_tokens is too large: 5. This model supports at most 4 completion tokens.",
                "param": "max_tokens"}}, "too large"),
    ({"error": {"message": "Invalid 'temperature': decimal above maximum value. Expected a value <= 0.5.",
                "param": "temperature"}}, "above maximum"),
    ({"error": {"message": "top_k is not supported"}}, "top_k"),
    ({"error": {"message": "response_format is not supported"}}, "response_format"),
    ({"error": {"message": "Please stop sending unknown things"}}, "Please stop"),
    ({"detail": "There was an error parsing the body"}, "parsing the body"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "says"), KEPT)
def test_what_is_not_safe_to_leave_out_is_a_failure_that_names_it(error: Any, says: str) -> None:
    with JudgeServer(lambda _: V, rejects=lambda body: error) as server:
        engine = OpenAIEngine("judge", server.base_url, extra_body={"top_k": 3})
        failure = engine.generate([ASKED])[0]
        engine.close()
        assert len(server.requests) <= 2
    assert isinstance(failure, EngineFailure)
    assert (failure.reason, says in failure.detail, failure.transient) == ("http 400", True, False)


def test_a_field_that_the_user_set_is_not_left_out() -> None:
    error = {"error": {"message": "'temperature' is not supported"}}
    with JudgeServer(lambda _: V, rejects=lambda body: error if "temperature" in body else None) as server:
        engine = OpenAIEngine("judge", server.base_url, extra_body={"temperature": 0.3})
        (failure,) = engine.generate([ASKED])
        engine.close()
    assert isinstance(failure, EngineFailure)
    assert "'temperature'" in failure.detail


def test_a_judge_of_a_hosted_reasoning_model_gives_its_verdicts_though_it_takes_none_of_our_fields() -> None:
    known = {"model", "messages", "max_completion_tokens"}

    def rejects(body: Mapping[str, Any]) -> Any:
        unknown = sorted(body.keys() - known)
        return (
            {"error": {"message": f"Unsupported parameter: '{unknown[0]}' is not supported with this model."}}
            if unknown
            else None
        )

    with JudgeServer(rejects=rejects, reads="none") as server:
        settings: dict[str, Any] = {"model": "judge", "base_url": server.base_url, "schedule": "all_pairs"}
        judge = JudgeConfig(**settings, verdict="auto", format="choice").build()
        judgement = judge.rank("q", ["a", "bb", "ccc"])
        judge.close()
    assert judgement.order == (2, 1, 0)
    assert not any(item.verdict.failed for item in judgement.played)


# -- outages, rates, quotas: over a socket -------------------------------------------------------------------------------


def asks(count: int) -> list[Request]:
    return [Request(as_messages(f"question {number}")) for number in range(count)]


def reasons(replies: list[Reply | EngineFailure]) -> Counter[str]:
    return Counter(reply.reason if isinstance(reply, EngineFailure) else "" for reply in replies)


class Stall:
    """A server's answers stand still once, from the first request on."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds

    def __call__(self, body: Mapping[str, Any]) -> str:
        time.sleep(max(0.0, self.until - time.monotonic()))
        return V


def test_one_stall_a_little_longer_than_the_deadline_loses_nothing() -> None:
    with JudgeServer(Stall(1.6)) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=8, deadline_s=1.0)
        assert reasons(engine.generate(asks(200))) == {"": 200}
        assert len(server.requests) <= 200 + 8 + 3, "one probed; those in flight were asked once more"
        engine.close()


def test_a_silent_server_is_probed_by_one_request_at_a_time() -> None:
    with JudgeServer(lambda _: V) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=8, deadline_s=1.0, outage_wait_s=30.0)
        assert reasons(engine.generate(asks(8))) == {"": 8}
        server.all_fail, before = "drop", len(server.requests)
        calls: list[Any] = []
        caller = threading.Thread(target=lambda: calls.extend(engine.generate(asks(40))))
        caller.start()
        time.sleep(3.0)
        tried = len(server.requests) - before
        server.all_fail = None
        caller.join(30)
        assert reasons(calls) == {"": 40}
        assert tried <= 8 * 3 + 6, "three tries each until it is known, then one at a time"
        engine.close()


@pytest.mark.parametrize("fault", ["hang", "drop", "503"])
def test_an_outage_longer_than_its_budget_fails_all_as_retriable_and_ends_with_the_first_answer(fault: str) -> None:
    with JudgeServer(lambda _: V) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=4, deadline_s=0.6, outage_wait_s=1.0)
        assert reasons(engine.generate(asks(4))) == {"": 4}
        server.all_fail = fault
        started = time.monotonic()
        failures = engine.generate(asks(60))
        assert 1.0 < time.monotonic() - started < 8.0, "a budget and some deadlines, not one per wave"
        assert reasons(failures) == {{"hang": "server down", "drop": "connection lost", "503": "http 503"}[fault]: 60}
        assert all(failure.transient for failure in failures if isinstance(failure, EngineFailure))
        server.all_fail = None
        time.sleep(0.7)
        assert reasons(engine.generate(asks(8))) == {"": 8}
        engine.close()


def test_one_connection_that_hangs_beside_others_costs_one_request_which_may_be_asked_again() -> None:
    with JudgeServer(lambda _: V, faults=["hang"], delay_s=0.06) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=2, deadline_s=1.0)
        replies = engine.generate(asks(30))
        engine.close()
    assert reasons(replies) == {"": 29, "timeout": 1}
    assert all(reply.transient for reply in replies if isinstance(reply, EngineFailure))


def test_the_last_request_that_hangs_is_asked_again_since_nothing_is_known_of_the_server() -> None:
    with JudgeServer(lambda _: V, faults=["hang"]) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=2, deadline_s=1.0)
        assert reasons(engine.generate(asks(30))) == {"": 30}
        engine.close()


def test_a_server_that_stops_amid_its_answers_loses_none() -> None:
    stop = threading.Event()

    def answer(body: Mapping[str, Any]) -> str:
        if not stop.is_set() and int(body["messages"][-1]["content"].split()[-1]) >= 60:
            stop.set()
            stalled.until = time.monotonic() + 1.4
        return stalled(body)

    stalled = Stall(0.0)
    with JudgeServer(answer, delay_s=0.03) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=8, deadline_s=1.0)
        assert reasons(engine.generate(asks(150))) == {"": 150}
        engine.close()


def test_a_server_that_is_killed_and_started_again_after_the_deadline_loses_none() -> None:
    with JudgeServer(lambda _: V, delay_s=0.05) as first:
        engine = OpenAIEngine("judge", first.base_url, max_concurrency=4, deadline_s=0.6, outage_wait_s=30.0)
        found: list[Any] = []
        caller = threading.Thread(target=lambda: found.extend(engine.generate(asks(60))))
        caller.start()
        first.wait_until(lambda server: len(server.requests) > 20)
    time.sleep(1.5)
    with JudgeServer(lambda _: V, port=first.port):
        caller.join(30)
        engine.close()
    assert reasons(found) == {"": 60}


def test_a_request_that_is_too_long_for_its_deadline_is_not_asked_for_ever() -> None:
    with JudgeServer(lambda _: V, delay_s=1.5) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=4, deadline_s=0.5, outage_wait_s=1.0)
        assert set(reasons(engine.generate(asks(4)))) <= {"timeout", "server down"}
        engine.close()


def test_a_long_retry_after_is_waited_out_though_it_is_longer_than_the_deadline() -> None:
    with JudgeServer(lambda _: V, faults=["429"] * 4, retry_after="2") as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=4, deadline_s=0.5)
        started = time.monotonic()
        assert reasons(engine.generate(asks(40))) == {"": 40}
        assert 2.0 <= time.monotonic() - started < 6.0
        assert len(server.requests) == 44, "it is asked when it said, not before"
        engine.close()


def test_a_retry_after_beyond_the_budget_fails_at_once_and_says_so() -> None:
    with JudgeServer(lambda _: V, retry_after="3600") as server:
        server.all_fail = "429"
        engine = OpenAIEngine("judge", server.base_url, deadline_s=0.5, outage_wait_s=5.0)
        (failure,) = engine.generate(asks(1))
        engine.close()
    assert isinstance(failure, EngineFailure)
    assert failure.reason == "http 429"
    assert "planned 429; it asks to come again in 3600 s" in failure.detail


@pytest.mark.parametrize("asked", ["1", "7", "30", "3600", "1e9", "Fri, 31 Dec 9999 23:59:59 GMT"])
@pytest.mark.parametrize("status", ["500", "503"])
def test_a_server_that_wants_to_be_left_alone_for_longer_than_there_is_time_is_asked_within_it(
    status: str, asked: str
) -> None:
    with JudgeServer(lambda _: V, faults=[None, status], retry_after=asked) as server:
        engine = OpenAIEngine("judge", server.base_url, max_concurrency=4, deadline_s=2.0, outage_wait_s=1.0)
        started = time.monotonic()
        assert reasons(engine.generate(asks(8))) == {"": 8}
        assert 0.3 < time.monotonic() - started < 6.0
        engine.close()


ODD_BYTES = {
    "no UTF-8": b'{"choices": [{"message": {"content": "\xff<answer>A</answer>"}}], "data": "\xff"}',
    "lists in lists": b"[" * 200_000,
    "a huge number": b'{"choices": [], "created": 1' + b"0" * 5000 + b"}",
    "half": b'{"choices": [{',
    "nothing": b"",
    "a lone minus": b"-",
}


@pytest.mark.parametrize("sent", ODD_BYTES.values(), ids=ODD_BYTES)
def test_bytes_that_cannot_be_decoded_are_a_malformed_reply_and_told_facts_are_done_without(sent: bytes) -> None:
    with JudgeServer(lambda _: V, facts={"/v1/chat/completions": sent}) as server:
        engine = OpenAIEngine("judge", server.base_url, deadline_s=5.0)
        (failure,) = engine.generate(asks(1))
        engine.close()
        assert isinstance(failure, EngineFailure)
        assert (failure.reason, failure.transient) == ("malformed reply", True)
    with JudgeServer(lambda _: V, facts=dict.fromkeys(("/v1/models", "/props", "/info", "/tokenize"), sent)) as server:
        judge = JudgeConfig(model="judge", base_url=server.base_url, api_key_env="", verdict="generate").build()
        assert None not in judge.rank("Which?", ["short", "somewhat longer"]).scores_G
        judge.close()


def test_a_quota_that_is_used_up_is_not_asked_again() -> None:
    error = {
        "error": {
            "message": "You exceeded your current quota",
            "type": "insufficient_quota",
            "code": "insufficient_quota",
        }
    }
    with JudgeServer(rejects=lambda body: error, rejects_with=429) as server:
        engine = OpenAIEngine("judge", server.base_url)
        (failure,) = engine.generate(asks(1))
        engine.close()
        assert len(server.requests) == 1
    assert failure == EngineFailure("quota", "http 429: You exceeded your current quota", transient=False)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:1/v1", "connection refused"),
        ("http://no.such.host.invalid/v1", "name is not known"),
        ("https://127.0.0.1:{port}/v1", "TLS"),
        ("http://[::1]:1/v1", "connection"),
    ],
)
def test_a_connection_that_cannot_be_made_names_its_cause(url: str, says: str) -> None:
    with JudgeServer() as server:
        engine = OpenAIEngine("judge", url.format(port=server.port), deadline_s=0.5, outage_wait_s=60.0)
        started = time.monotonic()
        (failure,) = engine.generate(asks(1))
        engine.close()
    assert time.monotonic() - started < 20, "what was never reached is not waited for"
    assert isinstance(failure, EngineFailure)
    assert failure.reason == "cannot connect"
    assert says in failure.detail


@contextmanager
def address_that(first: Literal["refuses", "ignores"], then_after_s: float = math.inf) -> Iterator[str]:
    """A port that refuses connections, or lets them hang, and after a while does the other."""
    taken = [socket.create_server(("127.0.0.1", 0), backlog=0)]
    port = taken[0].getsockname()[1]

    def fill() -> None:
        for _ in range(4):  # once its queue is full, Linux answers no further attempt
            taken.append(socket.socket())
            taken[-1].setblocking(False)
            taken[-1].connect_ex(("127.0.0.1", port))

    def empty() -> None:
        while taken:
            taken.pop().close()

    def listen() -> None:
        taken.append(socket.create_server(("127.0.0.1", port), backlog=0))
        fill()

    (fill if first == "ignores" else empty)()
    change = Timer(min(then_after_s, 1e6), empty if first == "ignores" else listen)
    change.daemon = True
    change.start()
    yield f"http://127.0.0.1:{port}/v1"
    change.cancel()
    change.join()
    empty()


@pytest.mark.parametrize(
    ("first", "then_after_s"),
    [
        ("ignores", math.inf),  # a wrong address behind a firewall
        ("ignores", 0.7),  # noticed after the deadline, as on a busy machine
        ("refuses", 0.15),  # noticed before, and the next try ran out of time
        ("refuses", math.inf),
    ],
)
@pytest.mark.parametrize("deadline_s", [0.4, 0.6])
def test_a_server_never_reached_has_one_deadline_however_it_keeps_silent(
    first: Literal["refuses", "ignores"], then_after_s: float, deadline_s: float
) -> None:
    with address_that(first, then_after_s) as url:
        engine = OpenAIEngine("judge", url, deadline_s=deadline_s, outage_wait_s=60.0)
        started = time.monotonic()
        failures = engine.generate(asks(3))
        engine.close()
    assert time.monotonic() - started < 20
    assert {failure.reason for failure in failures if isinstance(failure, EngineFailure)} == {"cannot connect"}
    assert len(failures) == 3


def test_a_key_that_the_server_quotes_is_not_told() -> None:
    error = {"error": {"message": "Incorrect API key provided: sk-secret-key"}}
    with JudgeServer(rejects=lambda body: error, rejects_with=401) as server:
        engine = OpenAIEngine("judge", server.base_url, api_key="sk-secret-key")
        (failure,) = engine.generate(asks(1))
        engine.close()
    assert failure == EngineFailure("http 401", "Incorrect API key provided: ***", transient=False)


def test_a_judge_loses_nothing_to_one_stall() -> None:
    with JudgeServer(Stall(1.5)) as server:
        settings: dict[str, Any] = {
            "model": "judge",
            "base_url": server.base_url,
            "deadline_s": 1.0,
            "max_concurrency": 8,
        }
        judge = JudgeConfig(**settings, schedule="ring", verdict="generate").build()
        judged = judge.judge([Group.of(f"q{number}", list("abcd"), str(number)) for number in range(20)])
        judge.close()
    assert not [item for group in judged for item in group.played if item.verdict.failed]


@pytest.mark.parametrize(("holds_s", "gone_s"), [(0.2, 0.7), (0.8, 0.1), (0.8, 0.8), (1.3, 0.5)])
def test_a_server_that_took_a_connection_and_went_away_before_its_first_answer_is_waited_for(
    holds_s: float, gone_s: float
) -> None:
    """As one does that restarts while it loads its model."""
    holding = socket.create_server(("127.0.0.1", 0))
    port = holding.getsockname()[1]
    engine = OpenAIEngine("judge", f"http://127.0.0.1:{port}/v1", deadline_s=0.5, outage_wait_s=20.0)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(engine.generate, asks(1))
        time.sleep(holds_s)
        holding.close()
        time.sleep(gone_s)
        with JudgeServer(port=port):
            (reply,) = answer.result()
    engine.close()
    assert isinstance(reply, Reply)
