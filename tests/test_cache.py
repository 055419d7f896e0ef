"""Replies kept on disk: asked once, never a failure, the right key, and safe among processes."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import os
import pickle
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrjudge_reward.cache import ReplyCache, request_key
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.comparisons import ask
from mrjudge_reward.messages import ImagePart, Message, TextPart, as_messages
from mrjudge_reward.types import EngineFailure, Group, Reply, Request, Sampling, Usage, VerdictForm


def request(text: str = "Which?", **more: Any) -> Request:
    return Request(as_messages(text), **more)


def showing(image: Any) -> Request:
    return Request((Message("user", (TextPart("Which?"), ImagePart(image))),))


def key(asked: Request, verb: Any = "generate", identity: str = "judge") -> bytes:
    return request_key(ScriptedEngine(lambda _: "", identity), verb, asked)


GROUPS = [Group.of(f"question {i}", ["a", "bb", "ccc"], str(i)) for i in range(4)]


# -- asking once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["sampled", "read", "cascade"])
def test_a_second_run_asks_nothing_and_says_the_same(tmp_path: Path, verdict: Any):
    first, second = ScriptedEngine.by_utility(len), ScriptedEngine.by_utility(len)
    path = tmp_path / "sub" / "replies.sqlite"
    judges = [
        Judge(engine, schedule="all_pairs", verdict=verdict, cache=ReplyCache(path)) for engine in (first, second)
    ]
    one, two = (judge.judge(GROUPS) for judge in judges)
    assert first.batches
    assert second.batches == []
    assert [judgement.scores_G for judgement in one] == [judgement.scores_G for judgement in two]
    assert all(j.calls == 0 and j.cache_hits > 0 and j.usage == Usage() for j in two)
    for judge in judges:
        judge.close()


def test_only_what_is_new_is_asked(tmp_path: Path):
    cache, engine = ReplyCache(tmp_path / "replies.sqlite"), ScriptedEngine(lambda asked: asked.messages[0].text)
    ask(engine, "generate", [request("one"), request("two")], cache)
    answers = ask(engine, "generate", [request("three"), request("two"), request("three")], cache)
    assert engine.batches == [2, 1]
    assert [answer.fresh for answer in answers] == [True, False, False]
    assert [answer.reply.text for answer in answers if isinstance(answer.reply, Reply)] == ["three", "two", "three"]
    assert len(cache) == 3
    cache.close()


def test_more_requests_than_one_statement_holds_come_back_in_order(tmp_path: Path):
    cache, engine = ReplyCache(tmp_path / "replies.sqlite"), ScriptedEngine(lambda asked: asked.messages[0].text)
    requests = [request(f"{i}") for i in range(1500)]
    for _ in range(2):
        texts = [answer.reply.text for answer in ask(engine, "generate", requests, cache)]  # type: ignore[union-attr]
        assert texts == [f"{i}" for i in range(1500)]
    assert engine.batches == [1500]
    cache.close()


def test_failures_are_not_kept(tmp_path: Path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    broken, healed = ScriptedEngine(lambda _: EngineFailure("timeout")), ScriptedEngine(lambda _: "fine")
    assert isinstance(ask(broken, "generate", [request()], cache)[0].reply, EngineFailure)
    assert len(cache) == 0
    assert ask(healed, "generate", [request()], cache)[0].fresh
    cache.close()


def test_a_reply_that_could_not_be_parsed_is_kept_as_the_engine_gave_it(tmp_path: Path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    reply = Reply("off \ud800 topic\x00", "length", (-math.inf, -0.1), Usage(3, 2, 1))
    ask(ScriptedEngine(lambda _: reply), "generate", [request()], cache)
    kept = ask(ScriptedEngine(lambda _: "not asked"), "generate", [request()], cache)[0]
    assert (kept.reply, kept.fresh) == (reply, False)
    cache.close()


def test_a_reply_there_already_stays(tmp_path: Path):
    with_one = ReplyCache(tmp_path / "replies.sqlite")
    with_one.put({b"k": Reply("first")})
    with_one.put({b"k": Reply("second")})
    assert with_one.get([b"k", b"unknown"]) == {b"k": Reply("first")}
    with_one.close()


# -- what breaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoiled", ["", "{", "null", "[1]", "{}", '{"usage": 3}', '{"usage": {}, "label_logprobs": 1}', b"\xff\xfe"]
)
def test_a_row_that_cannot_be_decoded_is_a_miss_and_is_replaced(
    tmp_path: Path, spoiled: Any, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    cache.put({b"bad": Reply("old"), b"worse": Reply("old"), b"good": Reply("good")})
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE replies SET reply = CAST(? AS TEXT) WHERE key IN (?, ?)", (spoiled, b"bad", b"worse")
        )
    connection.close()
    for _ in range(2):
        assert cache.get([b"bad", b"worse", b"good"]) == {b"good": Reply("good")}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be decoded" in caplog.text
    cache.put({b"bad": Reply("new"), b"good": Reply("ignored")})
    assert cache.get([b"bad", b"good"]) == {b"bad": Reply("new"), b"good": Reply("good")}
    cache.put({b"bad": Reply("newer")})
    assert cache.get([b"bad"]) == {b"bad": Reply("new")}, "a mended row stays like any other"
    cache.close()


def test_a_locked_cache_keeps_nothing_warns_once_and_judging_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "replies.sqlite"
    cache, engine = ReplyCache(path, timeout_s=0.05), ScriptedEngine(lambda _: "fine")
    ask(engine, "generate", [request("known")], cache)
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        known, new = ask(engine, "generate", [request("known"), request("new")], cache)
        assert (known.fresh, new.fresh) == (False, True)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be written (database is locked); judging goes on" in caplog.text
    other.rollback()
    other.close()
    ask(engine, "generate", [request("new")], cache)
    assert len(cache) == 2, "it is used again as soon as it is free"
    cache.close()


def test_a_cache_that_cannot_be_read_knows_nothing_warns_once_and_judging_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "replies.sqlite"
    cache, engine = ReplyCache(path), ScriptedEngine(lambda _: "fine")
    ask(engine, "generate", [request()], cache)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE replies")
    connection.close()
    for _ in range(3):
        assert ask(engine, "generate", [request()], cache)[0].fresh
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "cannot be read (no such table: replies); judging goes on without what it holds" in said[0]
    assert "cannot be written" in said[1]
    cache.close()


def test_a_cache_that_cannot_be_opened_again_does_not_stop_judging(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    cache.close()
    path.write_text("no database " * 100)
    assert ask(ScriptedEngine(lambda _: "fine"), "generate", [request()], cache)[0].fresh
    assert "cannot serve as a reply cache" in caplog.text


@pytest.mark.parametrize("verb", ["generate", "label_logprobs"])
def test_an_engine_that_returns_another_number_of_replies_is_named(verb: Any):
    class Short(ScriptedEngine):
        def generate(self, requests: Any) -> Any:
            return super().generate(requests)[:-1]

        label_logprobs = generate

    with pytest.raises(EngineError, match="short judge returned 2 replies to 3 requests"):
        ask(Short(lambda _: "fine", "short judge"), verb, [request(f"{i}") for i in range(3)])


# -- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        key(request("Which one?")),
        key(Request((Message("system", (TextPart("Which?"),)),))),
        key(Request((Message("user", (TextPart("Which"), TextPart("?"))),))),
        key(request(prefill="<think>\n")),
        key(request(labels=("A", "B"))),
        key(request(sampling=Sampling(temperature=0.1))),
        key(request(sampling=Sampling(top_p=0.9))),
        key(request(sampling=Sampling(max_tokens=7))),
        key(request(stop=("</think>",))),
        key(request(seed=1)),
        key(request(form=VerdictForm("<answer>", "</answer>", ("A", "B")))),
        key(showing(b"png")),
        key(request(), verb="label_logprobs"),
        key(request(), identity="another judge"),
    ],
)
def test_every_part_of_a_call_is_part_of_its_key(changed: bytes):
    assert changed != key(request())
    assert key(request()) == key(request())
    assert len(changed) == 32


def test_every_field_of_a_request_is_covered():
    assert {field.name for field in dataclasses.fields(Request)} == {
        "messages", "prefill", "labels", "sampling", "stop", "seed", "form",
    }  # fmt: skip


def test_texts_that_join_to_the_same_have_different_keys():
    assert key(request(prefill="a", labels=("b",))) != key(request(prefill="ab", labels=("",)))
    assert key(request(labels=("a", "b"))) != key(request(labels=("a', 'b",)))


def test_the_key_survives_a_lone_surrogate():
    assert key(request("\ud800")) != key(request("\ud801"))


def test_an_image_is_known_by_its_content_not_its_path(tmp_path: Path):
    one, copy, other = tmp_path / "one.png", tmp_path / "copy.png", tmp_path / "other.png"
    one.write_bytes(b"pixels")
    copy.write_bytes(b"pixels")
    other.write_bytes(b"other pixels")
    assert key(showing(one)) == key(showing(str(copy))) == key(showing(b"pixels"))
    assert key(showing(one)) != key(showing(other))
    before = key(showing(one))
    one.write_bytes(b"changed")
    assert key(showing(one)) != before


@pytest.mark.parametrize("length", [10, 1000, 10_000])
def test_a_data_url_of_any_length_is_its_own_content(length: int):
    assert key(showing("data:image/png;base64," + "A" * length)) != key(
        showing("data:image/png;base64," + "B" * length)
    )


@dataclasses.dataclass
class Pixels:
    """What the key reads of a PIL image."""

    mode: str
    size: tuple[int, int]
    data: bytes

    def tobytes(self) -> bytes:
        return self.data


def test_a_loaded_image_is_known_by_mode_size_and_pixels():
    plain = Pixels("RGB", (4, 2), b"red" * 8)
    assert key(showing(plain)) == key(showing(Pixels("RGB", (4, 2), b"red" * 8)))
    others = [Pixels("RGB", (2, 4), b"red" * 8), Pixels("RGB", (4, 2), b"sky" * 8), Pixels("L", (4, 2), b"red" * 8)]
    for other in others:
        assert key(showing(plain)) != key(showing(other))


# -- the file ---------------------------------------------------------------------------------------------------------


def write(path: str, name: str, count: int, started: Any = None) -> None:
    cache = ReplyCache(path)
    for index in range(count):
        cache.put({f"{name}{index}".encode(): Reply(f"{name} {index}"), f"shared{index}".encode(): Reply("shared")})
        if started is not None and index == 5:
            started.set()
    cache.close()


def test_two_processes_may_write_at_once(tmp_path: Path):
    path = str(tmp_path / "replies.sqlite")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, name, 150)) for name in ("left", "right")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = ReplyCache(path)
    assert len(cache) == 450
    assert cache.get([b"left149", b"right149"]) == {b"left149": Reply("left 149"), b"right149": Reply("right 149")}
    cache.close()


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path):
    """sqlite answers "locked" at once, whatever its timeout, where two connections turn one file to WAL together."""
    from concurrent.futures import ThreadPoolExecutor

    together = threading.Barrier(4)

    def open_one(path: Path) -> None:
        together.wait()
        ReplyCache(path).close()

    with ThreadPoolExecutor(4) as pool:
        for attempt in range(60):
            list(pool.map(open_one, [tmp_path / f"{attempt}.sqlite"] * 4))


def test_a_process_killed_while_writing_leaves_a_usable_cache(tmp_path: Path):
    path = str(tmp_path / "replies.sqlite")
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    writer = context.Process(target=write, args=(path, "killed", 10**6, started))
    writer.start()
    assert started.wait(60)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    cache = ReplyCache(path)
    assert len(cache) >= 12
    assert cache.get([b"killed0"]) == {b"killed0": Reply("killed 0")}
    cache.put({b"after": Reply("still works")})
    assert b"after" in cache.get([b"after"])
    cache.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_threads_may_share_a_cache(tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    cache = ReplyCache(tmp_path / "replies.sqlite")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: cache.put({f"{index}".encode(): Reply(f"{index}")}), range(100)))
    assert len(cache) == 100
    cache.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_its_own_connection(tmp_path: Path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put({b"parent": Reply("parent")})
    child = os.fork()
    if child == 0:
        try:
            cache.put({b"child": Reply("child")})
            os._exit(0 if cache.get([b"parent"]) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert set(cache.get([b"parent", b"child"])) == {b"parent", b"child"}
    cache.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_another_thread_uses_the_cache_does_not_wait_for_it(tmp_path: Path):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put({b"parent": Reply("parent")})
    with cache._lock:  # as a thread that is not in the child
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            cache.put({b"child": Reply("child")})
            found = cache.get([b"parent", b"child"])
            cache.close()
            os._exit(0 if len(found) == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
    cache.put({b"after": Reply("after")})
    assert len(cache) == 3
    cache.close()


def other_tables(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE replies (something TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("model: embedded\n" * 100),
        lambda path: path.mkdir(),
        other_tables,
    ],
    ids=["a text file", "a folder", "another database"],
)
def test_what_is_no_reply_cache_is_refused_by_name(tmp_path: Path, spoil: Any):
    path = tmp_path / "not a cache"
    spoil(path)
    with pytest.raises(ConfigError, match="not a cache cannot serve as a reply cache"):
        ReplyCache(path)


def test_a_path_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot serve"):
        ReplyCache(tmp_path / "file" / "replies.sqlite")


def test_a_cache_survives_pickling_and_closing_twice(tmp_path: Path):
    cache = ReplyCache(tmp_path / "replies.sqlite", timeout_s=7)
    cache.put({b"k": Reply("kept")})
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.timeout_s == cache.timeout_s == 7
    cache.close()
    cache.close()
    assert copy.get([b"k"]) == {b"k": Reply("kept")}
    assert cache.get([b"k"]) == {b"k": Reply("kept")}, "a closed cache opens again when it is needed"
    copy.close()
    cache.close()


def test_asking_without_a_cache_still_asks_each_request_once():
    engine: Engine = ScriptedEngine(lambda _: "fine")
    answers = ask(engine, "generate", [request()] * 1000)
    assert sum(answer.fresh for answer in answers) == 1


@pytest.mark.parametrize("image", [
    Image.new("RGB", (2, 2)), Image.new("P", (2, 2)), b"bytes", bytearray(b"bytes"), "a.png", Path("a.png"),
    np.zeros((2, 2, 3), np.uint8), {"bytes": b"bytes"}, "data:image/png;base64,AA==", "https://example.org/a.png",
])  # fmt: skip
def test_requests_that_show_an_image_of_any_kind_are_asked_once(image: Any):
    engine = ScriptedEngine(lambda _: "seen")
    asked = [Request((Message("user", (ImagePart(image), TextPart("Which?"))),)) for _ in range(3)]
    answers = ask(engine, "generate", asked)
    assert [answer.fresh for answer in answers] == [True, False, False]
    assert engine.batches == [1]
