"""The prefix benchmark: its orders, its simulated cache, and a short run of the script on the real engine.

`make test` runs it in the process of engines/vllm/test_engine.py, where vLLM is imported already.
"""

from __future__ import annotations

import importlib.util
import json
import os
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mrjudge_reward import Group, Judge
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.engines.vllm.setup import cpu_build

from . import prefix
from .test_benchmarks import printed_by

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not cpu_build(),
    reason="needs vLLM's CPU build, which `make setup` installs",
)


def judged(groups: int, schedule: str, order: Any) -> Any:
    """Recorded batches of a judge that prefers the longer one."""
    engine = prefix.Reordered(ScriptedEngine.by_utility(len), order)
    many = [Group.of(f"Question {g}?", [f"{g}: " + "x" * n for n in range(1, 6)], str(g)) for g in range(groups)]
    judgements = Judge(engine, schedule=schedule, verdict="logprobs", audit=False).judge(many)
    assert all(judgement.order == (4, 3, 2, 1, 0) for judgement in judgements)
    return engine.batches


def test_a_shuffled_batch_gets_its_replies_in_the_order_asked():
    assert prefix.shuffled(0, 20) != list(range(20))
    assert judged(3, "all_pairs", prefix.shuffled) == judged(3, "all_pairs", prefix.in_order)


def test_waves_ask_the_same_requests_with_each_group_in_its_own_rounds():
    batches = judged(4, "adaptive", prefix.in_order)
    waves = prefix.in_waves(batches, 2)
    assert len(waves) == 2 * len(batches)
    assert sorted(map(repr, chain(*waves))) == sorted(map(repr, chain(*batches)))
    round_of = {request: turn for turn, batch in enumerate(batches) for request in batch}
    assert [{round_of[request] for request in wave} for wave in waves] == [{turn} for turn in range(len(batches))] * 2
    halves = [
        {r.messages[-1].text[:22] for w in half for r in w} for half in (waves[: len(batches)], waves[len(batches) :])
    ]
    assert [len(half) for half in halves] == [2, 2]
    assert halves[0].isdisjoint(halves[1])


def test_there_and_back_turns_every_second_batch():
    assert prefix.there_and_back(["abc", "de", "fg"]) == [list("abc"), list("ed"), list("fg")]


SHARED = list(range(64))
LONG = [*SHARED, *range(100, 196)]  # 5 blocks
OTHER = [*SHARED, *range(200, 296)]


@pytest.mark.parametrize(
    ("prompts", "share", "why"),
    [
        ([LONG], 0, "nothing was there before"),
        ([LONG, OTHER], 64 / 320, "two blocks are shared"),
        ([LONG, LONG], 128 / 320, "the last token is always computed, and its block with it"),
        ([LONG, [*LONG, 1]], 160 / 321, "a full block followed by something is not"),
        ([LONG, [0, *LONG]], 0, "a block is its tokens after all that stands before them"),
    ],
)
def test_the_bound_counts_full_blocks_at_the_start(prompts: list[list[int]], share: float, why: str):
    assert prefix.bound(prompts) == pytest.approx(share), why


def test_a_roomy_simulated_cache_reaches_the_bound_in_any_order_and_a_tight_one_only_among_neighbours():
    rng = Random(0)
    groups = [[rng.randrange(1000) for _ in range(96)] for _ in range(6)]
    ordered = [[*group, *(rng.randrange(1000) for _ in range(40))] for group in groups for _ in range(6)]
    mixed = rng.sample(ordered, len(ordered))
    best = prefix.bound(ordered)
    assert best == prefix.bound(mixed)
    roomy = [prefix.simulated([prompts], 10_000, 300) for prompts in (ordered, mixed)]
    assert roomy == pytest.approx([best, best])
    tight = [prefix.simulated([prompts], 320, 300) for prompts in (ordered, mixed)]
    assert tight[0] == pytest.approx(best)
    assert tight[1] < 0.8 * best


def assert_each_schedule_in_both_orders_and_caches(printed: str, written: Any) -> None:
    rows = {(row["cache"], row["schedule"], row["order"]): row for row in written["measured"]}
    schedules = ("listwise", "adaptive", "all_pairs")
    wanted = {(c, s, o) for c in ("roomy", "tight") for s in schedules for o in ("ours", "shuffled")}
    alternatives = {("tight", "adaptive", "in waves"), ("tight", "adaptive", "question last")}
    assert set(rows) == wanted | alternatives
    assert all(" ".join(key) in " ".join(printed.split()) for key in rows)
    for (cache, _, order), row in rows.items():
        assert 0 < row["share"] <= row["bound"] < 1
        assert row["usage"]["completion_tokens"] == row["calls"], "a read costs one token"
        if cache == "roomy":
            assert row["share"] == pytest.approx(row["bound"]), "what vLLM counts is what the bound counts"
        if order == "ours":
            assert row["ratio"] == 1
    assert {row["schedule"] for row in written["simulated"]} == set(schedules)
    for row in written["simulated"]:
        assert row["shuffled"] <= row["ours"] <= row["bound"] + 1e-9


@pytest.mark.scale
@needs_vllm
@pytest.mark.usefixtures("smol_path")
def test_the_prefix_benchmark_starts_itself_anew_and_prints_each_schedule_in_both_orders_and_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    printed = printed_by("prefix", "--quick", "--json", str(tmp_path / "rows.json"))
    assert_each_schedule_in_both_orders_and_caches(printed, json.loads((tmp_path / "rows.json").read_text()))
