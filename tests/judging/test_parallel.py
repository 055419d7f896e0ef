"""Groups side by side: the judgements of lock-step, without its waiting."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest

from mrjudge_reward.engines.cancelling import CANCELLED, Cancellation, cancelled
from mrjudge_reward.engines.openai.engine import OpenAIEngine
from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.errors import EngineError, JudgeUnreliableError
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.parallel import MOST_SHARES, in_order, shares, side_by_side
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.schedules import SCHEDULES, Limits
from mrjudge_reward.scoring.tally import count_games
from mrjudge_reward.types import (
    Comparison,
    EngineFailure,
    Group,
    JudgedComparison,
    Judgement,
    Preference,
    Reply,
    Request,
    Verdict,
)
from tests.support import ROOT
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text

LONG_S = 30.0  # that something is waited for which must happen, or else the test fails


def taste(text: str) -> float:
    return (sum(map(ord, text)) * 37 % 101) / 20


def group(key: object, question: object = None, size: int = 6) -> Group:
    question = key if question is None else question
    return Group.of(f"question {question}?", [f"answer {i} to {question}" for i in range(size)], str(key))


def engine(several_calls: bool, cls: type[ScriptedEngine] = ScriptedEngine) -> ScriptedEngine:
    made = cls(ScriptedEngine.by_utility(taste, 0.7).script)
    made.concurrent_calls = several_calls
    return made


def without_time(judgements: Sequence[Judgement]) -> list[Judgement]:
    return [dataclasses.replace(judgement, seconds=0.0) for judgement in judgements]


def alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mrjudge-rounds"]


# -- which schedules, and which groups together -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_of_several_rounds_are_those_that_ask_again_after_a_tally(schedule: str) -> None:
    plan = SCHEDULES[schedule].plan(8, Limits(), Random(0))
    slots = next(plan)
    played = [JudgedComparison(Comparison(pair), Verdict(Preference((0.8, 0.2)))) for pair in slots if len(pair) == 2]
    try:
        plan.send(count_games(8, played))
    except StopIteration:
        assert not SCHEDULES[schedule].looks
    else:
        assert SCHEDULES[schedule].looks


def test_groups_of_one_question_share_and_all_others_are_spread() -> None:
    judge = Judge(engine(True))
    image = object()

    def looking(key: str, at: Any) -> Group:
        prompt = (Message("user", (ImagePart(at), TextPart("What is it?"))),)
        return Group.of(prompt, ["a cat", "a dog"], key)

    groups = [
        group("0", "same"), group("1", "same"), group("2"),
        dataclasses.replace(group("3", "same"), rubric="Be kind."),
        looking("4", image), looking("5", object()), looking("6", image), looking("7", "a.png"), looking("8", "a.png"),
    ]  # fmt: skip
    begun = [judge._begin(group, None, 0) for group in groups]
    dealt = [[tournament.group.key for tournament in share] for share in shares(begun)]
    assert dealt == [["0", "1"], ["2"], ["3"], ["4", "6"], ["5"], ["7", "8"]]
    many = [judge._begin(group(i, size=2), None, 0) for i in range(3 * MOST_SHARES + 1)]
    sizes = [len(share) for share in shares(many)]
    assert (len(sizes), min(sizes), max(sizes), sum(sizes)) == (MOST_SHARES, 3, 4, len(many))


# -- the same judgements ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"verdict": "read"},
        {"verdict": "read", "audit": True, "both_orders": True},
        {"temperature": 0.7, "top_p": 1.0, "max_tokens": 64, "votes": 2},
        {"verdict": "cascade", "cascade_margin": 1.5},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("schedule", ["adaptive", "swiss", "knockout", "ring"])
def test_side_by_side_and_in_lock_step_everything_but_the_time_is_the_same(schedule: str, settings: Any) -> None:
    groups = [group(i, question=i // 2, size=2 + i % 7) for i in range(12)]
    groups += [Group.of("q", texts, f"odd {i}") for i, texts in enumerate((["a", "a", ""], [], ["x"], ["u", "v", "u"]))]
    lock_step, side = engine(False), engine(True)
    expected = Judge(lock_step, schedule=schedule, **settings).judge(groups)
    assert without_time(Judge(side, schedule=schedule, **settings).judge(groups)) == without_time(expected)
    assert sorted(map(repr, side.requests)) == sorted(map(repr, lock_step.requests))
    if SCHEDULES[schedule].looks:
        assert len(side.batches) > len(lock_step.batches)
    else:
        assert side.batches == lock_step.batches
    assert not alive()


def test_what_was_asked_ahead_is_used_side_by_side_too() -> None:
    def judged(several_calls: bool, ask_early: bool) -> list[Judgement]:
        judge = Judge(engine(several_calls), schedule="adaptive", verdict="read")
        groups = [dataclasses.replace(group(i), names=tuple("abcdef")) for i in range(4)]
        begun = [judge.early(one.prompt, 6, one.key, one.names) for one in groups]
        for one, early in zip(groups, begun, strict=True):
            asked = [early.add(name, text) for name, text in zip("abcdef", one.candidates, strict=True)]
            if ask_early:
                judge.ask_early([pair for pairs in asked for pair in pairs])
        return without_time(judge.judge(groups, begun))

    assert judged(True, True) == judged(False, True) == judged(False, False)


def test_only_what_failed_in_passing_is_asked_again() -> None:
    failed: set[str] = set()
    lock = threading.Lock()

    def flaky(request: Request) -> str | EngineFailure:
        shown = shown_candidates(request)
        text = request.messages[-1].text
        with lock:
            if sum(map(ord, text)) % 3 == 0 and text not in failed:
                failed.add(text)
                return EngineFailure("busy", transient=True)
        return f"<answer>{max(shown, key=lambda label: taste(shown[label]))}</answer>"

    side = ScriptedEngine(flaky)
    found = Judge(side, verdict="generate", alarm=FailureAlarm(1.0)).judge([group(i) for i in range(8)])
    plain = ScriptedEngine.by_utility(taste)
    expected = Judge(plain, verdict="generate").judge([group(i) for i in range(8)])
    assert failed
    assert [one.scores_G for one in found] == [one.scores_G for one in expected]
    assert len(side.requests) == len(plain.requests) + len(failed)


def test_a_judge_may_serve_several_threads_that_each_have_their_groups_side_by_side() -> None:
    judge = Judge(engine(True), verdict="read")
    groups = [[group(f"{part}.{i}") for i in range(6)] for part in range(4)]
    found: dict[int, list[Judgement]] = {}
    threads = [
        threading.Thread(target=lambda part=part: found.update({part: judge.judge(groups[part])}))  # type: ignore[misc]
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    alone = Judge(engine(False), verdict="read")
    assert [without_time(found[part]) for part in range(4)] == [without_time(alone.judge(part)) for part in groups]


# -- nobody waits -----------------------------------------------------------------------------------------------------


def test_a_group_ends_while_another_waits_for_its_first_round() -> None:
    quick_is_done = threading.Event()
    rounds: list[int] = []

    class Slow(ScriptedEngine):
        def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
            if "question slow?" in requests[0].messages[-1].text:
                assert quick_is_done.wait(LONG_S)
            else:
                rounds.append(len(requests))
                if len(rounds) == 3:  # a swiss tournament of six
                    quick_is_done.set()
            return super()._serve(requests)

    judge = Judge(engine(True, Slow), verdict="generate", schedule="swiss", audit=False)
    judgements = judge.judge([group("slow"), group("quick")])
    assert rounds == [3, 3, 3]
    assert [len(judgement.played) for judgement in judgements] == [9, 9]


def test_an_engine_that_takes_one_call_at_a_time_is_asked_in_lock_step_by_the_callers_thread() -> None:
    threads: set[threading.Thread] = set()

    class Single(ScriptedEngine):
        def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
            threads.add(threading.current_thread())
            return super()._serve(requests)

    single = engine(False, Single)
    Judge(single, audit=False).judge([group(i, size=4) for i in range(4)])
    assert single.batches == [16, 4, 4, 4, 4]
    assert threads == {threading.current_thread()}


def test_a_server_is_asked_once_how_labels_are_read_however_many_groups_begin_at_once() -> None:
    with JudgeServer() as server:
        judge = Judge(OpenAIEngine("judge", server.base_url), schedule="swiss", verdict="read")
        judgements = judge.judge([group(i) for i in range(8)])
        judge.close()
        assert len(server.requests) == sum(judgement.calls for judgement in judgements) + 1


@pytest.mark.parametrize(
    ("items", "in_flight", "ahead"),
    [(0, 1, 0), (1, 4, 0), (5, 1, 0), (5, 1, 9), (40, 3, 0), (40, 3, 2), (40, 3, 100), (40, 40, 0), (40, 64, 8)],
)  # nothing, one, one at a time, few, bounded ahead or hardly, all at once, more threads than items
def test_results_come_in_order_with_so_many_in_flight_and_so_many_ahead(items: int, in_flight: int, ahead: int) -> None:
    rng, lock = Random(items + in_flight), threading.Lock()
    waits = [rng.random() * 0.004 for _ in range(items)]
    taken = working = most = given = 0

    def coming() -> Iterator[int]:
        nonlocal taken
        for item in range(items):
            taken += 1
            assert taken - given <= in_flight + ahead
            yield item

    def work(item: int) -> int:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        time.sleep(waits[item])
        with lock:
            working -= 1
        return item * item

    for result in in_order(coming(), work, in_flight, ahead):
        assert result == given * given
        given += 1
    assert given == items
    assert most <= in_flight
    assert not alive()


def test_a_slow_item_at_the_front_stops_nobody_until_so_many_results_wait() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            assert release.wait(LONG_S)
        elif item == 6:
            release.set()  # two in flight and five ahead: the seventh is the last to begin
        return item

    assert list(in_order(range(20), work, 2, 5)) == list(range(20))
    assert begun[:7] == list(range(7))


def test_a_generator_that_is_closed_cancels_what_is_in_flight() -> None:
    stopped: list[bool] = []

    def work(item: int) -> int:
        end = time.monotonic() + LONG_S
        while item and not cancelled() and time.monotonic() < end:
            time.sleep(0.001)
        stopped.append(cancelled())
        return item

    results = in_order(iter(range(100)), work, 4)
    assert next(results) == 0
    results.close()
    assert not alive()
    assert stopped == [False, True, True, True]


# -- errors and interrupts --------------------------------------------------------------------------------------------


def test_the_first_error_is_raised_and_the_others_ask_nothing_more() -> None:
    asked: list[str] = []
    all_there = threading.Barrier(3)
    told = threading.Event()

    class Broken(ScriptedEngine):
        def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
            asked.append(requests[0].messages[-1].text)
            all_there.wait(LONG_S)
            if "question 0?" in requests[0].messages[-1].text:
                raise EngineError("the judge is broken")
            assert told.wait(LONG_S)
            return super()._serve(requests)

    broken = engine(True, Broken)
    with pytest.raises(EngineError, match="is broken"):
        Judge(broken).judge([group(i) for i in range(3)])
    told.set()  # by now the others were told to stop
    for thread in threading.enumerate():
        if thread.name == "mrjudge-rounds":
            thread.join(LONG_S)
    assert len(asked) == 3, "one call of each group, and no second round of any"


def test_a_share_that_cannot_be_stopped_is_left_behind() -> None:
    release, left = threading.Event(), threading.Event()

    def work(share: str) -> None:
        if share == "fails":
            raise EngineError("the judge is broken")
        release.wait(LONG_S)
        left.set()

    with pytest.raises(EngineError, match="is broken"):
        side_by_side(["waits", "fails"], work)
    assert alive() == ["mrjudge-rounds"]
    assert not left.is_set()
    release.set()
    assert left.wait(LONG_S)


def test_an_error_cancels_what_others_wait_for_at_a_server_and_the_engine_stays_usable() -> None:
    def answer(body: Any) -> str:
        if "question 0?" in prompt_text(body):
            assert server.wait_until(lambda s: s.in_flight == 3)
            return "I would rather not say."
        server.stopping.wait(LONG_S)
        return longest_wins(body)

    groups = [group(i, size=2) for i in range(3)]
    with JudgeServer(answer) as server:
        remote = OpenAIEngine("judge", server.base_url, max_concurrency=3, deadline_s=LONG_S)
        alarm = FailureAlarm(0.0, window=1)
        with pytest.raises(JudgeUnreliableError, match="no verdict"):
            Judge(remote, verdict="generate", schedule="swiss", audit=False, retries=0, alarm=alarm).judge(groups)
        server.answer = longest_wins
        assert isinstance(remote.generate([Request((Message("user", (TextPart("Which?"),)),))])[0], Reply), (
            "a free slot"
        )
        remote.close()
    assert not alive()


def test_a_judge_that_fails_is_not_asked_for_the_rounds_that_are_left_of_most_groups() -> None:
    down = ScriptedEngine(lambda _: EngineFailure("down", transient=False))
    with pytest.raises(JudgeUnreliableError, match="down"):
        Judge(down, schedule="adaptive").judge([group(i, size=8) for i in range(64)])
    assert len(down.requests) < 64 * 16 / 2


def test_an_interrupt_ends_the_wait_of_all_groups_and_the_judge_can_go_on() -> None:
    held = threading.Event()

    def answer(body: Any) -> str:
        if not held.is_set() and "question 0?" not in prompt_text(body):
            server.stopping.wait(LONG_S)
        return longest_wins(body)

    def interrupt(server: JudgeServer) -> None:
        server.wait_until(lambda s: s.in_flight == 4)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    groups = [group(i) for i in range(4)]
    with JudgeServer(answer) as server:
        remote = OpenAIEngine("judge", server.base_url, max_concurrency=4, deadline_s=LONG_S)
        judge = Judge(remote, schedule="swiss", audit=False)
        threading.Thread(target=interrupt, args=(server,)).start()
        with pytest.raises(KeyboardInterrupt):
            judge.judge(groups)
        assert not alive()
        held.set()
        assert [len(judgement.played) for judgement in judge.judge(groups)] == [9] * 4
        judge.close()


def test_a_call_that_begins_when_nobody_waits_any_more_ends_at_once_without_a_reply() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    asked = [Request((Message("user", (TextPart("Which?"),)),))] * 3
    with JudgeServer() as server:
        server.all_fail = "hang"
        remote = OpenAIEngine("judge", server.base_url, deadline_s=LONG_S)
        with cancellation.governs():
            assert remote.generate(asked) == [CANCELLED] * 3
            assert remote.label_logprobs(asked) == [CANCELLED] * 3
        server.all_fail = None
        assert all(isinstance(reply, Reply) for reply in remote.generate(asked)), "other calls are not concerned"
        remote.close()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_process_does_so_from_any_groups_thread(fault: Callable[[], BaseException]) -> None:
    def script(request: Request) -> str:
        raise fault()

    with pytest.raises(fault):  # type: ignore[call-overload]
        Judge(ScriptedEngine(script), Choice()).judge([group(i) for i in range(3)])
    assert not alive()


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_rounds_benchmark_prints_every_schedule_and_finds_the_same_judgements() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.rounds", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^ +3 (\w+) +\d+ +[\d.]+ +[\d.]+ +[\d.]+ ", done.stdout, re.MULTILINE)
    assert shown == ["adaptive", "swiss", "knockout", "ring"]
    assert "judgements of both ways are identical" in done.stdout
