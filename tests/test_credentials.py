"""Credentials reach the judge's server, and nothing else: no log, report, cache, pickle, error or name."""

from __future__ import annotations

import base64
import copy
import json
import logging
import multiprocessing
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrjudge_reward import Group, Judge, JudgeConfig, JudgeUnreliableError, Request, ScriptedEngine
from mrjudge_reward.cli.app import app
from mrjudge_reward.cli.doctor import examine
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.credentials import Address, Hidden, hidden_address, hidden_fields, reply_fields_hash, revealed
from mrjudge_reward.engines.openai.access import is_here, proxy_of
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.messages import as_messages
from mrjudge_reward.monitoring.monitor import RunMonitor
from mrjudge_reward.monitoring.report.page import page_of
from mrjudge_reward.types import EngineFailure, Reply

from .support import ROOT
from .support.echoing_server import EchoingServer

ASK = [Request(as_messages("Which?"))]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


# -- what is one ------------------------------------------------------------------------------------------------------

ADDRESSES = [
    # as given                                              as shown                           login, query
    ("https://user:pa+ss@gateway.example/v1", "https://gateway.example/v1", ("user", "pa+ss"), ()),
    ("https://user:p%40ss%2Fword@gateway.example/v1", "https://gateway.example/v1", ("user", "p@ss/word"), ()),
    ("https://hf_abcdefgh@gateway.example/v1", "https://gateway.example/v1", ("hf_abcdefgh", ""), ()),
    ("https://:only-a-password@gateway.example/v1", "https://gateway.example/v1", ("", "only-a-password"), ()),
    ("https://g.example/v1?api_key=k1", "https://g.example/v1", None, (("api_key", "k1"),)),
    ("https://g.example/v1?sig=aB3%2Fd&se=2026", "https://g.example/v1?se=2026", None, (("sig", "aB3/d"), ("se", "2026"))),
    ("https://g.example/v1?x=Zk81LqWp", "https://g.example/v1", None, (("x", "Zk81LqWp"),)),
    ("http://u:p@[::1]:8000/v1/", "http://[::1]:8000/v1", ("u", "p"), ()),
    ("https://u:p@GATEWAY.example:8443/a/b/v1", "https://gateway.example:8443/a/b/v1", ("u", "p"), ()),
    ("https://u:p@g.example/v1#frag", "https://g.example/v1", ("u", "p"), ()),
    ("https://u:pä@g.example/v1", "https://g.example/v1", ("u", "pä"), ()),
    ("https://g.example/v1?api-version=2024-06-01", "https://g.example/v1?api-version=2024-06-01", None,
     (("api-version", "2024-06-01"),)),
    ("https://g.example/v1/", "https://g.example/v1/", None, ()),
]  # fmt: skip


@pytest.mark.parametrize(("given", "shown", "login", "query"), ADDRESSES, ids=[row[0] for row in ADDRESSES])
def test_an_address_is_shown_without_its_login_and_keys(given: str, shown: str, login: Any, query: Any):
    address = hidden_address(given)
    assert address == shown
    assert (Address.of(address).login, Address.of(address).query) == (login, query)
    assert hidden_address(address) is address, "hidden once"
    config = JudgeConfig(model="Qwen/Qwen3-8B", base_url=given)
    again = JudgeConfig(**config.model_dump(exclude_unset=True))
    assert Address.of(again.base_url or "").login == login, "settings made of settings"


@pytest.mark.parametrize(
    "address",
    [
        "https://user:s3cr3t/x@gateway.example/v1",  # the host would be "user"
        "https://user:12/s3cr3t@gateway.example/v1",  # the port would be 12
        "https://us?er:s3cr3t@gateway.example/v1",
        "https://user:s3cr3t#x@gateway.example/v1",
        "ftp://user:s3cr3t@gateway.example/v1",
        "user:s3cr3t@gateway.example/v1",
        "https://user:s3cr3t@/v1",
        "https://user:s3cr3t@gateway.example:port/v1",
        "https://user:s3cr3t@gateway.example/v1\r\nX: y",
        "https://user:s3cr3t @gateway.example/v1",
        "https://user:s3cr3t@[::1/v1",
        "https:\\\\user:s3cr3t@gateway.example",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_repeated(address: str):
    with pytest.raises(ConfigError, match="base_url") as caught:
        JudgeConfig(model="m", base_url=address)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in shown.replace(repr(address), "")  # the traceback of a test shows its own line


BODIES = [
    ({"metadata": {"token": "sk-123"}}, ["sk-123"]),
    ({"metadata": {"run": "a free text"}}, ["a free text"]),
    ({"api_key": "plain"}, ["plain"]),
    ({"user": "ann"}, ["ann"]),
    ({"auth": {"bearer": "abc", "kind": "oauth"}}, ["abc", "oauth"]),
    ({"apiKey": "abc"}, ["abc"]),
    ({"x_goog": "AIzaSyD3adb33f0123456789"}, ["AIzaSyD3adb33f0123456789"]),
    ({"custom": ["ok", {"password": 123456789}]}, [123456789]),
    ({"headers": {"X-Key": "abc"}}, ["abc"]),
    ({"webhook": "https://hooks.example/T0/B1"}, ["https://hooks.example/T0/B1"]),
    ({"extra": "Zq81kk"}, ["Zq81kk"]),
    ({"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low", "builtin_tools": ["Bash 5"]}}, []),
    ({"chat_template_kwargs": {"session_key": "abc"}}, ["abc"]),
    ({"top_k": 20, "min_p": 0.1, "stop_token_ids": [1, 2], "max_completion_tokens": 5, "temperature": None}, []),
    ({"provider": {"order": ["DeepInfra/fp8"], "allow_fallbacks": False}, "service_tier": "flex"}, []),
    ({"guided_regex": r"[AB]{1,3}", "structured_outputs": {"choice": ["Response A"]}}, []),
    ({"skip_special_tokens": False, "logit_bias": {"50256": -100}, "stop": ["</answer>"], "version": "v1.2"}, []),
]  # fmt: skip


def hidden_in(value: Any) -> list[Any]:
    if isinstance(value, dict | list):
        return [found for item in (value.values() if isinstance(value, dict) else value) for found in hidden_in(item)]
    return [value.secret] if isinstance(value, Hidden) else []


@pytest.mark.parametrize(("body", "secrets"), BODIES, ids=[json.dumps(body)[:60] for body, _ in BODIES])
def test_of_a_body_what_may_be_a_credential_is_hidden_and_options_are_not(body: dict[str, Any], secrets: list[Any]):
    hidden = hidden_fields(body, "extra_body")
    assert hidden_in(hidden) == secrets
    assert revealed(hidden) == body
    assert revealed(pickle.loads(pickle.dumps(hidden))) == body, "in this process"
    assert not [secret for secret in secrets if repr(secret).encode() in pickle.dumps(hidden)]
    assert [type(value) for value in copy.deepcopy(hidden).values()] == [type(value) for value in hidden.values()]


# -- identity and name ------------------------------------------------------------------------------------------------

SAME_JUDGE = [
    ({"base_url": "https://elsewhere.example/v1"}, "another address"),
    ({"base_url": "http://127.0.0.1:9/v1"}, "this machine"),
    ({"base_url": "https://ann:pw@gateway.example/v1"}, "a login"),
    ({"base_url": "https://gateway.example/v1?api_key=abc"}, "a parameter"),
    ({"api_key": "sk-1"}, "a key"),
    ({"api_key_env": "OTHER"}, "a variable"),
    ({"extra_headers": {"X-Key": "abc"}}, "a header"),
    ({"extra_body": {"metadata": {"run": "7"}}}, "metadata"),
    ({"extra_body": {"user": "ann"}}, "a user"),
    ({"extra_body": {"api_key": "sk-2"}}, "a key in the body"),
    ({"extra_body": {"auth": {"token": "t"}}}, "a token in the body"),
    ({"extra_body": {"prompt_cache_key": "k", "store": False}}, "books of a server"),
    ({"insecure_http": True, "deadline_s": 5.0, "max_concurrency": 1}, "how it is reached"),
]


@pytest.mark.parametrize(("changed", "why"), SAME_JUDGE, ids=[why for _, why in SAME_JUDGE])
def test_the_same_judge_elsewhere_with_other_credentials_has_the_same_identity(changed: dict[str, Any], why: str):
    plain = OpenAIEngine("Qwen/Qwen3-8B", "https://gateway.example/v1")
    assert (
        OpenAIEngine("Qwen/Qwen3-8B", **{"base_url": "https://gateway.example/v1", **changed}).identity
        == plain.identity
    )


OTHER_JUDGE = [
    {"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs": {"enable_thinking": True}},
    {"chat_template_kwargs": {"user": "ann"}}, {"chat_template_kwargs": {"user": "bob"}}, {"temperature": None},
    {"top_k": 1}, {"top_k": 2}, {"reasoning_effort": "low"}, {"reasoning_effort": "high"}, {"min_p": 0.1},
    {"mode": "Fast Lane"}, {"mode": "Slow Lane"}, {"models": ["a/b"]}, {"stop": ["x"]},
]  # fmt: skip


def test_what_changes_replies_changes_the_identity_and_is_not_in_it():
    engines = [OpenAIEngine("Qwen/Qwen3-8B", extra_body=body) for body in (None, *OTHER_JUDGE)]
    assert len({engine.identity for engine in engines}) == len(engines)
    assert {engine.name for engine in engines} == {"openai:Qwen/Qwen3-8B"}, "the name is whole"
    assert not [e for e in engines if "thinking" in e.identity or "Lane" in e.identity]
    assert reply_fields_hash({}) == reply_fields_hash({"metadata": {"a": "b"}}) == ""


# -- on the wire ------------------------------------------------------------------------------------------------------


def test_each_credential_reaches_its_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_TOKEN", "from-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Everywhere: yes")
    body = {"metadata": {"token": "sk-123", "ä": "é"}, "auth": "env:JUDGE_TOKEN", "top_k": 3, "temperature": None}
    with EchoingServer() as server:
        address = f"http://ann:p%40ss@127.0.0.1:{server.port}/v1?key=a%2Fb&n=1"
        config = JudgeConfig(
            model="judge",
            base_url=address,
            extra_body=body,
            extra_headers={"X-Key": "h1 h2", "X-Env": "env:JUDGE_TOKEN"},
        )
        engine = config.build_engine()
        replies = engine.generate(ASK)
        engine.close()
    assert isinstance(replies[0], Reply)
    path, headers, told = server.seen[0]
    assert path == "/v1/chat/completions?key=a%2Fb&n=1"
    assert headers["authorization"] == basic("ann", "p@ss")
    assert (headers["x-key"], headers["x-env"]) == ("h1 h2", "from-the-environment")
    assert "x-everywhere" not in headers, "what is meant for another host"
    assert told["metadata"] == body["metadata"]
    assert (told["auth"], told["top_k"]) == ("from-the-environment", 3)
    assert "temperature" not in told


@pytest.mark.parametrize(
    ("settings", "environment", "sent"),
    [
        ({}, {}, "Bearer none"),
        ({}, {"OPENAI_API_KEY": "sk-env"}, "Bearer sk-env"),
        ({"api_key_env": ""}, {"OPENAI_API_KEY": "sk-env"}, "Bearer none"),
        ({"api_key_env": "MINE"}, {"OPENAI_API_KEY": "sk-env", "MINE": "sk-mine"}, "Bearer sk-mine"),
        ({"api_key": "sk-code"}, {"OPENAI_API_KEY": "sk-env"}, "Bearer sk-code"),
        ({"extra_headers": {"authorization": "Token abc"}}, {"OPENAI_API_KEY": "sk-env"}, "Token abc"),
        ({"login": "ann:pw@"}, {"OPENAI_API_KEY": "sk-env"}, basic("ann", "pw")),
        ({"login": "ann:pw@", "extra_headers": {"Authorization": "Token abc"}}, {}, "Token abc"),
        ({"api_key": "none"}, {}, "Bearer none"),
        ({"login": "token@"}, {}, basic("token", "")),
    ],
)
def test_a_header_goes_before_a_login_and_a_login_before_a_key(
    settings: dict[str, Any], environment: dict[str, str], sent: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("OPENAI_API_KEY", "MINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    login = settings.pop("login", "")
    with EchoingServer() as server:
        engine = OpenAIEngine("judge", f"http://{login}127.0.0.1:{server.port}/v1", **settings)
        engine.generate(ASK)
        engine.close()
    assert server.seen[0][1]["authorization"] == sent


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to_itself", [False, True])
def test_no_redirect_is_followed_and_the_failure_says_where_it_leads(status: int, to_itself: bool):
    with EchoingServer() as thief, EchoingServer(lambda number: status) as server:
        target = server if to_itself else thief
        server.location = f"http://127.0.0.1:{target.port}/v2/chat/completions?key=sk-code"
        engine = OpenAIEngine("judge", f"http://127.0.0.1:{server.port}/v1", api_key="sk-code")
        (failure,) = engine.generate(ASK)
        engine.close()
        config = JudgeConfig(model="judge", base_url=f"http://u:sk-code@127.0.0.1:{server.port}/v1")
        doctored = CliRunner().invoke(
            app, ["doctor", "--set", f"base_url={config.base_url.secret}", "--set", "model=judge"]
        )
    assert isinstance(failure, EngineFailure)
    assert failure.reason == f"http {status}"
    assert f"redirects to http://127.0.0.1:{target.port}/v2" in failure.detail
    assert "redirects to" in "".join(doctored.output.split("\n")) or "redirects" in doctored.output
    assert "sk-code" not in failure.detail + doctored.output
    assert len(server.seen) == 2
    assert thief.seen == []


PLAIN = [
    "http://10.0.0.5:8000/v1", "http://192.168.1.7/v1", "http://172.16.0.1/v1", "http://judge:8000/v1",
    "http://judge.lan/v1", "http://[fd00::1]/v1", "http://169.254.1.1/v1", "http://localhost.example/v1",
    "http://2130706433/v1", "http://127.0.0.1.nip.io/v1", "http://[fe80::1]/v1",
]  # fmt: skip
HERE = [
    "http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "http://127.8.8.8/v1", "http://0.0.0.0:8000/v1",
    "http://[::ffff:127.0.0.1]/v1", "http://LOCALHOST/v1",
]  # fmt: skip


@pytest.mark.parametrize("address", PLAIN)
def test_a_credential_goes_unencrypted_to_another_machine_only_if_that_is_asked_for(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for key in ({}, {"api_key": "none"}, {"api_key": "EMPTY"}, {"extra_body": {"top_k": 1, "reasoning_effort": "low"}}):
        OpenAIEngine("m", address, **key)  # nothing to lose
    with_login = address.replace("http://", "http://ann:pw@")
    given: list[tuple[str, dict[str, Any], str]] = [
        (address, {"api_key": "sk-1"}, "api_key"),
        (with_login, {}, "base_url"),
        (f"{address}?api_key=x", {}, "base_url"),
        (address, {"extra_headers": {"X-Key": "abc"}}, "extra_headers"),
        (address, {"extra_body": {"metadata": {"token": "x"}}}, "extra_body"),
    ]
    for url, settings, name in given:
        with pytest.raises(ConfigError, match=rf"(?s)https.*{name}.*insecure_http|{name}.*insecure_http") as caught:
            OpenAIEngine("m", url, **settings)
        assert "sk-1" not in str(caught.value)
        OpenAIEngine("m", url, insecure_http=True, **settings)
        OpenAIEngine("m", url.replace("http://", "https://"), **settings)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    with pytest.raises(ConfigError, match=r"\$OPENAI_API_KEY"):
        JudgeConfig(model="m", base_url=address).build_engine()
    JudgeConfig(model="m", base_url=address, api_key_env="").build_engine()


@pytest.mark.parametrize("address", HERE)
def test_this_machine_may_be_told_a_key(address: str):
    assert is_here(address)
    OpenAIEngine("m", address, api_key="sk-1")


def test_a_key_that_comes_into_the_environment_later_is_looked_at_with_the_first_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    engine = OpenAIEngine("m", "http://judge.lan/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    with pytest.raises(ConfigError, match="insecure_http"):
        engine.generate(ASK)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxies")
def test_proxies_of_the_environment_are_for_other_hosts(monkeypatch: pytest.MonkeyPatch):
    assert proxy_of("https://gateway.example/v1") is None
    monkeypatch.setenv("https_proxy", "proxy.lan:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://gateway.example/v1") == "http://proxy.lan:3128"
    assert proxy_of("https://inside.example/v1") is None
    assert proxy_of("http://127.0.0.1/v1") is None


@pytest.mark.usefixtures("no_proxies")
@pytest.mark.parametrize("name", ["all_proxy", "https_proxy"])
@pytest.mark.parametrize("kind", ["socks", "socks4", "socks5", "socks5h", "ftp"])
def test_a_proxy_of_a_kind_that_cannot_be_used_is_named(kind: str, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, f"{kind}://someone:secret@proxy.lan:1080")
    settings = {"model": "m", "base_url": "https://gateway.example/v1", "api_key_env": ""}
    engine = OpenAIEngine("m", settings["base_url"], api_key_env="", deadline_s=2)
    with pytest.raises(ConfigError, match=rf"names a proxy of kind {kind}:// for gateway.example") as caught:
        engine.generate(ASK)
    assert "secret" not in str(caught.value)
    checked = next(check for check in examine(JudgeConfig(**settings), smoke=False) if check.name == "server")
    assert checked.status == "failed"
    assert f"of kind {kind}://" in checked.detail
    monkeypatch.setenv("no_proxy", "gateway.example")
    assert proxy_of(settings["base_url"]) is None


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        {1, 2},
        b"x",
        object(),
        [1, float("nan")],
        {"a": {"b": {3}}},
        1j,
        Path(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_field_that_no_request_could_hold_is_refused_and_not_blamed_on_the_server(value: Any):
    for make in (OpenAIEngine, JudgeConfig):
        settings = {"base_url": "http://127.0.0.1:1/v1", "extra_body": {"top_k": value}}
        with pytest.raises(ConfigError, match=r"extra_body\.top_k.* that JSON does not have"):
            make(model="m", **settings)


@pytest.mark.parametrize("name", ["env:NOT_SET_ANYWHERE"])
def test_a_variable_that_is_not_set_is_named(name: str):
    for settings in ({"extra_headers": {"X-Key": name}}, {"extra_body": {"token": name}}):
        with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
            OpenAIEngine("m", **settings)


# -- pickles and processes --------------------------------------------------------------------------------------------


def best(judge: Judge) -> int | None:
    judged = judge.rank("Which?", ["short", "somewhat longer"])
    judge.close()
    return judged.best


def told(judge: Judge, pipe: Any) -> None:
    try:
        pipe.send(best(judge))
    except ConfigError as error:
        pipe.send(str(error))


def judge_of(server: EchoingServer, **more: Any) -> Judge:
    url = f"http://ann:s3cr3t-pw@127.0.0.1:{server.port}/v1?api_key=q-s3cr3t"
    settings: dict[str, Any] = {"verdict": "generate", "format": "choice", "extra_body": {"token": "b-s3cr3t"}}
    return JudgeConfig(**{"model": "judge", "base_url": url, **settings, **more}).build()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_judge_works_in_a_process_of_multiprocessing(method: str, tmp_path: Path):
    context = multiprocessing.get_context(method)
    with EchoingServer() as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        judge = judge_of(server, cache=str(tmp_path / "replies.sqlite"))
        assert best(judge) == 1
        here, there = context.Pipe()
        process = context.Process(target=told, args=(judge_of(server), there))
        process.start()
        assert here.poll(60)
        assert here.recv() == 1
        process.join()
        assert best(judge) == 1, "and here still"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda judge: pickle.loads(pickle.dumps(judge))])
def test_a_copy_of_a_judge_works_beside_it(copied: Callable[[Judge], Judge]):
    with EchoingServer() as server:
        judge = judge_of(server)
        assert (best(judge), best(copied(judge)), best(judge)) == (1, 1, 1)
        chats = [headers | {"content-length": ""} for path, headers, _ in server.seen if "/chat/completions" in path]
        assert chats[0] == chats[-1]


ELSEWHERE = """
import pickle, sys
from mrjudge_reward.errors import ConfigError
for data in pickle.load(open(sys.argv[1], "rb")):
    try:
        judge = pickle.loads(data)
        print(judge.rank("Which?", ["short", "somewhat longer"]).best)
        judge.close()
    except ConfigError as error:
        print("ConfigError:", error)
"""


def test_a_pickle_in_another_process_says_what_to_do_and_works_with_names_of_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MY_KEY", "k-s3cr3t")
    monkeypatch.setenv("MY_TOKEN", "t-s3cr3t")
    named = {"extra_headers": {"X-Token": "env:MY_TOKEN"}, "extra_body": {"token": "env:MY_TOKEN", "top_k": 1}}
    with EchoingServer() as server:
        plain = f"http://127.0.0.1:{server.port}/v1"
        given = OpenAIEngine("judge", plain, api_key="a-s3cr3t")
        judges = [
            judge_of(server),
            judge_of(server, base_url=plain),
            Judge(given, verdict="generate", format="choice"),
            judge_of(server, base_url=plain, api_key_env="MY_KEY", **named),
        ]
        pickles = [pickle.dumps(judge) for judge in judges]
        (tmp_path / "judges.pickle").write_bytes(pickle.dumps(pickles))
        command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(tmp_path / "judges.pickle")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    for line, parts in zip(
        said[:3], (("base_url", "env:"), ("extra_body.token", "env:"), ("api_key", "api_key_env")), strict=True
    ):
        assert line.startswith("ConfigError: ")
        assert all(part in line for part in parts)
    assert said[3:] == ["1"]
    assert b"s3cr3t" not in b"".join(pickles)
    _, headers, body = server.seen[-1]
    assert (headers["authorization"], headers["x-token"], body["token"]) == ("Bearer k-s3cr3t", "t-s3cr3t", "t-s3cr3t")


def test_settings_within_other_settings_are_hidden_too():
    from mrjudge_reward.integrations.verl.settings import VerlSettings

    judge = {"model": "m", "base_url": "https://ann:s3cr3t@g.example/v1", "extra_body": {"a": {"token": "s3cr3t"}}}
    settings = VerlSettings(judge=judge, group_size=4)
    assert "s3cr3t" not in repr(settings) + settings.model_dump_json() + str(settings.model_dump())
    assert b"s3cr3t" not in pickle.dumps(settings)
    assert Address.of(settings.judge_config().base_url or "").login == ("ann", "s3cr3t")
    with pytest.raises(ConfigError) as caught:
        VerlSettings(judge=[judge])  # type: ignore[arg-type]
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "ftp://ann:s3cr3t@g.example"}, {"base_url": ["https://ann:s3cr3t@g.example"]},
        {"extra_body": "s3cr3t"}, {"extra_body": [{"token": "s3cr3t"}]}, {"extra_headers": {"X": ["s3cr3t"]}},
        {"extra_headers": {"X-Key": "s3cr3t\r\nY: z"}}, {"extra_headers": "s3cr3t"}, {"api_key_env": "sk-s3cr3t"},
        {"api_key_env": 3}, {"model": ["https://ann:s3cr3t@g.example"]}, {"api_key": "s3cr3t"},
    ],
)  # fmt: skip
def test_a_setting_that_is_refused_is_not_repeated_where_it_may_be_a_credential(settings: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        JudgeSettings(**{"model": "m", **settings})
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in str(caught.value) + shown


def test_a_file_that_is_no_yaml_is_not_quoted(tmp_path: Path):
    (tmp_path / "judge.yaml").write_text("model: m\nbase_url: https://ann:s3cr3t@g.example: [\n")
    with pytest.raises(ConfigError, match="line") as caught:
        JudgeConfig.load(tmp_path / "judge.yaml")
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))
    said = CliRunner().invoke(app, ["rank", "--set", "base_url: https://ann:s3cr3t@g.example"]).output
    assert "KEY=VALUE" in said
    assert "s3cr3t" not in said


# -- everything that is written ---------------------------------------------------------------------------------------

SECRETS = {
    "user": "usr7Qm2Vx9Lw", "password": "pwd+5tR8%nK", "query": "qry4Zt7Yb1Pd", "api_key": "key9Wc3Hs6Jf",
    "body": "bdy2Nk8Rv5Xg", "metadata": "mta6Fq1Ud4Tz", "header": "hdr3Bp9Ly7Ce", "variable": "env8Sj2Mh5Ka",
    "header_variable": "hev1Dw6Go4Vn",
}  # fmt: skip


def forms(secret: str) -> list[bytes]:
    from urllib.parse import quote

    return [form.encode() for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode())]


@pytest.mark.parametrize("way", ["login", "api_key", "environment"])
def test_a_run_with_credentials_everywhere_writes_none(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("JUDGE_KEY", SECRETS["variable"])
    monkeypatch.setenv("JUDGE_HEADER", SECRETS["header_variable"])
    written = tmp_path / "written"
    written.mkdir()
    logging.getLogger().addHandler(log := logging.FileHandler(written / "all.log"))
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.DEBUG)
    said: list[Any] = []
    try:
        with (
            EchoingServer(lambda number: (200, 400, 200, 401, 404, 200)[number % 6]) as server,
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            login = f"{SECRETS['user']}:{SECRETS['password'].replace('%', '%25')}@" if way == "login" else ""
            settings: dict[str, Any] = {
                "model": "Qwen/Qwen3-8B", "verdict": "generate", "format": "choice", "max_failed_fraction": 1.0,
                "base_url": f"http://{login}127.0.0.1:{server.port}/v1?api_key={SECRETS['query']}",
                "extra_body": {"secret": SECRETS["body"], "metadata": {"x": SECRETS["metadata"]}, "top_k": 3},
                "extra_headers": {"X-Key": SECRETS["header"], "X-Env": "env:JUDGE_HEADER"},
                "cache": str(written / "cache.sqlite"), "api_key_env": "JUDGE_KEY",
            }  # fmt: skip
            config = JudgeConfig(**settings)
            judge = config.build()
            if way == "api_key":
                fields = {name: settings[name] for name in ("base_url", "extra_body", "extra_headers")}
                engine = OpenAIEngine("Qwen/Qwen3-8B", api_key=SECRETS["api_key"], **fields)
                judge = config.model_copy(update={"cache": str(written / "cache2.sqlite")}).build(engine)
            monitor = RunMonitor(written, "judge", None)
            for step in range(1, 5):
                groups = [Group.of(f"question {step}", ["a b", "c d e", "f"], f"{step} {n}") for n in range(3)]
                judged = judge.judge(groups)
                monitor.log(0, step, "train", judge, judged, [[0.0, 0.5, 1.0]] * 3, [[1, 2, 3]] * 3, None)
                said += [judged, [item.verdict for one in judged for item in one.played]]
            (written / "report.html").write_text(page_of(written), encoding="utf-8")
            for number, kept in enumerate((config, judge, judge.engine, judge.settings, said, monitor)):
                said.append(kept)
                (written / f"{number}.pickle").write_bytes(pickle.dumps(kept))
            said += [config.model_dump(), config.model_dump_json(), vars(judge.engine), judge.engine.identity]
            server.status = lambda number: 401
            strict = config.model_copy(update={"max_failed_fraction": 0.1, "cache": None}).build(judge.engine)
            with pytest.raises(JudgeUnreliableError) as caught:
                strict.judge([Group.of(f"again {n}", ["x", "y y"], str(n)) for n in range(40)])
            said += ["".join(traceback.format_exception(caught.value)), repr(caught.value.args)]
            server.status = lambda number: (200, 403)[number % 2]
            source = tmp_path / "in.jsonl"
            source.write_text(
                "".join(json.dumps({"prompt": f"q{n}", "candidates": ["a", "b b"]}) + "\n" for n in range(6))
            )
            config_file = tmp_path / "judge.yaml"
            config_file.write_text(json.dumps(settings))
            for command in (
                ["rank", str(source), "-o", str(written / "out.jsonl"), "-c", str(config_file)],
                *([["doctor", "-c", str(config_file)]] if way == "login" else []),
                *([["doctor", "--json", "--show-prompt", "-c", str(config_file)]] if way == "environment" else []),
                ["cache", str(written / "cache.sqlite")],
            ):
                said.append(CliRunner().invoke(app, command).output)
            judge.close()
            said += [str(warning.message) for warning in warned]
    finally:
        logging.getLogger().removeHandler(log)
        logging.getLogger().setLevel(before)
        log.close()
    said.append(capfd.readouterr())
    (written / "said.txt").write_text(repr(said))
    names = [name for name in SECRETS if name != "api_key" or way == "api_key"]
    sent = repr(server.seen)
    expected = {
        "login": {"variable", "user", "password"},
        "api_key": {"user", "password"},
        "environment": {"user", "password"},
    }
    for name in set(names) - expected[way]:
        assert SECRETS[name] in sent, f"{name} was told to the server"
    found = [
        (path.name, name)
        for path in sorted(written.iterdir())
        for name in names
        for form in forms(SECRETS[name])
        if form in path.read_bytes()
    ]
    assert found == []
    logged = (written / "judge.rank0.jsonl").read_text()
    assert '"judge": "openai:Qwen/Qwen3-8B"' in logged
    assert "***" in (written / "report.html").read_text(), "the server did repeat them"
    assert (written / "out.jsonl").read_text().count("\n") == 6


def test_a_scripted_judge_needs_none_of_this():
    judge = Judge(ScriptedEngine.by_utility(len))
    assert pickle.loads(pickle.dumps(judge)).rank("q", ["a", "bb"]).best == 1
