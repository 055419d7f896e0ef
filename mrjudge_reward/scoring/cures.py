"""What to do about a failure, by its reason; said wherever failures are told, beside the words of the server or parser."""

from __future__ import annotations

import re

_TOO_LONG = re.compile(
    r"context[_ ](?:length|size|window)|max(?:imum)?[_ ](?:model[_ ]len|context|seq)|too (?:long|many (?:\w+ )?tokens)"
    r"|token limit|input length|exceeds? (?:the )?(?:\w+ ){0,3}(?:context|length|tokens)|n_ctx|prompt is longer"
    r"|`inputs` tokens",
    re.IGNORECASE,
)
_FORM = re.compile(r"response_format|structured_outputs|guided_regex|json_schema|grammar|regex", re.IGNORECASE)
_READING = re.compile(r"logprob|continue_final_message|add_generation_prompt|prefill", re.IGNORECASE)
CPU_FLAG = (
    "a vLLM server on a CPU ends with its first batch of seeded requests unless it is started with "
    "--no-enable-chunked-prefill"
)
_READ_INSTEAD = (
    "read label probabilities instead (verdict: logprobs), or hold the judge to its form (structured_output)"
)
_SHORTEN = "set context_tokens to the server's context, or lower max_candidate_tokens or max_tokens"

_CURES = {
    "no anchor": (
        "give every prompt an anchor, the same to all its rows, or leave out what names them (anchor_column, "
        "anchor_field, anchors)"
    ),
    "truncated": "raise max_tokens",
    "unclosed thinking": "raise max_tokens",
    "no verdict": _READ_INSTEAD,
    "off-menu label": _READ_INSTEAD,
    "unclosed verdict": _READ_INSTEAD,
    "labels improbable": "let it think (thinking_tokens), or ask in its own form (template, labels)",
    "label not in top logprobs": "raise top_logprobs, choose other labels, or set verdict: generate",
    "labels share a token": "choose other labels, or set verdict: generate",
    "no log-probabilities": "set verdict: generate, or use a server that gives them (vLLM)",
    "malformed reply": "see that base_url is a server of OpenAI's chat protocol, and look at its log",
    "server error": "look at the server's log",
    "timeout": "raise deadline_s, lower max_concurrency, or look at the server's log",
    "server down": f"look at the server's log; raise outage_wait_s if it needs longer to come back; {CPU_FLAG}",
    "cannot connect": "is the server running, and is base_url its address?",
    "connection lost": f"look at the server's log: it may have ended; {CPU_FLAG}",
    "judge server died": "look at the end of its log",
    "quota": "the account behind api_key_env is out of quota or credit: pay or raise its limit",
    "context": _SHORTEN,
    "tool call": "the server was given tools, or its parser takes the answer for a call: start it without a tool parser",
    "refused": "the judge will not judge this text: use another judge, or filter such prompts",
    "image": "see that the image can be opened; one that is no image fails its group alone",
    "images": "use a judge that sees, or drop the images",
    "http 401": "set the key in the variable that api_key_env names",
    "http 402": "pay, or raise the limit of the account behind api_key_env",
    "http 403": "the key in api_key_env may not use this model: another key, or another model",
    "http 404": "see that model is the name that the server lists, and that base_url ends in /v1",
    "http 405": "see that base_url ends in /v1",
    "http 413": _SHORTEN,
    "http 429": "lower max_concurrency, or raise outage_wait_s",
}
_ASK_DOCTOR = "check the judge (mrjudge doctor)"


def cure_of(reason: str, detail: str = "") -> str:
    """What to do about failures of this reason.

    Args:
        reason: of a ``NoVerdict`` or an ``EngineFailure``.
        detail: what was seen, in the server's own words.

    >>> cure_of("http 400", "This model's maximum context length is 4096 tokens.")
    "set context_tokens to the server's context, or lower max_candidate_tokens or max_tokens"
    """
    if "reasoning_content" in detail and reason == "no verdict":
        return (
            "the server took the whole reply for reasoning: start it with the reasoning parser of this model or with none, "
            "or turn thinking on or off (extra_body: {chat_template_kwargs: {enable_thinking: ...}}); or "
            + _READ_INSTEAD
        )
    if reason in ("http 400", "http 422", "http 500", "invalid request") and _TOO_LONG.search(detail):
        return _SHORTEN
    if reason in ("http 400", "http 422", "http 501"):
        if _FORM.search(detail):
            return (
                "the server cannot hold a judge to a form so: set structured_output to what it knows, or leave it out"
            )
        if _READING.search(detail):
            return "the server cannot read labels so: set verdict: generate"
        return (
            "the server's sentence says what it rejects; extra_body: {FIELD: null} leaves a field out of every request"
        )
    if reason == "http 500":
        return f"look at the server's log; {CPU_FLAG}"
    if reason.startswith("http 5"):
        return "look at the server's log, or at what stands before it; raise outage_wait_s if it needs longer"
    if "shown text and images alone" in detail:
        return f"leave out rows with parts of type {reason}, or do not have them judged (judged_if, judge_weight)"
    return _CURES.get(reason, _ASK_DOCTOR)
