"""The OpenAI engine against a real server on a real socket."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import math
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrjudge_reward import errors
from mrjudge_reward.engines import fold_system
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.openai.requests import chat_messages, image_url
from mrjudge_reward.engines.openai.wire import top_tokens, usage_of, written_reply
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import ImagePart, Message, TextPart, as_messages
from mrjudge_reward.types import EngineFailure, Group, Reply, Request, Sampling, Usage
from tests.support import ROOT
from tests.support.judge_server import JudgeServer, prompt_text, seeded

EngineFactory = Callable[..., OpenAIEngine]


@pytest.fixture
def connect() -> Iterator[EngineFactory]:
    """Engines of a server, closed at the end."""
    engines: list[OpenAIEngine] = []

    def build(server: JudgeServer, **options: Any) -> OpenAIEngine:
        engines.append(OpenAIEngine("judge", server.base_url, **{"deadline_s": 10.0, "outage_wait_s": 0.0, **options}))
        return engines[-1]

    yield build
    for engine in engines:
        engine.close()


def ask(text: str = "Which?", **fields: Any) -> Request:
    return Request(as_messages(text), **fields)


def asks(count: int) -> list[Request]:
    return [ask(f"question {number}") for number in range(count)]


def echo(body: Any) -> str:
    return prompt_text(body)


READ = {"prefill": "<think>short</think><answer>", "labels": ("A", "B")}


def test_it_is_an_engine_and_names_the_model_the_server_and_the_extra_fields() -> None:
    engine = OpenAIEngine("judge", "http://127.0.0.1:1/v1/", extra_body={"top_k": 1})
    assert isinstance(engine, Engine)
    assert engine.identity.startswith("openai:judge extra_body ")
    elsewhere = OpenAIEngine("judge", "https://user:pa+ss@gateway.example/v1", extra_body={"top_k": 1})
    assert elsewhere.identity == engine.identity, "the same judge at another address"
    assert OpenAIEngine("judge").identity != engine.identity, "another body may be another judge"
    assert {engine.name, elsewhere.name} == {"openai:judge"}, "what is shown names no address and no field"
    assert engine.generate([]) == engine.label_logprobs([]) == []


@pytest.mark.parametrize(
    "options", [{"max_concurrency": 0}, {"deadline_s": 0}, {"deadline_s": math.nan}, {"token_parameter": "tokens"}]
)
def test_a_setting_out_of_range_is_refused_when_built(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError):
        OpenAIEngine("judge", **options)


def test_replies_come_in_the_order_of_the_requests_however_they_finish(connect: EngineFactory) -> None:
    def slow_first(body: Any) -> str:
        time.sleep(0.05 if prompt_text(body).endswith(("0", "5")) else 0.0)
        return echo(body)

    with JudgeServer(slow_first) as server:
        replies = connect(server, max_concurrency=8).generate(asks(40))
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == [f"question {n}" for n in range(40)]


def test_no_more_requests_than_allowed_are_in_flight(connect: EngineFactory) -> None:
    with JudgeServer(echo, delay_s=0.02) as server:
        connect(server, max_concurrency=5).generate(asks(40))
        assert server.most_in_flight == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_reached_past_the_proxy_of_the_environment(
    connect: EngineFactory, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with JudgeServer(echo) as server:
        engine = OpenAIEngine("judge", server.base_url.replace("127.0.0.1", host), deadline_s=5)
        assert [reply.text for reply in engine.generate(asks(2)) if isinstance(reply, Reply)] == [
            "question 0",
            "question 1",
        ]
        engine.close()
    far = OpenAIEngine("judge", "http://judge.example/v1", deadline_s=1)
    failure = far.generate(asks(1))[0]
    far.close()
    assert isinstance(failure, EngineFailure), "nothing listens where the proxy should be"


def test_hundreds_of_requests_reuse_a_bounded_pool_of_connections_and_close_releases_it(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        engine = connect(server, max_concurrency=8)
        for _ in range(10):
            assert all(isinstance(reply, Reply) for reply in engine.generate(asks(50)))
        assert server.most_connections <= 8
        assert server.connections <= 8
        engine.close()
        engine.close()
        assert server.wait_until(lambda s: s.open_connections == 0)


def test_a_forgotten_engine_closes_its_connections_and_ends_its_thread() -> None:
    before = threading.enumerate()
    with JudgeServer(echo) as server:
        engine = OpenAIEngine("judge", server.base_url)
        engine.generate(asks(3))
        assert server.open_connections > 0
        del engine
        gc.collect()
        assert server.wait_until(lambda s: s.open_connections == 0)
    left = [thread for thread in threading.enumerate() if thread not in before]
    assert not [thread for thread in left if thread.name == "mrjudge-openai"]


def test_a_program_that_never_closes_its_engine_ends_quietly() -> None:
    program = (
        "import sys; from mrjudge_reward.engines.openai.engine import OpenAIEngine; "
        "from mrjudge_reward.types import Request, as_messages; "
        "engine = OpenAIEngine('judge', sys.argv[1]); "
        "print(engine.generate([Request(as_messages('hello'))])[0].text)"
    )
    with JudgeServer(echo) as server:
        command = [sys.executable, "-X", "dev", "-W", "always::ResourceWarning", "-c", program, server.base_url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "hello\n"
    assert "ResourceWarning" not in done.stderr
    assert "never" not in done.stderr


def test_a_closed_engine_opens_again_with_the_next_call(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        engine = connect(server)
        for _ in range(2):
            assert isinstance(engine.generate([ask()])[0], Reply)
            engine.close()


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "half"])
def test_what_may_pass_is_tried_again_until_it_succeeds(connect: EngineFactory, fault: str) -> None:
    with JudgeServer(echo, faults=[fault]) as server:
        reply = connect(server).generate([ask("again")])[0]
        assert isinstance(reply, Reply)
        assert reply.text == "again"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "reason", "transient"),
    [
        ("400", "http 400", False),
        ("garbage", "malformed reply", True),
        ("text", "malformed reply", True),
        ("no_choices", "malformed reply", True),
        ("two_choices", "malformed reply", True),
        ("error_object", "server error", True),
    ],
)
def test_what_will_not_pass_is_a_failure_without_another_try(
    connect: EngineFactory, fault: str, reason: str, transient: bool
) -> None:
    with JudgeServer(echo, faults=[fault]) as server:
        failure = connect(server).generate([ask()])[0]
        assert isinstance(failure, EngineFailure)
        assert (failure.reason, failure.transient) == (reason, transient)
        assert failure.detail
        assert len(server.requests) == 1


def test_a_request_that_always_crashes_the_server_is_given_up_before_the_deadline(connect: EngineFactory) -> None:
    with JudgeServer(echo, faults=["500"] * 99) as server:
        failure = connect(server, deadline_s=60.0).generate([ask()])[0]
        assert isinstance(failure, EngineFailure)
        assert failure.reason == "http 500"
        assert len(server.requests) == 5


def test_verdicts_that_make_no_sense_arrive_as_they_were_written(connect: EngineFactory) -> None:
    with JudgeServer(faults=["wrong_count", "off_menu", "truncated"]) as server:
        replies = connect(server, max_concurrency=1).generate(asks(3))
    assert [(reply.finish, reply.text) for reply in replies if isinstance(reply, Reply)] == [
        ("stop", "<think>Both.</think><answer>A B A B</answer>"),
        ("stop", "<think>None of them.</think><answer>Zebra</answer>"),
        ("length", "<think>Let me see. Response"),
    ]


def test_retry_after_is_obeyed(connect: EngineFactory) -> None:
    with JudgeServer(echo, faults=["429"], retry_after="1") as server:
        started = time.monotonic()
        assert isinstance(connect(server).generate([ask()])[0], Reply)
        assert 1.0 <= time.monotonic() - started < 9.0


@pytest.mark.parametrize(
    ("fault", "reason"), [("hang", "timeout"), ("503", "http 503"), ("drop", "connection lost"), ("429", "http 429")]
)
def test_the_deadline_bounds_all_tries_together(connect: EngineFactory, fault: str, reason: str) -> None:
    with JudgeServer(echo, retry_after="Fri, 31 Dec 9999 23:59:59 GMT") as server:
        server.all_fail = fault
        started = time.monotonic()
        failures = connect(server, deadline_s=1.2).generate(asks(4))
        assert time.monotonic() - started < 20.0, "a hanging call takes a minute"
    assert {failure.reason for failure in failures if isinstance(failure, EngineFailure)} == {reason}
    assert all(failure.transient for failure in failures if isinstance(failure, EngineFailure))


def reasons(replies: list[Reply | EngineFailure]) -> list[str]:
    return [reply.reason if isinstance(reply, EngineFailure) else "" for reply in replies]


def test_a_batch_against_a_hanging_server_costs_one_deadline_and_not_one_per_wave(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        server.all_fail = "hang"
        engine = connect(server, max_concurrency=4, deadline_s=1.5)
        started = time.monotonic()
        failures = engine.generate(asks(64))
        assert 1.5 <= time.monotonic() - started < 12.0, "16 waves would take 24 seconds"
        assert reasons(failures).count("timeout") >= 4
        assert reasons(failures)[-50:] == ["server down"] * 50
        assert all(failure.transient for failure in failures if isinstance(failure, EngineFailure))
        sent = len(server.requests)
        assert reasons(engine.generate([ask()])) == ["server down"]
        assert len(server.requests) == sent
        server.all_fail = None
        time.sleep(1.6)
        assert reasons(engine.generate(asks(8))) == [""] * 8


def test_a_batch_against_a_refused_port_costs_one_deadline_and_says_why() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    engine = OpenAIEngine("judge", f"http://127.0.0.1:{port}/v1", max_concurrency=4, deadline_s=1.5)
    started = time.monotonic()
    failures = engine.generate(asks(64))
    assert time.monotonic() - started < 12.0, "16 waves would take 24 seconds"
    assert reasons(failures) == ["cannot connect"] * 64
    assert isinstance(failures[-1], EngineFailure)
    assert "connection refused" in failures[-1].detail
    assert reasons(engine.label_logprobs([ask(**READ)])) == ["cannot connect"]
    assert engine.can_read, "nothing was learnt about a server that is down"
    with JudgeServer(echo, port=port):
        assert reasons(engine.generate([ask()])) == ["cannot connect"]
        time.sleep(1.6)
        assert reasons(engine.generate(asks(8))) == [""] * 8
    engine.close()


@pytest.mark.parametrize("fault", ["429", "500", "404"])
def test_a_server_that_answers_with_errors_is_not_down(connect: EngineFactory, fault: str) -> None:
    with JudgeServer(echo) as server:
        server.all_fail = fault
        engine = connect(server, max_concurrency=2, deadline_s=1.0)
        assert set(reasons(engine.generate(asks(4)))) == {f"http {fault}"}
        server.all_fail = None
        assert reasons(engine.generate([ask()])) == [""]


def test_one_request_that_hangs_while_others_are_answered_does_not_count_as_a_dead_server(
    connect: EngineFactory,
) -> None:
    with JudgeServer(echo, faults=["hang"]) as server:
        engine = connect(server, max_concurrency=2, deadline_s=2.0)
        assert reasons(engine.generate(asks(20))).count("timeout") == 1
        assert reasons(engine.generate([ask()])) == [""]


def test_waiting_for_a_free_slot_does_not_count_against_the_deadline(connect: EngineFactory) -> None:
    with JudgeServer(echo, delay_s=0.3) as server:
        replies = connect(server, max_concurrency=2, deadline_s=2.5).generate(asks(20))  # takes 3 seconds
    assert all(isinstance(reply, Reply) for reply in replies)


def test_one_bad_request_does_not_cost_the_batch(connect: EngineFactory) -> None:
    missing = Request((Message("user", (ImagePart("no/such/image.png"), TextPart("?"))),))
    strange = Request((Message("user", (ImagePart(3.5), TextPart("?"))),))
    with JudgeServer(echo) as server:
        first, second, third = connect(server).generate([missing, ask("fine"), strange])
    assert isinstance(first, EngineFailure)
    assert isinstance(third, EngineFailure)
    assert (first.reason, third.reason) == ("image", "image")
    assert not first.transient
    assert isinstance(second, Reply)


def test_under_random_faults_every_request_gets_its_own_answer_or_a_failure(connect: EngineFactory) -> None:
    kinds = ["500", "429", "drop", "half", "garbage", "no_choices", "400"]
    with JudgeServer(echo, faults=seeded(kinds, 0.3, seed=1)) as server:
        replies = connect(server, max_concurrency=16, deadline_s=20.0).generate(asks(200))
    answered = [reply.text == f"question {n}" for n, reply in enumerate(replies) if isinstance(reply, Reply)]
    assert all(answered)
    assert 100 < len(answered) < 200
    assert {reply.reason for reply in replies if isinstance(reply, EngineFailure)} == {"malformed reply", "http 400"}


def test_a_server_that_comes_back_on_the_same_port_in_time_answers(connect: EngineFactory) -> None:
    script = str(ROOT / "tests/support/judge_server.py")

    def serve(port: int) -> subprocess.Popen[str]:
        command = [sys.executable, script, "--port", str(port), "--delay", "0.3"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "serving" in process.stdout.readline()
        return process

    def stop(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    with JudgeServer() as free:
        port, url = free.port, free.base_url
    engine = OpenAIEngine("judge", url, max_concurrency=4, deadline_s=30.0)
    server = serve(port)
    try:
        results: list[Reply | EngineFailure] = []
        caller = threading.Thread(target=lambda: results.extend(engine.generate(asks(12))))
        caller.start()
        time.sleep(0.5)
        stop(server)
        time.sleep(0.5)
        server = serve(port)
        caller.join(40)
        assert len(results) == 12
        assert all(isinstance(result, Reply) for result in results)
    finally:
        stop(server)
        engine.close()


def test_it_can_be_called_while_an_event_loop_runs_in_the_same_thread(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        engine = connect(server)

        async def trainer() -> list[Reply | EngineFailure]:
            return engine.generate(asks(3))

        assert all(isinstance(reply, Reply) for reply in asyncio.run(trainer()))


def test_it_can_be_called_from_many_threads_at_once(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        engine = connect(server, max_concurrency=6)
        results: list[list[Reply | EngineFailure]] = []
        callers = [threading.Thread(target=lambda: results.append(engine.generate(asks(10)))) for _ in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert all(isinstance(reply, Reply) for replies in results for reply in replies)
        assert len(results) == 6
        assert server.most_in_flight <= 6


def test_a_used_engine_survives_pickling(connect: EngineFactory) -> None:
    with JudgeServer(echo) as server:
        engine = connect(server)
        engine.generate([ask()])
        copy = pickle.loads(pickle.dumps(engine))
        assert copy.identity == engine.identity
        assert isinstance(copy.generate([ask()])[0], Reply)
        copy.close()


def test_a_key_from_the_environment_does_not_travel_in_a_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with JudgeServer(echo) as server:
        engine = OpenAIEngine("judge", server.base_url)
        engine.generate([ask()])
        engine.close()
    assert b"sk-secret" not in pickle.dumps(engine)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: run it on Linux or macOS")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_used_engine_survives_a_fork_in_both_processes(connect: EngineFactory) -> None:
    def child(engine: OpenAIEngine, pipe: Any) -> None:
        pipe.send([type(reply).__name__ for reply in engine.generate(asks(2))])
        engine.close()

    with JudgeServer(echo) as server:
        engine = connect(server)
        engine.generate([ask()])
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=child, args=(engine, there))
        process.start()
        assert here.poll(15)
        assert here.recv() == ["Reply", "Reply"]
        process.join(15)
        assert process.exitcode == 0
        assert isinstance(engine.generate([ask()])[0], Reply)
        here.close()
        there.close()


def test_an_interrupt_cancels_what_is_in_flight_and_propagates(connect: EngineFactory) -> None:
    with JudgeServer(echo, delay_s=60.0) as server:
        engine = connect(server, deadline_s=90.0, max_concurrency=4)

        def interrupt() -> None:
            server.wait_until(lambda s: s.in_flight == 4, within_s=30)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        threading.Thread(target=interrupt).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            engine.generate(asks(10))
        assert time.monotonic() - started < 50.0, "an answer takes a minute"
        sent = len(server.requests)
        server.delay_s = 0.0
        assert isinstance(engine.generate([ask("still works")])[0], Reply)
        assert len(server.requests) == sent + 1


def test_closing_from_another_thread_ends_a_call_with_an_error(connect: EngineFactory) -> None:
    with JudgeServer(echo, delay_s=60.0) as server:
        engine = connect(server, deadline_s=90.0)

        def close_soon() -> None:
            server.wait_until(lambda s: s.in_flight == 2, within_s=30)
            engine.close()

        threading.Thread(target=close_soon).start()
        with pytest.raises(errors.EngineError, match="closed while"):
            engine.generate(asks(2))


def test_the_request_carries_the_sampling_and_extra_fields_that_win_or_remove(connect: EngineFactory) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=5)
    with JudgeServer(echo) as server:
        plain = connect(server)
        extra = {"temperature": None, "top_k": 3}
        custom = connect(server, extra_body=extra, token_parameter="max_completion_tokens")
        plain.generate([ask("q", sampling=sampling, stop=("</answer>",), seed=7)])
        custom.generate([ask("q", sampling=sampling, prefill="<think>")])
        first, second = server.requests
    messages = [{"role": "user", "content": "q"}]
    assert first == {
        "model": "judge", "messages": messages, "temperature": 0.7, "top_p": 0.9, "max_tokens": 5,
        "stop": ["</answer>"], "seed": 7,
    }  # fmt: skip
    assert second == {
        "model": "judge", "messages": [*messages, {"role": "assistant", "content": "<think>"}], "top_p": 0.9,
        "max_completion_tokens": 5, "top_k": 3, "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip


def test_system_text_is_folded_into_the_first_user_turn_where_the_model_has_no_system_role(
    connect: EngineFactory,
) -> None:
    picture = ImagePart("https://example.org/a.png")
    request = Request((Message("system", (TextPart("Be fair."),)), Message("user", (TextPart("Which?"),))))
    seen = Request((*request.messages[:1], Message("user", (picture, TextPart("Which?")))))
    with JudgeServer(echo) as server:
        plain, folding = connect(server), connect(server, fold_system=True)
        plain.generate([request])
        folding.generate([request])
        folding.generate([seen])
        chats = [body["messages"] for body in server.requests]
    assert [turn["role"] for turn in chats[0]] == ["system", "user"]
    assert chats[1] == [{"role": "user", "content": "Be fair.\n\nWhich?"}]
    assert [part["type"] for part in chats[2][0]["content"]] == ["text", "image_url", "text"]
    assert len(chats[2]) == 1
    assert folding.identity == f"{plain.identity} fold_system"


@pytest.mark.parametrize(
    ("chat", "folded"),
    [
        ([("user", "q")], [("user", "q")]),
        ([("system", "s")], [("user", "s")]),
        ([("system", "s"), ("assistant", "a"), ("user", "q")], [("assistant", "a"), ("user", "s\n\nq")]),
        ([("system", "s"), ("system", "t"), ("user", "q"), ("user", "r")], [("user", "s\n\nt\n\nq"), ("user", "r")]),
    ],
)
def test_folding_keeps_every_other_turn_in_its_place(chat: Any, folded: Any) -> None:
    messages = as_messages([{"role": role, "content": text} for role, text in chat])
    assert [(message.role, message.text) for message in fold_system(messages)] == folded


# Reading


def test_a_read_by_token_ids_gives_the_planted_log_probabilities_of_exactly_the_labels(connect: EngineFactory) -> None:
    planted = {"A": -0.5, "x": -1.0, "B": -25.0}  # B would be in no top list
    with JudgeServer(label_logprobs=planted) as server:
        engine = connect(server)
        replies = engine.label_logprobs([ask(f"q {n}", **READ) for n in range(5)])
        assert [reply.label_logprobs for reply in replies if isinstance(reply, Reply)] == [(-0.5, -25.0)] * 5
        last = server.requests[-1]
        assert last["messages"][-1] == {"role": "assistant", "content": READ["prefill"]}
        assert (last["continue_final_message"], last["add_generation_prompt"]) == (True, False)
        assert (last["max_tokens"], last["temperature"]) == (1, 0.0)
        assert len(server.requests) == 6  # one of them to find out how
        assert engine.can_read


def test_a_read_by_top_tokens_gives_the_planted_log_probabilities(connect: EngineFactory) -> None:
    with JudgeServer(reads="top", label_logprobs={"A": -0.5, " A": -2.0, "B": -1.5}) as server:
        engine = connect(server)
        exact, spaced = engine.label_logprobs([ask(**READ), ask(prefill="Best:", labels=(" A", "B"))])
    assert isinstance(exact, Reply)
    assert isinstance(spaced, Reply)
    both = math.log(math.exp(-0.5) + math.exp(-2.0))  # a space before a label is no other label
    assert exact.label_logprobs == pytest.approx((both, -1.5))
    assert spaced.label_logprobs == pytest.approx((-2.0, -1.5))
    assert exact.usage.prompt_tokens > 0


def test_a_label_missing_from_the_top_tokens_is_a_failure_and_not_a_zero(connect: EngineFactory) -> None:
    planted = {"A": -0.5, **{f"t{n}": -2.0 - n for n in range(30)}, "B": -40.0}
    with JudgeServer(reads="top", label_logprobs=planted) as server:
        missing, there = connect(server).label_logprobs([ask(**READ), ask(prefill="<answer>", labels=("A", "t3"))])
    assert isinstance(missing, EngineFailure)
    assert (missing.reason, missing.transient) == ("label not in top logprobs", False)
    assert isinstance(there, Reply)


def test_labels_that_begin_with_the_same_token_are_a_failure(connect: EngineFactory) -> None:
    with JudgeServer(label_logprobs={"1": -0.5, "0": -1.0}) as server:
        result = connect(server).label_logprobs([ask(prefill="<answer>", labels=("1", "10"))])[0]
    assert isinstance(result, EngineFailure)
    assert result.reason == "labels share a token"


@pytest.mark.parametrize(("reads", "says"), [("none", "no log-probabilities"), ("hosted", "Unrecognized request")])
def test_a_server_that_cannot_read_is_refused_with_what_it_lacks_and_what_to_do(
    connect: EngineFactory, reads: str, says: str
) -> None:
    with JudgeServer(reads=reads) as server:
        engine = connect(server)
        assert engine.can_read
        with pytest.raises(errors.EngineError, match=rf"{says}.*verdict='generate'"):
            engine.label_logprobs([ask(**READ)])
        sent = len(server.requests)
        assert not engine.can_read
        with pytest.raises(errors.EngineError, match=says):
            engine.label_logprobs([ask(**READ)])
        assert len(server.requests) == sent
        assert isinstance(engine.generate([ask()])[0], Reply)


def test_an_engine_told_that_it_cannot_read_does_not_ask_the_server() -> None:
    engine = OpenAIEngine("judge", "http://127.0.0.1:1/v1", can_read=False)
    assert not engine.can_read
    with pytest.raises(errors.EngineError, match="can_read=False"):
        engine.label_logprobs([ask(**READ)])


def test_a_server_that_is_away_during_the_probe_is_not_taken_for_one_that_cannot_read(connect: EngineFactory) -> None:
    with JudgeServer() as server:
        engine = connect(server, deadline_s=0.7)
        server.all_fail = "drop"
        away = engine.label_logprobs([ask(**READ)] * 3)
        assert [failure.reason for failure in away if isinstance(failure, EngineFailure)] == ["connection lost"] * 3
        server.all_fail = None
        time.sleep(0.7)
        assert all(isinstance(reply, Reply) for reply in engine.label_logprobs([ask(**READ)] * 3))


def test_a_read_that_fails_later_is_one_failure(connect: EngineFactory) -> None:
    with JudgeServer(faults=[None, None, "400"]) as server:
        results = connect(server, max_concurrency=1).label_logprobs([ask(**READ)] * 3)
    assert [type(result).__name__ for result in results] == ["Reply", "EngineFailure", "Reply"]


# The wire


def payload(message: dict[str, Any], finish: Any = "stop") -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish}]}


def thinking(said: Any) -> dict[str, Any]:
    return {"type": "thinking", "thinking": said}


@pytest.mark.parametrize(
    ("message", "finish", "prefill", "expected"),
    [
        ({"content": "<answer>A</answer>"}, "stop", "", ("<answer>A</answer>", "stop")),
        ({"content": "<answer>A</answer>"}, None, "", ("<answer>A</answer>", "stop")),
        ({"content": ""}, "eos", "", ("", "stop")),
        ({"content": "<think>a"}, "length", "", ("<think>a", "length")),
        ({"content": None}, "length", "", ("", "length")),
        ({"content": "A", "reasoning_content": "why"}, "stop", "", ("<think>why</think>A", "stop")),
        ({"content": "A", "reasoning": "why"}, "stop", "", ("<think>why</think>A", "stop")),
        ({"content": None, "reasoning_content": "why"}, "length", "", ("<think>why", "length")),
        ({"content": None, "reasoning_content": "why"}, "stop", "", ("<think>why</think>", "stop")),
        # content in parts
        ({"content": [{"type": "text", "text": "A"}]}, "stop", "", ("A", "stop")),
        ({"content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}, "stop", "", ("AB", "stop")),
        ({"content": [thinking([{"type": "text", "text": "why"}]), {"type": "text", "text": "A"}]}, "stop", "",
         ("<think>why</think>A", "stop")),
        ({"content": [thinking("why"), {"type": "text", "text": "A"}]}, "stop", "", ("<think>why</think>A", "stop")),
        ({"content": [thinking([{"type": "text", "text": "why"}])]}, "length", "", ("<think>why", "length")),
        ({"content": [thinking([])]}, "stop", "", None),
        ({"content": [{"type": "image_url", "image_url": {}}]}, "stop", "", None),
        ({"content": [{"type": "text", "text": 1}]}, "stop", "", None),
        # the prefill opened the reasoning itself
        ({"content": "A", "reasoning_content": "why"}, "stop", "<think>", ("why</think>A", "stop")),
        # the prefill closed it: the parser took the verdict for reasoning
        ({"content": None, "reasoning": "A</answer>"}, "stop", "<think></think><answer>", ("A</answer>", "stop")),
    ],
)  # fmt: skip
def test_reasoning_set_apart_by_the_server_is_put_back(
    message: dict[str, Any], finish: Any, prefill: str, expected: tuple[str, str] | None
) -> None:
    reply = written_reply(payload(message, finish), ask(prefill=prefill))
    if expected is None:
        assert isinstance(reply, EngineFailure)
        return
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish) == expected


@pytest.mark.parametrize(
    ("body", "reason", "transient"),
    [
        (payload({"content": "x"}, "content_filter"), "refused", False),
        (payload({"content": None, "refusal": "No."}), "refused", False),
        (payload({"content": None, "tool_calls": [{}]}, "tool_calls"), "tool call", True),
        (payload({"content": "x"}, "abort"), "unknown finish", True),
        (payload({"content": "x"}, {"type": "abort"}), "unknown finish", True),
        (payload({"content": "x"}, 7), "unknown finish", True),
        (payload({"content": None}), "malformed reply", True),
        (payload({"content": [7]}), "malformed reply", True),
        (payload({}), "malformed reply", True),
        ({"choices": [None]}, "malformed reply", True),
        ({"choices": "A"}, "malformed reply", True),
        ({"object": "error", "message": "no"}, "server error", True),
        ([], "malformed reply", True),
        (None, "malformed reply", True),
        ("<html>", "malformed reply", True),
    ],
)
def test_a_reply_that_is_no_answer_is_a_failure_with_a_countable_reason(
    body: Any, reason: str, transient: bool
) -> None:
    failure = written_reply(body, ask())
    assert isinstance(failure, EngineFailure)
    assert (failure.reason, failure.transient) == (reason, transient)


def test_usage_is_taken_where_it_is_given() -> None:
    full = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    assert usage_of({"usage": full}) == Usage(9, 4, 2)
    for absent in ({}, {"usage": None}, {"usage": {"prompt_tokens": None, "prompt_tokens_details": None}}, "text"):
        assert usage_of(absent) == Usage()


def test_a_token_is_known_by_its_bytes_too_and_a_floor_is_no_probability() -> None:
    entries = [
        {"token": "ĠA", "bytes": [32, 65], "logprob": -1},
        {"token": "B", "bytes": None, "logprob": -9999.0},
        {"token": "C", "logprob": None},
    ]
    body = {"choices": [{"logprobs": {"content": [{**entries[0], "top_logprobs": entries}]}}]}
    assert top_tokens(body) == {"ĠA": -1.0, " A": -1.0}


def test_images_become_data_urls_and_web_addresses_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.png"  # by its name; the content is what counts
    photo = Image.effect_noise((40, 30), 90).convert("RGB")
    photo.save(path, format="JPEG")
    jpeg = "data:image/jpeg;base64," + base64.b64encode(path.read_bytes()).decode()
    forms: list[Any] = [path, str(path), f"file://{path}", path.read_bytes(), {"path": str(path)}, jpeg]
    assert {image_url(form) for form in forms} == {jpeg}
    assert image_url("https://example.org/a.png") == "https://example.org/a.png"
    assert image_url(photo.convert("CMYK")).startswith("data:image/png;base64,")


def test_a_server_gets_the_normalised_bounded_image_and_a_bad_one_costs_its_group_alone() -> None:
    def asking(image: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]

    large = Image.effect_noise((2000, 1000), 90)
    with JudgeServer() as server:
        settings = {"verdict": "generate", "schedule": "all_pairs", "max_pixels": 50_000}
        judge = JudgeConfig(model="judge", base_url=server.base_url, **settings).build()
        groups = [
            Group.of(asking(image), ["a", "bb"]) for image in (large, large.tobytes()[:999], "http://x.org/a.png")
        ]
        seen, bad, web = judge.judge([*groups, Group.of("text", ["a", "bb"])])[:3]
        judge.close()
    assert (seen.best, bad.best, web.best) == (1, None, 1)
    assert bad.calls == 0
    contents = [body["messages"][-1]["content"] for body in server.requests]
    urls = [part["image_url"]["url"] for content in contents if isinstance(content, list) for part in content[:1]]
    assert urls.count("http://x.org/a.png") == 2
    (data,) = {url for url in urls if url.startswith("data:image/png;base64,")}
    assert urls.count(data) == 2
    shown = Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2])))
    assert shown.size[0] / shown.size[1] == pytest.approx(2, rel=0.01)
    assert 49_000 < shown.size[0] * shown.size[1] <= 50_000


def test_a_message_with_images_is_parts_in_order_and_one_without_is_text() -> None:
    url = "https://example.org/a.png"
    messages = (
        Message("system", (TextPart("a"), TextPart("b"))),
        Message("user", (ImagePart(url), TextPart("Which?"))),
    )
    assert chat_messages(messages) == [
        {"role": "system", "content": "a\nb"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which?"}],
        },
    ]


def test_the_default_judge_of_the_test_server_prefers_the_longest_response(connect: EngineFactory) -> None:
    shown = "[Response A]\nshort\n[End of response A]\n[Response B]\nmuch longer\n[End of response B]"
    with JudgeServer() as server:
        reply = connect(server).generate([ask(shown)])[0]
    assert isinstance(reply, Reply)
    assert re.search(r"</think><answer>B</answer>$", reply.text)
