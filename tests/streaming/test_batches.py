"""Batches in shares: padded and cut as verl does, handed in by workers in any order, judged by groups."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrjudge_reward.errors import EngineError
from mrjudge_reward.judge import Judge
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.streaming.scores import INFO_KEYS, Sample, Scored
from tests.support.arriving import TEXTS, World, direct, run, sample, scripted, taste

pytestmark = pytest.mark.timeout(120)

ANSWERS = list(TEXTS[:4])
WHOLE = direct(scripted(), ANSWERS)


def rows(group: str, answers: Sequence[str] = ANSWERS, lasting: bool = True) -> list[Sample]:
    return [sample(None, answer, 4, group, lasting=lasting) for answer in answers]


def cut(samples: Sequence[Sample], workers: int) -> list[list[Sample]]:
    """verl's padding with rows from the beginning, and its cutting into equal shares."""
    padded = [samples[index % len(samples)] for index in range(len(samples) + -len(samples) % workers)]
    each = len(padded) // workers
    return [padded[worker * each : (worker + 1) * each] for worker in range(workers)]


async def hand_in(world: World, samples: Sequence[Sample], workers: int, seed: int = 0) -> list[Scored]:
    """The results of all rows, padding removed; shares come in a random order."""
    shares = list(enumerate(cut(samples, workers)))
    random.Random(seed).shuffle(shares)
    found = {}

    async def one(worker: int, share: list[Sample]) -> None:
        found[worker] = await world.batches.join_share(share, worker, workers)
        assert len(found[worker]) == len(share)

    await asyncio.gather(*(one(worker, share) for worker, share in shares))
    flat = [result for worker in range(workers) for result in found[worker]]
    for index in range(len(samples), len(flat)):
        assert flat[index] == flat[index % len(samples)], "a copy has the reward of its original"
    return flat[: len(samples)]


def rewards(scored: Sequence[Scored]) -> list[float]:
    return [result.reward for result in scored]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_rewards_are_those_of_the_groups_however_the_batch_is_cut(data: Any):
    words = st.sampled_from(["", "one apple", "two pears", "three plums", "four figs", "five dates"])
    size = data.draw(st.integers(2, 4), "size")
    groups = data.draw(st.lists(st.lists(words, min_size=size, max_size=size), min_size=1, max_size=4), "groups")
    workers = data.draw(st.integers(1, 9), "workers")
    order = data.draw(st.permutations([(g, m) for g in range(len(groups)) for m in range(size)]), "order")
    samples = [sample(None, groups[g][m], size, f"g{g}") for g, m in order]

    async def scenario() -> list[Scored]:
        return await hand_in(World(sizes=[size]), samples, workers, seed=workers)

    whole = [direct(scripted(), [groups[g][m] for g2, m in order if g2 == g], key=f"g{g}") for g in range(len(groups))]
    places = [[m for g2, m in order if g2 == g] for g in range(len(groups))]
    for (g, m), result in zip(order, run(scenario), strict=True):
        assert result.reward == pytest.approx(whole[g][places[g].index(m)], abs=1e-9)
        assert result.info["judge_partial"] == 0
        assert tuple(result.info) == INFO_KEYS


def test_the_whole_batch_is_one_call_of_the_engine_per_round():
    async def scenario() -> list[int]:
        world = await World(lambda: scripted(schedule="ring")).ready()
        await hand_in(world, [row for group in range(30) for row in rows(f"g{group}")], 8)
        assert world.batches.stats.groups == 30
        return world.engine.batches

    assert len(run(scenario)) == 1


def test_the_same_prompt_twice_is_one_group_and_a_new_batch_knows_nothing_of_the_last(caplog: Any):
    async def scenario() -> tuple[list[Scored], list[Scored]]:
        world = World()
        more = [f"{text} more" for text in ANSWERS]
        twice = [*rows("p", lasting=False), *rows("p", more, lasting=False)]
        return await hand_in(world, twice, 3), await hand_in(world, rows("p", lasting=False), 3)

    both, alone = run(scenario)
    assert rewards(both) == direct(scripted(), [*ANSWERS, *(f"{text} more" for text in ANSWERS)], key="p")
    assert rewards(alone) == direct(scripted(), ANSWERS, key="p")
    assert not any(result.info["judge_partial"] for result in both + alone)
    (said,) = [record.getMessage() for record in caplog.records if record.name == "mrjudge_reward.streaming.batches"]
    assert said.startswith("8 rows of a batch answer one prompt, which stands in it more than once")


@pytest.mark.parametrize(
    ("sizes", "counts", "lasting", "said"),
    [
        ((4,), (4,), False, 0), ((4,), (8,), False, 1), ((4,), (8, 12), False, 2), ((4,), (8, 4, 4), False, 1),
        ((4,), (8,), True, 0),  # of one identity: no second group
        ((4,), (6,), False, 0),  # a group that is not whole is flagged
        ((4, 2), (2, 4), False, 0), ((4, 2), (6,), False, 1), ((4, 1), (1,), False, 0), ((1,), (3,), False, 0),
    ],
)  # fmt: skip
def test_that_groups_of_one_prompt_were_merged_is_said_once(
    sizes: tuple[int, ...], counts: tuple[int, ...], lasting: bool, said: int, caplog: Any
):
    async def scenario() -> None:
        world = World(sizes=sizes)
        samples = [
            sample(None, f"{n} {TEXTS[0]}", 4, f"p{g}", lasting=lasting) for g, c in enumerate(counts) for n in range(c)
        ]
        for _ in range(2):
            await hand_in(world, samples, 1)

    run(scenario)
    told = [record.getMessage() for record in caplog.records if record.name == "mrjudge_reward.streaming.batches"]
    assert len(told) == bool(said)
    assert not said or f"so for {said} prompts of this batch" in told[0]


def test_groups_of_another_size_are_flagged_and_others_are_not():
    async def scenario() -> list[Scored]:
        return await hand_in(World(), [*rows("g"), *rows("h", ANSWERS[:3])], 2)

    scored = run(scenario)
    assert rewards(scored) == direct(scripted(), ANSWERS) + direct(scripted(), ANSWERS[:3], key="h")
    assert [result.info["judge_partial"] for result in scored] == [0] * 4 + [1] * 3


def test_fewer_rows_than_workers_stay_a_part_of_a_group_however_often_they_are_copied():
    async def scenario() -> list[Scored]:
        return await hand_in(World(), rows("g", ANSWERS[:3]), 8)

    scored = run(scenario)
    assert rewards(scored) == direct(scripted(), ANSWERS[:3])
    assert [result.info["judge_partial"] for result in scored] == [1] * 3


@pytest.mark.parametrize(
    ("sizes", "count", "partial", "lasting"),
    [
        ((4,), 8, 0, False), ((4,), 6, 1, False), ((4, 1), 1, 0, False), ((4, 1), 2, 1, False), ((1,), 3, 0, False),
        ((4, 2), 6, 0, False), ((), 4, 0, False),
        ((4,), 4, 0, True), ((4,), 8, 1, True), ((4, 1), 1, 0, True), ((1,), 3, 1, True), ((4, 2), 2, 0, True),
    ],
)  # fmt: skip
def test_when_a_group_is_whole(sizes: tuple[int, ...], count: int, partial: int, lasting: bool):
    """Rows that only share a prompt may be several groups; rows of one identity are one."""

    async def scenario() -> list[Scored]:
        samples = [sample(None, text, (*sizes, 4)[0], lasting=lasting) for text in TEXTS[:count]]
        return await hand_in(World(sizes=sizes), samples, 1)

    assert {result.info["judge_partial"] for result in run(scenario)} == {partial}


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize(
    ("told", "counts", "partial"),
    [
        ((3, 5), (3, 5), (0, 0)), ((3, 5), (2, 5), (1, 0)), ((5,), (4,), (1,)), ((1, 4), (1, 4), (0, 0)),
        ((8,), (8,), (0,)), ((8,), (4,), (1,)), ((6, 4), (6, 3), (0, 1)), ((2,), (1,), (1,)),
        ((7,), (6,), (1,)), ((2, 2, 3), (2, 2, 3), (0, 0, 0)),
    ],
)  # fmt: skip
def test_a_group_that_brings_a_size_of_its_own_is_whole_at_that(
    told: tuple[int, ...], counts: tuple[int, ...], partial: tuple[int, ...], lasting: bool, caplog: Any
):
    """The run's is 4."""
    given = [
        sample(None, TEXTS[n], size, f"g{g}", lasting=lasting)
        for g, (size, count) in enumerate(zip(told, counts, strict=True))
        for n in range(count)
    ]

    async def scenario() -> list[Scored]:
        return await hand_in(World(sizes=(4,)), given, 1)

    found = [result.info["judge_partial"] for result in run(scenario)]
    assert found == [flag for flag, count in zip(partial, counts, strict=True) for _ in range(count)]
    assert not [one for one in caplog.messages if "answer one prompt" in one]


@pytest.mark.parametrize("workers", [2, 3, 4, 5])
def test_groups_of_their_own_sizes_lose_their_copies(workers: int):
    given = [sample(None, TEXTS[n], size, f"g{size}", lasting=False) for size in (1, 3, 5) for n in range(size)]

    async def scenario() -> list[Scored]:
        return await hand_in(World(sizes=(4,)), given, workers)

    found = run(scenario)
    assert not any(result.info["judge_partial"] for result in found)
    assert rewards(found[4:]) == direct(scripted(), TEXTS[:5], key="g5")


def test_a_share_that_never_comes():
    async def scenario() -> tuple[list[Scored], list[Scored]]:
        world = World(batch_deadline_s=0.1)
        began = time.monotonic()
        shares = cut([*rows("g"), *rows("h")], 4)
        scored = await asyncio.gather(*(world.batches.join_share(shares[worker], worker, 4) for worker in (2, 0, 1)))
        assert 0.1 <= time.monotonic() - began < 2
        return [*scored[1], *scored[2], *scored[0]], await hand_in(world, rows("g"), 4)

    partial, after = run(scenario)
    assert rewards(partial) == direct(scripted(), ANSWERS) + direct(scripted(), ANSWERS[:2], key="h")
    assert all(result.info["judge_partial"] for result in partial)
    assert rewards(after) == WHOLE


def test_a_worker_that_hands_other_rows_in_gives_the_batch_before_up():
    async def scenario() -> list[Any]:
        world = World()
        shares = cut(rows("g"), 2)
        old = asyncio.ensure_future(world.batches.join_share(rows("old")[:2], 0, 2))
        await asyncio.sleep(0)
        new = [world.batches.join_share(shares[worker], worker, 2) for worker in (0, 1)]
        return await asyncio.gather(old, *new, return_exceptions=True)

    old, *new = run(scenario)
    assert isinstance(old, EngineError)
    assert "another batch began" in str(old)
    assert [result.reward for share in new for result in share] == WHOLE


def test_a_worker_that_lost_its_connection_and_hands_the_same_in_again():
    async def scenario() -> list[list[Scored]]:
        world = World()
        shares = cut(rows("g"), 2)
        return await asyncio.gather(*(world.batches.join_share(shares[worker], worker, 2) for worker in (0, 0, 1)))

    first, again, second = run(scenario)
    assert first == again
    assert rewards([*first, *second]) == WHOLE


@pytest.mark.parametrize("error", [EngineError("down"), KeyError("foreign")], ids=["own", "foreign"])
def test_a_judge_that_raises_is_told_to_all_workers_and_works_on(error: Exception):
    errors: list[Exception] = [error]

    def build() -> Judge:
        judge = scripted()
        works = judge.judge

        def moody(*args: Any) -> Any:
            if errors:
                raise errors.pop()
            return works(*args)

        judge.judge = moody  # type: ignore[method-assign]
        return judge

    async def scenario() -> tuple[list[Any], list[Scored]]:
        world = World(build)
        shares = enumerate(cut(rows("g"), 2))
        failed = [world.batches.join_share(share, worker, 2) for worker, share in shares]
        return await asyncio.gather(*failed, return_exceptions=True), await hand_in(world, rows("g"), 2)

    failed, after = run(scenario)
    assert len(failed) == 2
    assert all(isinstance(outcome, EngineError) for outcome in failed)
    assert rewards(after) == WHOLE


def test_a_worker_that_gives_up_does_not_take_the_others_with_it():
    async def scenario() -> list[list[Scored]]:
        world = World()
        shares = cut(rows("g"), 2)
        first = asyncio.ensure_future(world.batches.join_share(shares[0], 0, 2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await asyncio.gather(world.batches.join_share(shares[1], 1, 2))

    assert rewards(run(scenario)[0]) == WHOLE[2:]


def test_empty_shares():
    async def scenario() -> list[list[Scored]]:
        world = World()
        empty = await asyncio.gather(*(world.batches.join_share([], worker, 2) for worker in (0, 1)))
        half = await asyncio.gather(world.batches.join_share(rows("g"), 0, 2), world.batches.join_share([], 1, 2))
        return [*empty, *half]

    assert list(map(len, run(scenario))) == [0, 0, 4, 0]


def test_equal_answers_at_the_end_are_not_taken_for_copies():
    """Here the batch repeats its beginning from the second row on already, but only its last row is a copy."""

    async def scenario(count: int, workers: int) -> list[Scored]:
        world = World(sizes=[2], shape=RewardShape(centre=True))
        scored = await hand_in(world, [sample(None, "same", 2, lasting=False)] * count, workers)
        assert world.batches.stats.candidates == count
        return scored

    for count, workers in ((2, 3), (4, 4)):
        scored = run(lambda count=count, workers=workers: scenario(count, workers))
        assert [result.info["judge_partial"] for result in scored] == [0] * count


def test_groups_of_a_batch_have_the_levels_of_their_anchors():
    good, poor = max(TEXTS, key=taste), min(TEXTS, key=taste)

    async def scenario() -> list[Scored]:
        world = await World().ready()
        samples = [
            sample(None, text, 4, group, anchors=(anchor,))
            for group, anchor in (("above", poor), ("below", good))
            for text in TEXTS[4:]
        ]
        return await hand_in(world, samples, 3)

    found = rewards(run(scenario))
    assert min(found[:4]) >= 0 >= max(found[4:])
    assert found[:4] != found[4:]
