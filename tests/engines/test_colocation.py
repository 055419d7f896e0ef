"""A judge that shares its device: awake in its turns only, asleep whatever happens, and never two at once."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.cancelling import Cancellation
from mrjudge_reward.engines.colocation import ColocatedEngine, DeviceTurns, SleepingEngine, lock_folder
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.engines.vllm.child import ServerChild
from mrjudge_reward.engines.vllm.server import VLLMServerEngine
from mrjudge_reward.engines.vllm.setup import VLLMSetup
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.messages import as_messages
from mrjudge_reward.types import EngineFailure, Group, Reply, Request
from tests.support import ROOT

GROUPS = [Group.of(f"question {i}", ["a", "bb", "ccc", "dddd"], str(i)) for i in range(4)]
HELLO = [Request(as_messages("Hello"))]


@pytest.fixture(autouse=True)
def _locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRJUDGE_LOCKS", str(tmp_path / "locks"))


class Sleeper(ScriptedEngine):
    """The scripted engine, with a device: it notes what is done to it, and fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        super().__init__(lambda request: "<answer>A</answer>", "sleeper")
        self.log: list[str] = ["built"]
        self.failing = set(failing)
        self.error: type[BaseException] = EngineError
        self.awake = True

    def note(self, what: str) -> None:
        self.log.append(what)
        if what in self.failing:
            raise self.error(f"cannot {what}")

    def wake(self) -> None:
        self.note("wake")
        self.awake = True

    def sleep(self) -> None:
        self.note("sleep")
        self.awake = False

    def generate(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        assert self.awake, "asked while it sleeps"
        self.note("generate")
        return super().generate(requests)

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def sleeper() -> Sleeper:
    return Sleeper()


@pytest.fixture
def colocated(sleeper: Sleeper) -> ColocatedEngine:
    return ColocatedEngine(lambda: sleeper, ["cpu"])


def is_free(wait_s: float = 0.05) -> bool:
    try:
        with DeviceTurns(["cpu"], "somebody else", wait_s).turn():
            return True
    except EngineError:
        return False


# -- one turn ---------------------------------------------------------------------------------------------------------


def test_it_sleeps_as_soon_as_it_is_loaded_and_wakes_once_for_a_batch_of_groups(
    sleeper: Sleeper, colocated: ColocatedEngine
):
    assert isinstance(colocated, SleepingEngine) is False, "it takes turns; nobody puts it to sleep from outside"
    assert sleeper.log == ["built", "sleep"]
    Judge(colocated, schedule="adaptive").judge(GROUPS)
    assert sleeper.log[2] == "wake"
    assert sleeper.log[-1] == "sleep"
    assert set(sleeper.log[3:-1]) == {"generate"}
    assert len(sleeper.log[3:-1]) > 1, "several rounds, one turn"
    assert colocated.turns == 2
    assert is_free()


def test_a_verb_called_outside_a_session_takes_a_turn_of_its_own(sleeper: Sleeper, colocated: ColocatedEngine):
    colocated.generate(HELLO)
    colocated.label_logprobs(HELLO)
    assert sleeper.log[2:] == ["wake", "generate", "sleep", "wake", "sleep"]
    assert colocated.count_tokens("two words") == sleeper.count_tokens("two words")
    assert sleeper.log[-1] == "sleep", "counting needs no turn"


def test_what_it_tells_of_the_engine_is_the_engine_s_own(sleeper: Sleeper, colocated: ColocatedEngine):
    for name in ("identity", "reserved", "context_tokens", "can_read"):
        assert getattr(colocated, name) == getattr(sleeper, name)
    colocated.close()
    assert sleeper.log[-1] == "close"


@pytest.mark.parametrize("error", [EngineError, RuntimeError, KeyboardInterrupt])
def test_it_sleeps_also_when_judging_fails_or_is_interrupted(
    sleeper: Sleeper, colocated: ColocatedEngine, error: type[BaseException]
):
    sleeper.failing, sleeper.error = {"generate"}, error
    with pytest.raises(error, match="cannot generate"):
        Judge(colocated, schedule="ring").judge(GROUPS)
    assert sleeper.log[-3:] == ["wake", "generate", "sleep"]
    assert is_free()
    sleeper.failing = set()
    assert Judge(colocated, schedule="ring").judge(GROUPS)[0].calls, "and goes on afterwards"


def test_where_it_does_not_wake_it_is_put_back_to_sleep_and_the_device_is_free(
    sleeper: Sleeper, colocated: ColocatedEngine
):
    sleeper.failing = {"wake"}
    with pytest.raises(EngineError, match="cannot wake"):
        colocated.generate(HELLO)
    assert sleeper.log[-2:] == ["wake", "sleep"]
    assert is_free()


def test_where_it_does_not_sleep_the_error_is_raised_and_the_device_is_free(
    sleeper: Sleeper, colocated: ColocatedEngine
):
    sleeper.failing = {"sleep"}
    with pytest.raises(EngineError, match="cannot sleep"):
        colocated.generate(HELLO)
    assert is_free()


def test_an_interrupt_while_it_goes_to_sleep_does_not_leave_it_awake(sleeper: Sleeper, colocated: ColocatedEngine):
    once = iter([KeyboardInterrupt])

    def sleep() -> None:
        sleeper.log.append("sleep")
        for error in once:
            raise error
        sleeper.awake = False

    sleeper.sleep = sleep  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        colocated.generate(HELLO)
    assert not sleeper.awake
    assert is_free()


def test_threads_that_judge_at_once_share_a_turn(sleeper: Sleeper, colocated: ColocatedEngine):
    both = threading.Barrier(2)

    def judge() -> None:
        with colocated.session():
            both.wait(10)
            colocated.generate(HELLO)

    threads = [threading.Thread(target=judge) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sleeper.log[2:] == ["wake", "generate", "generate", "sleep"]


def test_a_thread_whose_call_was_cancelled_does_not_wake_it(sleeper: Sleeper, colocated: ColocatedEngine):
    cancellation = Cancellation()
    cancellation.cancel()
    with cancellation.governs(), pytest.raises(EngineError, match="cancelled"):
        colocated.generate(HELLO)
    assert sleeper.log == ["built", "sleep"]
    assert is_free()


def test_an_engine_that_cannot_sleep_is_closed_and_refused():
    class Closing(ScriptedEngine):
        closed = False

        def close(self) -> None:
            Closing.closed = True

    with pytest.raises(ConfigError, match="cannot sleep, so it cannot share a device"):
        ColocatedEngine(lambda: Closing(lambda _: ""), ["cpu"])
    assert Closing.closed
    assert is_free()


def test_an_engine_that_does_not_go_to_sleep_after_loading_is_closed():
    sleeper = Sleeper("sleep")
    with pytest.raises(EngineError, match="cannot sleep"):
        ColocatedEngine(lambda: sleeper, ["cpu"])
    assert sleeper.log == ["built", "sleep", "close"]
    assert is_free()


def test_a_pickled_engine_is_built_anew():
    twin = pickle.loads(pickle.dumps(ColocatedEngine(Sleeper, ["cpu"])))
    twin.generate(HELLO)
    assert twin.engine.log == ["built", "sleep", "wake", "generate", "sleep"]


# -- what must not leave it awake, or the device held -------------------------------------------------------------------


def test_a_cache_is_refused_for_weights_that_may_change(tmp_path: Path):
    class Trains(Sleeper):
        weights_may_change = True

    engine = ColocatedEngine(Trains, ["cpu"])
    with closing(ReplyCache(tmp_path / "replies")) as cache, pytest.raises(ConfigError, match="weights may change"):
        Judge(engine, cache=cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: run it on Linux or macOS")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_can_take_turns(colocated: ColocatedEngine):
    child = os.fork()
    if child == 0:
        try:
            colocated.generate(HELLO)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_as_the_lock_is_taken_gives_it_back(monkeypatch: pytest.MonkeyPatch, colocated: ColocatedEngine):
    take = DeviceTurns._take

    def interrupted(*arguments: Any) -> None:
        take(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DeviceTurns, "_take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            colocated.generate(HELLO)
    colocated.generate(HELLO)
    assert is_free()


def test_a_holder_that_cannot_be_noted_costs_nothing_and_a_lock_that_cannot_be_had_is_named(colocated: ColocatedEngine):
    holder, lock = lock_folder() / "cpu.holder", lock_folder() / "cpu.lock"
    holder.unlink()
    holder.mkdir()
    assert isinstance(colocated.generate(HELLO)[0], Reply)
    lock.unlink()
    lock.mkdir()
    with pytest.raises(EngineError, match=r"cpu\.lock cannot be locked .*set MRJUDGE_LOCKS"):
        colocated.generate(HELLO)


class Answering(ServerChild):
    """A server of which only the answers about sleeping are there; an interrupt comes before or after one of them."""

    def __init__(self, interrupted: str = "", after: bool = False) -> None:
        self.died, self._calls, self._changed = "", 0, threading.Condition()
        self.asleep, self.interrupted, self.after, self._log_path = False, interrupted, after, Path("log")

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 300.0) -> Any:
        comes = self.interrupted != "" and self.interrupted in path
        if comes:
            self.interrupted = ""
            if not self.after:
                raise KeyboardInterrupt
        self.asleep = "/sleep" in path or (self.asleep and "wake_up" not in path)
        if comes:
            raise KeyboardInterrupt
        return {"is_sleeping": self.asleep}

    def stop(self) -> None:
        if self.interrupted == "stop":
            raise KeyboardInterrupt


def server_engine(child: Answering) -> VLLMServerEngine:
    engine = object.__new__(VLLMServerEngine)
    engine._setup = VLLMSetup("m", enable_sleep_mode=True)
    engine._lock, engine._child, engine._finalizer = threading.RLock(), child, None
    engine._asleep, engine._closed, engine._told = False, False, True
    engine.identity, engine.reserved, engine.context_tokens = "m", frozenset(), None
    return engine


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("request_", ["/sleep", "/is_sleeping", "/wake_up"])
def test_a_server_that_is_interrupted_as_it_changes_ends_asleep_and_wakes_again(request_: str, after: bool):
    child = Answering()
    engine = ColocatedEngine(lambda: server_engine(child), ["cpu"])
    child.interrupted, child.after = request_, after
    with pytest.raises(KeyboardInterrupt), engine.session():
        assert not child.asleep
    assert child.asleep
    with engine.session():
        assert not child.asleep
    assert child.asleep


def test_a_server_that_is_ended_counts_as_dead_also_if_its_ending_is_interrupted():
    child = Answering("stop")
    with pytest.raises(KeyboardInterrupt), child.ended_if_this_fails("wake"):
        raise EngineError("no memory")
    assert "did not wake" in child.died


# -- among processes --------------------------------------------------------------------------------------------------


def test_who_waits_too_long_is_told_who_holds_the_device(colocated: ColocatedEngine):
    turns = DeviceTurns(["cpu"], "somebody else", wait_s=0.05)
    held_by = rf"no turn on cpu .* process {os.getpid()} \(sleeper\)"
    with colocated.session(), pytest.raises(EngineError, match=held_by), turns.turn():
        pass
    assert is_free()


def test_a_long_wait_is_said(
    colocated: ColocatedEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("mrjudge_reward.engines.colocation._SAY_AFTER_S", 0.05)
    turns = DeviceTurns(["cpu"], "somebody else", wait_s=0.2)
    with colocated.session(), caplog.at_level(logging.WARNING), pytest.raises(EngineError), turns.turn():
        pass
    assert f"somebody else waits for its turn on cpu, held by process {os.getpid()}" in caplog.text


def test_two_devices_are_taken_in_one_order_whatever_order_they_are_named_in():
    done: list[str] = []

    def take(*devices: str) -> None:
        for _ in range(20):
            with DeviceTurns(devices, "x", wait_s=20).turn():
                time.sleep(0.001)
        done.append(devices[0])

    threads = [threading.Thread(target=take, args=names) for names in (("cpu", "mps:0"), ("mps:0", "cpu"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["cpu", "mps:0"]


def test_threads_of_one_process_take_turns_too():
    turns = DeviceTurns(["cpu"], "x", wait_s=20)
    inside: list[int] = []
    most = [0]

    def take() -> None:
        for _ in range(20):
            with turns.turn():
                inside.append(1)
                most[0] = max(most[0], len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    short = DeviceTurns(["cpu"], "x", wait_s=0.05)
    with short.turn(), pytest.raises(EngineError, match="this process has one already"), short.turn():
        pass


def test_a_folder_that_cannot_hold_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRJUDGE_LOCKS", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match="set MRJUDGE_LOCKS"):
        DeviceTurns(["cpu"], "x")
    monkeypatch.delenv("MRJUDGE_LOCKS")
    assert lock_folder().name.startswith("mrjudge-locks-")


def as_link(folder: Path) -> None:
    folder.with_name("planted").mkdir(mode=0o700)
    folder.symlink_to(folder.with_name("planted"))


def as_broken_link(folder: Path) -> None:
    folder.symlink_to(folder.with_name("nowhere"))


def as_file(folder: Path) -> None:
    folder.write_text("")


def with_mode(mode: int, user: int = -1) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        folder.chmod(mode)
        os.chown(folder, user, -1)

    return make


FOLDERS = [  # what stands there, what is said where it was found, and where the user named it
    (with_mode(0o700), "", ""),
    (with_mode(0o755), "", ""),
    (with_mode(0o770), "others may write to it: its mode is 770", ""),
    (with_mode(0o777), "others may write to it", "others may write to it: its mode is 777"),
    (with_mode(0o1777), "others may write to it", ""),
    (with_mode(0o707), "others may write to it", "others may write to it"),
    (with_mode(0o700, 4321), "it belongs to user 4321, and this is user 0", "it belongs to user 4321"),
    (with_mode(0o777, 4321), "it belongs to user 4321", "it belongs to user 4321"),
    (as_link, "it is a link, which somebody may have planted", ""),
    (as_broken_link, "File exists", "File exists"),
    (as_file, "File exists", "File exists"),
]  # fmt: skip


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away: run it as root")
@pytest.mark.parametrize(("make", "found", "named"), FOLDERS)
def test_locks_are_kept_only_where_nobody_else_can_write(
    make: Callable[[Path], None], found: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MRJUDGE_LOCKS")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = lock_folder()
    make(folder)
    for fault in (found, named):
        if fault:
            with pytest.raises(ConfigError, match=rf"{fault}.*set MRJUDGE_LOCKS"):
                DeviceTurns(["cpu"], "x")
        else:
            DeviceTurns(["cpu"], "x")
        monkeypatch.setenv("MRJUDGE_LOCKS", str(folder))


@pytest.mark.parametrize("name", ["cpu.lock", "cpu.holder"])
def test_no_link_in_the_folder_of_locks_is_followed(name: str, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    turns = DeviceTurns(["cpu"], "x", wait_s=0.1)
    (lock_folder() / name).symlink_to(precious)
    if name == "cpu.lock":
        with pytest.raises(EngineError, match="it is a link, which somebody may have planted"), turns.turn():
            pass
    else:
        with turns.turn():
            pass
    assert precious.read_text() == "mine"


CONTENDER = textwrap.dedent(
    """
    import json, random, sys, threading, time
    from mrjudge_reward import Group, Judge
    from mrjudge_reward.engines.colocation import ColocatedEngine
    from mrjudge_reward.engines.scripted import ScriptedEngine

    class Timed(ScriptedEngine):
        intervals = []
        def wake(self):
            self.intervals.append([time.monotonic()])
        def sleep(self):
            if not self.intervals:
                return  # after loading
            self.intervals[-1].append(time.monotonic())
        def generate(self, requests):
            time.sleep(random.uniform(0, 0.004))
            return super().generate(requests)

    engine = ColocatedEngine(lambda: Timed(lambda _: "<answer>A</answer>", sys.argv[1]), ["cpu"])
    judge = Judge(engine, schedule="adaptive")
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), told.set()), daemon=True).start()
    step = 0
    while not told.is_set():
        step += 1
        time.sleep(random.uniform(0, 0.06))  # the policy's own work
        judge.judge([Group.of("q", ["a", "b", "c"], f"{step}")])
        print("judged", flush=True)
    print(json.dumps(Timed.intervals), flush=True)
    """
)


def contender(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, cwd=ROOT)  # fmt: skip


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_two_processes_on_one_device_are_never_awake_at_once():
    processes = [contender(CONTENDER, name) for name in ("left", "right")]
    try:
        for _ in range(8):
            assert [ask(process) for process in processes] == ["judged\n"] * 2
    finally:  # only now, so that neither ends before the other has had its turns
        written = [process.communicate("\n", timeout=60)[0] for process in processes]
    recorded = [json.loads(lines.splitlines()[-1]) for lines in written]
    assert min(len(intervals) for intervals in recorded) > 3
    left, right = ({tuple(interval) for interval in intervals} for intervals in recorded)
    whole = [(min(starts), max(ends)) for starts, ends in (zip(*intervals, strict=True) for intervals in recorded)]
    assert max(start for start, _ in whole) < min(end for _, end in whole), "they did contend"
    ordered = sorted(left | right)
    assert all(end <= start for (_, end), (start, _) in pairwise(ordered))
    sides = [interval in left for interval in ordered]
    assert any(one != other for one, other in pairwise(sides))


HOLDER = textwrap.dedent(
    """
    import sys, time
    from mrjudge_reward.engines.colocation import DeviceTurns
    with DeviceTurns(["cpu"], "a holder").turn():
        print("held", flush=True)
        time.sleep(600)
    """
)


def test_a_process_killed_in_its_turn_gives_the_device_back():
    process = contender(HOLDER)
    try:
        assert ask(process) == "held\n"
        assert not is_free()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        assert is_free(wait_s=5)
    finally:
        process.kill()
        process.communicate()


# -- with real models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offloaded(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRJUDGE_LOCKS", str(tmp_path_factory.mktemp("locks")))
        judge = JudgeConfig(engine="offload", device="cpu").build()
        yield judge
        judge.close()


def test_an_offloaded_judge_is_on_its_device_in_its_turns_only_and_judges_as_ever(offloaded: Judge):
    engine: Any = offloaded.engine
    seen: list[bool] = []
    verb = engine.engine.label_logprobs
    engine.engine.label_logprobs = lambda requests: [seen.append(engine.engine.awake), *verb(requests)][1:]
    texts = ["A dull, lifeless mess.", "I loved every minute of it!"]
    there = offloaded.rank("Write a line about the film.", texts)
    assert seen == [True]
    assert not engine.engine.awake
    plain = JudgeConfig().build()
    assert there.scores_G == pytest.approx(plain.rank("Write a line about the film.", texts).scores_G)
    plain.close()


def test_a_config_for_a_shared_device_says_before_loading_whether_the_judge_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    loaded: list[str] = []
    monkeypatch.setattr("mrjudge_reward.engines.memory.host_free_bytes", lambda: 10**8)
    monkeypatch.setattr(JudgeConfig, "_load", lambda config, level: (loaded.append(caplog.text), Sleeper())[1])
    with caplog.at_level(logging.WARNING, "mrjudge_reward"):
        engine = JudgeConfig(engine="offload", device="cpu").build_engine()
    assert isinstance(engine, ColocatedEngine)
    assert "the judge embedded needs" in loaded[0]
    assert "It does not fit" in loaded[0]


def test_build_arguments_make_a_picklable_engine():
    engine = ColocatedEngine(partial(Sleeper), ["cpu"], wait_s=5)
    assert pickle.loads(pickle.dumps(engine))._wait_s == 5
