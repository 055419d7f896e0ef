"""Groups that arrive: whoever comes in whatever order, each sample gets its group's reward, or an honest flag or error."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.judge import Judge
from mrjudge_reward.messages import ImagePart, Message, TextPart
from mrjudge_reward.scoring.alarms import FailureAlarm
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.streaming import groups as cohorts_module
from mrjudge_reward.streaming.scores import INFO_KEYS, Scored, prompt_bytes
from mrjudge_reward.types import EngineFailure, Group, Request
from tests.support.arriving import TEXTS, World, direct, numbers, run, sample, scripted, taste

pytestmark = pytest.mark.timeout(120)

ANSWERS = list(TEXTS[:4])
WHOLE = direct(scripted(), ANSWERS, numbers(4))


def rewards(scored: Sequence[Scored]) -> list[float]:
    return [result.reward for result in scored]


def flags(scored: Sequence[Scored], name: str) -> list[float]:
    return [result.info[f"judge_{name}"] for result in scored]


class Faulty:
    """A judge that raises what it is told to, and counts the groups it is given."""

    def __init__(self, *errors: Exception | None, delay_s: float = 0.0) -> None:
        self.errors = list(errors)
        self.delay_s = delay_s
        self.groups = 0

    def __call__(self) -> Judge:
        judge = scripted()
        works = judge.judge

        def moody(groups: Any, early: Any = None) -> Any:
            self.groups += len(groups)
            time.sleep(self.delay_s)
            error = self.errors.pop(0) if self.errors else None
            if error is not None:
                raise error
            return works(groups, early)

        judge.judge = moody  # type: ignore[method-assign]
        return judge


# -- the rows of the table --------------------------------------------------------------------------------------------


def test_the_last_missing_member_starts_the_judging():
    async def scenario() -> list[Scored]:
        world = await World().ready()
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS[:3])]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        return await asyncio.gather(*waiting, world.send(3, ANSWERS[3]))

    scored = run(scenario)
    assert rewards(scored) == WHOLE
    for result in scored:
        assert tuple(result.info) == INFO_KEYS
        assert all(type(value) is float for value in result.info.values())
    assert flags(scored, "partial") == flags(scored, "abstained") == flags(scored, "failed") == [0.0] * 4


def test_at_the_deadline_those_present_are_judged_and_flagged():
    async def scenario() -> list[Scored]:
        world = await World(deadline_s=0.15).ready()
        began = time.monotonic()
        scored = await asyncio.gather(*(world.send(member, ANSWERS[member]) for member in (0, 2, 3)))
        assert 0.15 <= time.monotonic() - began < 2
        return scored

    scored = run(scenario)
    assert rewards(scored) == direct(scripted(), [ANSWERS[i] for i in (0, 2, 3)], ["0", "2", "3"])
    assert flags(scored, "partial") == [1.0] * 3


@pytest.mark.parametrize(
    ("leaving", "when"),
    [({3}, "last"), ({3}, "first"), ({0}, "first"), ({0, 1}, "between"), ({1, 2, 3}, "between"), ({0, 3}, "last")],
    ids=str,
)
def test_the_others_are_judged_as_soon_as_all_are_there_or_have_left(leaving: set[int], when: str):
    there = [member for member in range(4) if member not in leaving]

    async def scenario() -> list[Scored]:
        world = await World().ready()
        waiting = []
        for step, group in enumerate((leaving, there, leaving) if when == "first" else (there[:1], leaving, there[1:])):
            if when == "last" and step == 1:
                continue
            for member in group:
                if member in leaving:
                    world.arriving.leave("g", str(member), 4)
                else:
                    waiting.append(world.send(member, ANSWERS[member]))
                await asyncio.sleep(0)
        if when == "last":
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in waiting)
            for member in leaving:
                world.arriving.leave("g", str(member), 4)
        began = time.monotonic()
        scored = await asyncio.gather(*waiting)
        assert time.monotonic() - began < 1
        return scored

    scored = run(scenario)
    names = [str(member) for member in there]
    assert rewards(scored) == direct(scripted(), [ANSWERS[member] for member in there], names)
    assert flags(scored, "partial") == [1.0] * len(there)


def test_a_group_that_all_have_left_is_gone_and_its_name_is_free_again():
    async def scenario() -> list[Scored]:
        world = await World().ready()
        for member in range(4):
            world.arriving.leave("g", str(member), 4)
        return await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))

    scored = run(scenario)
    assert rewards(scored) == WHOLE
    assert not any(flags(scored, "partial"))


@pytest.mark.parametrize("when", ["waiting", "judged"])
def test_who_has_come_does_not_leave_and_who_left_may_come_again(when: str):
    async def scenario() -> list[Scored]:
        world = await World().ready()
        world.arriving.leave("g", "0", 4)
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS[: 3 if when == "waiting" else 4])]
        if when == "judged":
            await asyncio.gather(*waiting)
        await asyncio.sleep(0.05)
        world.arriving.leave("g", "1", 4)
        await asyncio.sleep(0.05)
        if when == "waiting":
            assert not any(task.done() for task in waiting)
            waiting.append(world.send(3, ANSWERS[3]))
        return await asyncio.gather(*waiting)

    scored = run(scenario)
    assert rewards(scored) == WHOLE
    assert not any(flags(scored, "partial"))


def test_the_deadline_counts_from_the_first_sample():
    async def scenario() -> None:
        world = await World(deadline_s=2.0).ready()
        began = time.monotonic()
        first = world.send(0, ANSWERS[0])
        await asyncio.sleep(1.5)
        came = time.monotonic()
        await asyncio.gather(first, world.send(1, ANSWERS[1]))
        assert time.monotonic() - began >= 2.0
        assert time.monotonic() - came < 1.9, "from the second it would be 2"

    run(scenario)


@pytest.mark.parametrize("when", ["before", "while", "after"])
def test_a_member_once_more_with_the_same_answer_shares_the_reward(when: str):
    faulty = Faulty(delay_s=0.05)

    async def scenario() -> list[Scored]:
        world = await World(faulty).ready()
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS[:3])]
        again = [world.send(1, ANSWERS[1])] if when == "before" else []
        waiting.append(world.send(3, ANSWERS[3]))
        if when == "after":
            await asyncio.gather(*waiting)
        else:
            await asyncio.sleep(0.03)
        again += [world.send(1, ANSWERS[1])]
        return await asyncio.gather(*waiting, *again)

    scored = run(scenario)
    assert rewards(scored[:4]) == WHOLE
    assert {result.reward for result in scored[4:]} == {WHOLE[1]}
    assert not any(flags(scored, "partial"))
    assert faulty.groups == 1


def test_a_member_once_more_with_another_answer_takes_its_place():
    async def scenario() -> list[Scored]:
        world = await World().ready()
        old = [world.send(1, text) for text in ("a first try", "a second try")]
        return await asyncio.gather(*old, *(world.send(member, text) for member, text in enumerate(ANSWERS)))

    first, second, *scored = run(scenario)
    assert rewards(scored) == WHOLE
    for replaced in (first, second):
        assert replaced.reward == pytest.approx(sum(WHOLE) / 4)
        assert math.isnan(replaced.info["judge_score"]), "nothing is known about it"
        assert replaced.info["judge_abstained"] == 1
        assert replaced.info["judge_games"] == 0
    assert not any(flags(scored, "abstained"))


def test_another_answer_while_its_group_is_judged_waits_for_its_own_judgement():
    faulty = Faulty(delay_s=0.4)

    async def scenario() -> list[Scored]:
        world = await World(faulty).ready()
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS)]
        at_once = world.send(0, "one more try")  # in the very turn in which the group was complete
        await asyncio.sleep(0.05)
        later = world.send(2, "a second try")
        return await asyncio.gather(*waiting, at_once, later)

    *scored, at_once, later = run(scenario)
    assert rewards(scored) == WHOLE
    assert not any(flags(scored, "partial"))
    changed = direct(scripted(), ["one more try", ANSWERS[1], "a second try", ANSWERS[3]], numbers(4))
    assert (at_once.reward, later.reward) == (changed[0], changed[2])
    assert at_once.info["judge_partial"] == later.info["judge_partial"] == 1
    assert faulty.groups == 2, "latecomers are judged together, and the group but once"


def test_latecomers_of_a_judged_group():
    async def scenario() -> tuple[list[Scored], list[Scored], Scored]:
        world = await World(deadline_s=0.1).ready()
        present = await asyncio.gather(*(world.send(member, ANSWERS[member]) for member in (0, 1)))
        late = await asyncio.gather(*(world.send(member, ANSWERS[member]) for member in (2, 3, 0)))
        return present, late, await world.send(2, ANSWERS[2])

    present, late, again = run(scenario)
    assert rewards(present) == direct(scripted(), ANSWERS[:2], numbers(2))
    assert rewards(late[:2]) == WHOLE[2:]
    assert flags(late[:2], "partial") == [1.0, 1.0]
    assert late[2] == present[0], "what was decided stands"
    assert again == late[0]


def test_a_latecomer_that_changes_its_mind_leaves_the_groups_mean_to_the_old_answer():
    async def scenario() -> tuple[Scored, Scored]:
        world = await World().ready()
        await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))
        old = world.send(1, "a late try")
        await asyncio.sleep(0)
        return await asyncio.gather(old, world.send(1, "a later try"))

    old, new = run(scenario)
    whole = direct(scripted(), [ANSWERS[0], "a later try", *ANSWERS[2:]], numbers(4))
    assert new.reward == whole[1]
    assert old.reward == pytest.approx(sum(whole) / 4, abs=1e-9)
    assert old.reward != new.reward
    assert old.info["judge_abstained"] == 1


def test_without_identities_enough_different_answers_are_a_group():
    async def scenario() -> list[Scored]:
        world = await World(settle_s=5.0).ready()
        return await asyncio.gather(*(world.send(None, text) for text in ANSWERS))

    assert rewards(run(scenario)) == direct(scripted(), ANSWERS)


def test_without_identities_copies_are_told_from_members_as_long_as_it_is_open():
    async def scenario() -> tuple[list[Scored], Scored]:
        world = await World(settle_s=0.4).ready()
        early = [world.send(None, text) for text in (ANSWERS[0], ANSWERS[0], ANSWERS[1], ANSWERS[2], ANSWERS[0])]
        await asyncio.sleep(0.03)
        scored = await asyncio.gather(*early, world.send(None, ANSWERS[3]))
        assert len(world.arriving._arriving["g"].seats) == 4
        await asyncio.sleep(0.5)
        assert world.arriving.stats.groups == 1
        late = await world.send(None, "a fifth answer")
        return scored, late

    scored, late = run(scenario)
    whole = direct(scripted(), ANSWERS)
    assert rewards(scored) == [whole[0], *whole[:3], whole[0], whole[3]]
    assert not any(flags(scored, "partial"))
    assert late.reward == direct(scripted(), [*ANSWERS, "a fifth answer"])[4], "copies are not in it"
    assert late.info["judge_partial"] == 1


def test_without_identities_equal_answers_that_are_all_there_is_are_members():
    async def scenario() -> tuple[list[Scored], float]:
        world = await World(settle_s=0.1).ready()
        began = time.monotonic()
        texts = [ANSWERS[0], ANSWERS[1], ANSWERS[0], ANSWERS[2]]
        return await asyncio.gather(*(world.send(None, text) for text in texts)), time.monotonic() - began

    scored, seconds = run(scenario)
    assert rewards(scored) == direct(scripted(), [ANSWERS[0], ANSWERS[1], ANSWERS[0], ANSWERS[2]])
    assert 0.1 <= seconds < 2
    assert not any(flags(scored, "partial"))


def test_a_judge_that_raises_is_told_to_all_and_who_comes_later_begins_anew():
    faulty = Faulty(ConfigError("no such model"), ValueError("foreign"))

    async def scenario() -> list[Any]:
        world = await World(faulty).ready()
        outcomes = []
        for _ in range(3):
            old = world.send(1, "replaced")
            await asyncio.sleep(0)
            waiting = [world.send(member, text) for member, text in enumerate(ANSWERS)]
            outcomes.append(await asyncio.gather(*waiting, old, return_exceptions=True))
        return outcomes

    first, second, third = run(scenario)
    assert {(type(error), str(error)) for error in first} == {(ConfigError, "no such model")}
    assert {(type(error), str(error)) for error in second} == {(EngineError, "the judge raised ValueError: foreign")}
    assert rewards(third[:4]) == WHOLE


def test_a_judge_that_raises_over_latecomers_leaves_the_rest_as_it_was():
    faulty = Faulty(None, EngineError("down"))

    async def scenario() -> None:
        world = await World(faulty).ready()
        scored = await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))
        outcomes = await asyncio.gather(world.send(1, "new"), world.send("x", "stranger"), return_exceptions=True)
        assert [str(error) for error in outcomes] == ["down", "down"]
        began = time.monotonic()
        assert await world.send(0, ANSWERS[0]) == scored[0]
        again = await world.send(1, "new")
        assert time.monotonic() - began < 2, "nobody waits for the deadline of a group that is judged already"
        assert again.reward == direct(scripted(), [ANSWERS[0], "new", *ANSWERS[2:]], numbers(4))[1]

    run(scenario)


# -- identities ---------------------------------------------------------------------------------------------------------


def test_a_prompt_as_identity_may_come_again_at_once():
    faulty = Faulty(delay_s=0.05)

    async def scenario() -> list[Scored]:
        world = await World(faulty).ready()
        texts = [*ANSWERS, *(f"{text} again" for text in ANSWERS)]
        scored = await asyncio.gather(*(world.send(None, text, lasting=False) for text in texts))
        third = await asyncio.gather(*(world.send(None, text, lasting=False) for text in ANSWERS))
        assert not world.arriving._arriving
        assert not world.arriving._judged
        return scored + third

    scored = run(scenario)
    whole = direct(scripted(), ANSWERS)
    assert rewards(scored) == [*whole, *direct(scripted(), [f"{text} again" for text in ANSWERS]), *whole]
    assert not any(flags(scored, "partial"))


def test_names_that_do_not_fit_the_size_are_members_like_others():
    """A validation group of another size than it was said to have, say; the judge is not ready when it begins."""

    async def scenario() -> list[Scored]:
        world = World()
        first = world.send(7, ANSWERS[0], size=2)
        await asyncio.sleep(0.05)
        assert world.queue.judge is not None
        return await asyncio.gather(first, world.send(0, ANSWERS[1], size=2))

    scored = run(scenario)
    assert rewards(scored) == direct(scripted(), ANSWERS[:2], ["7", "0"])


def test_members_with_and_without_identity_in_one_group():
    async def scenario(texts: list[tuple[int | None, str]]) -> list[Scored]:
        world = await World().ready()
        return await asyncio.gather(*(world.send(member, text) for member, text in texts))

    for members in ([0, 1, None, None], [None, 0, 1, None]):
        scored = run(lambda members=members: scenario(list(zip(members, ANSWERS, strict=True))))
        assert rewards(scored) == direct(scripted(), ANSWERS)


def test_what_the_first_sample_says_of_the_prompt_counts_and_is_kept_once():
    async def scenario() -> None:
        world = await World().ready()
        prompts = [(Message("user", (TextPart("Which fruit?"),)),) for _ in range(4)]
        await asyncio.gather(
            *(
                world.send(sample(i, text, prompt=prompts[i], reference=f"reference {i}"))
                for i, text in enumerate(ANSWERS)
            )
        )
        seats = world.arriving._arriving["g"].seats.values()
        assert all(seat.sample.prompt is prompts[0] for seat in seats)
        assert {seat.sample.reference for seat in seats} == {"reference 0"}
        assert all("reference 0" in request.messages[-1].text for request in world.engine.requests)

    run(scenario)


# -- odd groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["named", "anonymous"])
@pytest.mark.parametrize(
    "answers",
    [["alone"], [""], ["", ""], ["", "", "...", "word"], ["same"] * 4, ["a b", "a b", "", "c"]],
    ids=lambda answers: "|".join(answers),
)
def test_empty_equal_and_single_answers(answers: list[str], named: bool):
    async def scenario() -> list[Scored]:
        world = await World().ready()
        return await asyncio.gather(
            *(world.send(i if named else None, text, size=len(answers)) for i, text in enumerate(answers))
        )

    scored = run(scenario)
    assert rewards(scored) == direct(scripted(), answers, numbers(len(answers)) if named else None)
    assert not any(flags(scored, "partial"))


def test_a_group_of_which_nothing_is_known_has_one_neutral_reward():
    def build() -> Judge:
        return scripted(ScriptedEngine(lambda _: EngineFailure("gone", transient=False)), alarm=FailureAlarm(1.0))

    async def scenario() -> list[Scored]:
        world = await World(build).ready()
        return await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))

    scored = run(scenario)
    assert len(set(rewards(scored))) == 1
    assert flags(scored, "abstained") == flags(scored, "failed") == [1.0] * 4


def test_a_candidate_without_a_verdict_gets_the_mean_and_a_flag():
    def script(request: Request) -> Any:
        text = request.messages[-1].text
        return EngineFailure("no", transient=False) if ANSWERS[2] in text else {"A": 0.7, "B": 0.3}

    def build() -> Judge:
        return scripted(ScriptedEngine(script), schedule="all_pairs", alarm=FailureAlarm(1.0))

    async def scenario() -> list[Scored]:
        world = await World(build, shape=RewardShape(centre=True)).ready()
        return await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))

    scored = run(scenario)
    assert flags(scored, "abstained") == [0, 0, 1, 0]
    assert scored[2].reward == pytest.approx(0.0)
    assert scored[2].info["judge_games"] == 0


@pytest.mark.parametrize("given", [None, RewardShape(), RewardShape(length_weight=1.0)], ids=str)
@pytest.mark.parametrize(
    "named", [{}, {"centre": True}, {"length_weight": 0.5}, {"centre": True, "length_weight": 2.0}]
)
def test_rewards_have_the_shape_that_was_given_or_that_of_the_judge(named: dict[str, Any], given: RewardShape | None):
    def build() -> Judge:
        return scripted(ScriptedEngine.by_utility(lambda _: 1.0), rating="win_rate", **named)

    async def scenario() -> list[Scored]:
        world = await World(build, shape=given).ready()
        return await asyncio.gather(*(world.send(member, "x" * (2 + member)) for member in range(4)))

    shape = given or RewardShape(**named)
    level, weight = 0.0 if shape.centre else 0.5, shape.length_weight
    assert rewards(run(scenario)) == pytest.approx([level - weight * (place - 1.5) / 3.5 for place in range(4)])


# -- asking early -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["adaptive", "ring", "all_pairs", "listwise", "swiss", "knockout", "anchor"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "anonymous"])
def test_asking_ahead_changes_neither_rewards_nor_calls(schedule: str, named: bool):
    async def scenario(early: bool) -> tuple[list[float], int]:
        world = await World(lambda: scripted(schedule=schedule), as_it_arrives=early).ready()
        waiting = []
        for member, text in random.Random(schedule).sample(list(enumerate(TEXTS)), 8):
            waiting.append((member, world.send(member if named else None, text, size=8)))
            await asyncio.sleep(0.002)
        scored = {member: await task for member, task in waiting}
        assert world.arriving.stats.calls == len(world.engine.requests)
        assert world.arriving.stats.groups == 1
        return [scored[member].reward for member in range(8)], len(world.engine.requests)

    judge = scripted(schedule=schedule)
    whole = direct(judge, TEXTS, numbers(8) if named else None)
    engine: Any = judge.engine
    for early in (False, True):
        assert run(lambda early=early: scenario(early)) == (whole, len(engine.requests))


def test_a_group_waits_for_what_was_asked_ahead_of_it_and_asks_nothing_twice():
    """With several lanes the judging could begin while the last comparisons are still being asked."""
    engine = ScriptedEngine.by_utility(taste, 0.7)
    serve = engine._serve

    delays = [0.1]

    def first_slowly(requests: Any) -> Any:
        time.sleep(delays.pop() if delays else 0.0)
        return serve(requests)

    engine._serve = first_slowly  # type: ignore[method-assign]

    async def scenario() -> list[Scored]:
        world = await World(lambda: scripted(engine)).ready()
        waiting = []
        for member, text in enumerate(ANSWERS):
            waiting.append(world.send(member, text))
            await asyncio.sleep(0.004)
        return await asyncio.gather(*waiting)

    assert rewards(run(scenario)) == WHOLE
    alone = scripted()
    direct(alone, ANSWERS, numbers(4))
    asked: Any = alone.engine
    assert len(engine.requests) == len(asked.requests)


def test_most_of_a_group_is_asked_before_its_last_member_comes():
    async def scenario() -> None:
        world = await World(lambda: scripted(schedule="ring")).ready()
        for member, text in list(enumerate(TEXTS))[:-1]:
            world.send(member, text, size=8)
        await asyncio.sleep(0.05)
        assert len(world.engine.requests) > 8
        await world.send(7, TEXTS[7], size=8)
        await asyncio.sleep(0)

    run(scenario)


def test_a_judge_that_fails_ahead_is_asked_again_with_the_group(monkeypatch: pytest.MonkeyPatch):
    judge = scripted()
    monkeypatch.setattr(judge, "ask_early", lambda asked: (_ for _ in ()).throw(RuntimeError("down")))

    async def scenario() -> list[Scored]:
        world = await World(lambda: judge).ready()
        return await asyncio.gather(*(world.send(member, text) for member, text in enumerate(ANSWERS)))

    assert rewards(run(scenario)) == WHOLE


# -- many, lost, cancelled ----------------------------------------------------------------------------------------------


def test_a_waiter_that_gives_up_leaves_its_answer_behind():
    async def scenario() -> list[Any]:
        world = await World(Faulty(delay_s=0.4)).ready()
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS[:3])]
        await asyncio.sleep(0.01)
        waiting[1].cancel()
        waiting.append(world.send(3, ANSWERS[3]))
        await asyncio.sleep(0.02)
        waiting[2].cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert await world.send(1, ANSWERS[1]) is not None
        return outcomes

    first, second, third, fourth = run(scenario)
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(third, asyncio.CancelledError)
    assert [first.reward, fourth.reward] == [WHOLE[0], WHOLE[3]]


def test_a_judge_that_hangs_ends_in_an_error_and_leaves_nothing_behind():
    faulty = Faulty(delay_s=0.5)

    async def scenario() -> list[Any]:
        world = await World(faulty, judge_deadline_s=0.1).ready()
        waiting = [world.send(member, text) for member, text in enumerate(ANSWERS)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert not world.arriving._arriving
        return outcomes

    assert all("within 0.1 s" in str(outcome) for outcome in run(scenario))


def test_ten_thousand_samples_wait_at_once():
    groups, size = 1250, 8

    async def scenario() -> dict[tuple[int, int], Scored]:
        world = await World(lambda: scripted(schedule="ring")).ready()
        made = [(group, member) for group in range(groups) for member in range(size)]
        random.Random(0).shuffle(made)
        tasks = {
            (group, member): world.send(member, f"{TEXTS[member]} {group % 50}", size, f"g{group}")
            for group, member in made
        }
        await asyncio.gather(*tasks.values())
        assert world.arriving.stats.groups == groups
        return {key: task.result() for key, task in tasks.items()}

    scored = run(scenario)
    judge = scripted(schedule="ring")
    for group in range(0, groups, 97):
        whole = direct(judge, [f"{text} {group % 50}" for text in TEXTS], numbers(8), f"g{group}")
        assert [scored[group, member].reward for member in range(size)] == whole


def test_what_is_kept_of_judged_groups_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cohorts_module, "KEPT", 5)

    async def scenario() -> None:
        world = await World().ready()
        stuck = world.send(0, ANSWERS[0], 4, "never whole")  # must not keep the others from being forgotten
        for group in range(20):
            await asyncio.gather(*(world.send(i, text, 2, f"g{group}") for i, text in enumerate(ANSWERS[:2])))
        kept = world.arriving._arriving
        assert set(kept) == {"never whole", *(f"g{group}" for group in range(15, 20))}
        for group, _ in world.arriving._judged:
            assert group.early is None
            assert not group.asking
            assert not group.timers
            assert not any(seat.waiters or seat.replaced for seat in group.seats.values())
        assert not world.arriving._tasks
        assert not world.queue._tasks
        stuck.cancel()
        world.arriving._close(kept["never whole"])

    run(scenario)


# -- any order ----------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["", "one apple", "two pears", "three plums", "four figs", "five dates", "..."])
SCHEDULES = st.sampled_from(["adaptive", "ring", "all_pairs", "listwise"])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rewards_are_those_of_the_whole_group_in_any_order(data: Any):
    groups = data.draw(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=4), "groups")
    named = data.draw(st.booleans(), "named")
    schedule, early = data.draw(SCHEDULES, "schedule"), data.draw(st.booleans(), "early")
    members = [(g, m) for g, answers in enumerate(groups) for m in range(len(answers))]
    again = data.draw(st.lists(st.sampled_from(members), max_size=4), "again") if named else []
    order = data.draw(st.permutations(members + again), "order")
    pauses = data.draw(st.lists(st.sampled_from([None, 0.0, 0.001]), min_size=len(order), max_size=len(order)))
    judge = scripted(schedule=schedule)
    engine: Any = judge.engine
    whole = [
        direct(judge, answers, numbers(len(answers)) if named else None, f"g{g}") for g, answers in enumerate(groups)
    ]

    async def scenario() -> list[tuple[tuple[int, int], Scored]]:
        world = World(lambda: scripted(schedule=schedule), settle_s=0.02, as_it_arrives=early)
        if data.draw(st.booleans(), "ready"):
            await world.ready()
        waiting = []
        for (g, m), pause in zip(order, pauses, strict=True):
            waiting.append(world.send(m if named else None, groups[g][m], len(groups[g]), f"g{g}"))
            if pause is not None:
                await asyncio.sleep(pause)
        scored = await asyncio.gather(*waiting)
        assert world.arriving.stats.groups == len(groups)
        if all(len(set(answers) - {"", "..."}) == len(answers) for answers in groups):
            assert len(world.engine.requests) <= len(engine.requests), "nothing is asked early in vain"
        return list(zip(order, scored, strict=True))

    for (g, m), result in run(scenario):
        assert result.reward == pytest.approx(whole[g][m], abs=1e-9)
        assert result.info["judge_partial"] == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_everyone_gets_an_answer_or_an_error_whatever_comes(data: Any):
    """Retries, latecomers, copies, wrong sizes, a judge that fails now and then: nothing hangs, nothing is invented."""
    size = data.draw(st.integers(1, 3), "size")
    members = st.sampled_from([None, "0", "1", "2", "9"])
    event = st.tuples(
        members, WORDS, st.sampled_from([size, size, size + 1]), st.sampled_from([None, 0.0, 0.004, 0.03])
    )
    events = data.draw(st.lists(event, min_size=1, max_size=12), "events")
    faults = data.draw(
        st.lists(st.sampled_from([None, None, EngineError("down"), KeyError("x")]), max_size=6), "faults"
    )
    lasting = data.draw(st.booleans(), "lasting")
    faulty = Faulty(*faults, delay_s=0.002)

    async def scenario() -> list[Any]:
        world = World(faulty, deadline_s=0.05, settle_s=0.01)
        waiting = []
        for member, answer, said, pause in events:
            waiting.append(world.send(member, answer, said, lasting=lasting))
            if pause is not None:
                await asyncio.sleep(pause)
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        await asyncio.sleep(0.03)
        return outcomes

    outcomes = run(scenario)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, EngineError)
            assert any(faults)
        else:
            assert math.isfinite(outcome.reward)
            assert tuple(outcome.info) == INFO_KEYS


@pytest.mark.parametrize(("kept", "remembered"), [(0, 0), (999, 0), (1_050, 1), (5_400, 5), (2**29, 8)], ids=str)
def test_judged_groups_are_remembered_up_to_a_number_of_bytes(kept: int, remembered: int):
    prompt = (Message("user", (TextPart("q" * 1000),)),)

    async def scenario() -> int:
        world = await World(lambda: scripted(ScriptedEngine.by_utility(taste, 0.7)), kept_bytes=kept).ready()
        for group in range(8):
            await asyncio.gather(
                *(
                    world.send(sample(member, text, group=str(group), prompt=prompt))
                    for member, text in enumerate(ANSWERS)
                )
            )
        return len(world.arriving._arriving)

    assert run(scenario) == remembered


def test_a_prompt_takes_what_its_texts_and_images_take():
    from PIL import Image

    images = [Image.new("RGB", (40, 30)), b"x" * 100, "data:image/png;base64,abcd", Image.new("L", (10, 10))]
    prompt = (Message("user", (TextPart("four"), *map(ImagePart, images))), Message("assistant", (TextPart("ok"),)))
    assert prompt_bytes(prompt) == 4 + 3 * 40 * 30 + 100 + 26 + 100 + 2


ANCHORS = ("nine pens", "ten hens")


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("schedule", ["adaptive", "ring", "all_pairs", "anchor", "listwise"])
def test_with_anchors_rewards_are_those_of_the_whole_group_however_it_arrives(schedule: str, named: bool):
    async def scenario() -> tuple[list[Scored], int]:
        world = await World(lambda: scripted(schedule=schedule)).ready()
        tasks = []
        for member in (2, 0, 3, 1):
            tasks.append(world.send(member if named else None, ANSWERS[member], anchors=ANCHORS))
            await asyncio.sleep(0.01)
        scored = await asyncio.gather(*tasks)
        return [scored[(2, 0, 3, 1).index(member)] for member in range(4)], len(world.engine.requests)

    scored, calls = run(scenario)
    plain = scripted(schedule=schedule)
    names = numbers(4) if named else None
    (judgement,) = plain.judge([Group.of("Which fruit?", ANSWERS, "g", names=names, anchors=ANCHORS)])
    assert rewards(scored) == list(judgement.scores_G)
    assert calls == len(plain.engine.requests)  # type: ignore[attr-defined]
    assert judgement.anchors_A != ()


@pytest.mark.parametrize(
    "anchors",
    [
        [("x",), ("y",), ("x",), ("x",)],
        [("x",), ("x",), ("x",), ("x", "y")],
        [("x",), ("x",), None, ("x",)],
        [None, None, None, ("x",)],
        [("x",), (), ("x",), ("x",)],
        [("x", "y"), ("y", "x"), ("x", "y"), ("x", "y")],
        [(), (), (), ()],
        [("",), ("",), ("",), ("",)],
        [("...",)] * 4,
        [("\u200b",)] * 4,
    ],
    ids=ascii,
)
def test_a_group_whose_level_is_unknown_is_flagged_and_not_asked_about(anchors: list[Any]):
    async def scenario() -> tuple[list[Scored], int]:
        world = await World(lambda: scripted(schedule="ring"), as_it_arrives=False).ready()
        tasks = [world.send(m, text, anchors=of) for m, (text, of) in enumerate(zip(ANSWERS, anchors, strict=True))]
        return await asyncio.gather(*tasks), len(world.engine.requests)

    scored, calls = run(scenario)
    assert rewards(scored) == [0.0] * 4
    assert flags(scored, "abstained") == [1.0] * 4
    assert flags(scored, "failed") == [1.0] * 4
    assert all(math.isnan(score) for score in flags(scored, "score"))
    assert calls == 0


def test_a_lone_sample_is_judged_against_its_anchor():
    async def scenario() -> list[Scored]:
        world = await World().ready()
        return await asyncio.gather(
            *(world.send(0, TEXTS[n], size=1, group=str(n), anchors=(TEXTS[5],)) for n in range(4))
        )

    scored = run(scenario)
    assert [reward > 0 for reward in rewards(scored)] == [taste(TEXTS[n]) > taste(TEXTS[5]) for n in range(4)]
    assert not any(flags(scored, "abstained"))
