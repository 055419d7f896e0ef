"""Whether what a verl run asks of the judge fits: tokens into its context, calls into Ray's and the judge's limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mrjudge_reward.cli.doctor import Check, request_deadline
from mrjudge_reward.errors import require
from mrjudge_reward.integrations.verl.settings import SECTION, VerlSettings, is_colocated, served_judge
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.judging.token_budget import LEAST_TEXT, UNKNOWN_CONTEXT
from mrjudge_reward.prompting.candidates import common_length
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.types import Group

CALLS_PER_WORKER = 1000
"""Ray's default of calls that an asynchronous actor works on at once."""

_RAY_LIMIT = "DEFAULT_MAX_CONCURRENCY_ASYNC"
_CHARS_PER_TOKEN = 4


def capacity(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Iterator[Check]:
    """Check lengths and concurrency.

    Args:
        config: of the run, as plain containers.
        settings: its ``mrjudge`` section.
        judge: what it writes and how much it holds.
    """
    yield _samples_in_flight(config)
    size = settings.group_size or 1
    if judge.base_url is not None and judge.max_concurrency < size:
        detail = (
            f"{SECTION}.judge.max_concurrency={judge.max_concurrency} is less than the {size} completions of a group, so "
            "a single group already waits for itself; raise it to what the server bears"
        )
        yield Check("judge concurrency", "note", detail)
    elif judge.base_url is not None:
        yield Check("judge concurrency", "ok", f"{judge.max_concurrency} requests at once")
    yield from request_deadline(judge, f"{SECTION}.judge.")
    yield from _reply(config, judge)
    yield _context(config, settings, judge)


def _samples_in_flight(config: Mapping[str, Any]) -> Check:
    """Samples wait inside the reward workers for the others of their group; the last one must still get in."""
    workers = config["reward"]["num_workers"]
    samples = config["data"]["train_batch_size"] * config["actor_rollout_ref"]["rollout"]["n"]
    data = {"samples": samples, "workers": workers, "calls_per_worker": CALLS_PER_WORKER}
    if is_colocated(config):
        return Check("samples in flight", "ok", f"{samples}, handed over in {workers} calls", data)
    raised = hasattr(require("ray.actor", extra="verl"), _RAY_LIMIT)
    room = workers * CALLS_PER_WORKER
    if samples < room / 2:  # verl picks workers at random, so one may get far more than its share
        return Check("samples in flight", "ok", f"{samples}; {workers} reward workers hold {room}", data)
    figures = f"{samples} samples, and by Ray's default {workers} reward workers hold {room}"
    if raised:
        return Check("samples in flight", "ok", f"{figures}; the reward manager raises that limit", data)
    detail = (
        f"{figures}. This Ray has no ray.actor.{_RAY_LIMIT}, so the limit cannot be raised, and samples that wait for the "
        f"rest of their group may keep it out: set reward.num_workers={2 * samples // CALLS_PER_WORKER + 1} or more"
    )
    return Check("samples in flight", "failed", detail, data)


def _writes(judge: JudgeConfig) -> tuple[str, int]:
    """The setting that bounds a reply of the judge, and that bound."""
    if not judge.writes_verdicts:
        return "thinking_tokens", judge.thinking_tokens + 16
    return "max_tokens", judge.max_tokens


def _reply(config: Mapping[str, Any], judge: JudgeConfig) -> Iterator[Check]:
    served = served_judge(config, "router")
    if served is None or judge.model != served["model"]:
        return
    setting, writes = _writes(judge)
    limit = config["reward"]["reward_model"]["rollout"]["response_length"]
    if writes > limit:
        detail = (
            f"reward.reward_model.rollout.response_length={limit} is less than {SECTION}.judge.{setting}={writes}: verl's "
            "server cuts each reply there, and reasoning without a verdict is a failed comparison. Raise response_length "
            f"to {writes}"
        )
        yield Check("reply length", "failed", detail)
    else:
        yield Check("reply length", "ok", f"{writes} tokens of {limit}")


def _context(config: Mapping[str, Any], settings: VerlSettings, judge: JudgeConfig) -> Check:
    """At worst: a prompt and completions of the greatest length."""
    slots = _slots(judge, (settings.group_size or 1) + (settings.anchor_field is not None))
    prompt, response = config["data"]["max_prompt_length"], config["data"]["max_response_length"]
    template, (setting, writes) = _template_tokens(judge, slots), _writes(judge)
    size = judge.context_tokens or (8192 if judge.embedded else UNKNOWN_CONTEXT)
    told = f" (assumed; the run asks the server, or set {SECTION}.judge.context_tokens)"
    assumed = told if judge.base_url else " (assumed)"
    where = "" if judge.context_tokens or judge.embedded else assumed
    response = min(response, judge.max_candidate_tokens or response)
    texts = [prompt, *[response] * slots]
    needed, room = template + writes + sum(texts), size - template - writes
    data = {"needed": needed, "context": size, "slots": slots, "template": template, "reply": writes}
    figures = (
        f"at worst {needed} tokens (prompt {prompt}, {slots} x response {response}, template about {template}, reply "
        f"{writes}) of {size}{where}"
    )
    if needed <= size:
        return Check("context", "ok", figures, data)
    remedy = (
        f"raise reward.reward_model.rollout.max_model_len or the server's context, or lower data.max_response_length or "
        f"{SECTION}.judge.{setting}"
    )
    level = common_length(room, texts)
    status: Literal["note", "failed"] = "failed" if level < max(LEAST_TEXT, response // 10) else "note"
    left = f"so the judge sees at most {max(0, level)} tokens of each text, their middles cut out"
    return Check("context", status, f"{figures}, {left}: {remedy}", {**data, "per_text": level})


def _slots(judge: JudgeConfig, size: int) -> int:
    """Candidates in one comparison."""
    most = judge.judge_format.max_slots
    if most == 1:
        return 1
    return min(most, judge.max_slots, size) if judge.schedule == "listwise" else 2


def _template_tokens(judge: JudgeConfig, slots: int) -> int:
    """An estimate: the judge's tokenizer is not loaded."""
    guard = Sanitizer(lambda text: len(text) // _CHARS_PER_TOKEN, 1 << 20)
    frame = judge.judge_format.render(Group.of("", [""], rubric=" ", reference=" "), ("",) * slots, guard)
    return sum(len(message.text) for message in frame) // _CHARS_PER_TOKEN + 64
