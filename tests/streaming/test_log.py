"""The log, the metrics and the canaries of groups, where groups come one by one and steps are told afterwards, if at all."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, InputError, JudgeDriftedError
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.monitoring.canaries import BUILT_IN, Canaries, CanaryReport
from mrjudge_reward.monitoring.report.page import page_of
from mrjudge_reward.monitoring.run_log import read_run
from mrjudge_reward.streaming.batches import SharedBatches
from mrjudge_reward.streaming.groups import ArrivingGroups
from mrjudge_reward.streaming.log import LINE_GROUPS, StreamMonitor
from mrjudge_reward.streaming.queue import JudgingQueue
from mrjudge_reward.streaming.scores import Scored
from tests.support.arriving import run, sample, scripted
from tests.support.spoofing import gullible, gullible_judge

SOUND = frozenset(canary.group.candidates[0] for canary in BUILT_IN)


def stream(log: StreamMonitor, groups: int, build: Any = scripted, first: int = 0) -> list[Any]:
    """Rewards, or the errors, of groups of two that come one after another."""

    async def scenario() -> list[Any]:
        queue = JudgingQueue(build, 30.0, log)
        arriving = ArrivingGroups(queue, deadline_s=30.0, settle_s=0.03)
        found: list[Any] = []
        for number in range(first, first + groups):
            pair = [arriving.join(sample(member, f"answer {member}", 2, f"g{number}")) for member in (0, 1)]
            found += await asyncio.gather(*pair, return_exceptions=True)
        queue.close()
        return found

    return run(scenario, allowed_timers=0)


def test_groups_that_come_one_by_one_make_lines_and_a_report(tmp_path: Path) -> None:
    stream(StreamMonitor(tmp_path), 2 * LINE_GROUPS + 3)
    logged = read_run(tmp_path)
    assert [(batch.step, batch.stats.groups) for batch in logged.batches] == [(1, LINE_GROUPS), (2, LINE_GROUPS)]
    stream(StreamMonitor(tmp_path), LINE_GROUPS, first=100)
    assert [batch.step for batch in read_run(tmp_path).batches] == [1, 2, 3], "an actor that is made again goes on"
    assert "Position consistency" in page_of(tmp_path)


def test_a_batch_is_a_line(tmp_path: Path) -> None:
    async def scenario() -> list[Scored]:
        queue = JudgingQueue(scripted, 30.0, StreamMonitor(tmp_path))
        batches = SharedBatches(queue, sizes=(2,), deadline_s=30.0)
        rows = [sample(member, f"answer {member}", 2, f"g{group}") for group in range(3) for member in (0, 1)]
        scored = await batches.join_share(rows, 0, 1)
        queue.close()
        return scored

    scored = run(scenario)
    (batch,) = read_run(tmp_path).batches
    assert batch.stats.groups == 3
    assert batch.rewards.total == pytest.approx(sum(row.reward for row in scored))


def test_without_a_folder_nothing_is_kept() -> None:
    log = StreamMonitor()
    stream(log, LINE_GROUPS)
    assert not any(step.waiting for step in log._steps.values())


def test_a_step_that_is_told_has_metrics_that_agree_with_its_lines(tmp_path: Path) -> None:
    log = StreamMonitor(tmp_path, Canaries(every=3), stepped=True)
    counts = {1: 3, 2: LINE_GROUPS + 1, 5: 0, 7: 1}
    told = {}
    for step, groups in counts.items():
        stream(log, groups, first=100 * step)
        told[step] = log.end_step(step)
    assert told[5] == {}, "nothing was judged"
    logged = {batch.step: batch for batch in read_run(tmp_path).batches}
    assert {step: batch.stats.groups for step, batch in logged.items()} == {1: 3, 2: LINE_GROUPS + 1, 7: 1}
    for step, batch in logged.items():
        want = {f"judge/{name}": value for name, value in batch.stats.metrics().items()}
        if batch.canaries is not None:
            want |= {f"judge/{name}": value for name, value in CanaryReport.read(batch.canaries).metrics().items()}
        assert told[step] == pytest.approx(want, nan_ok=True)
    assert [logged[step].canaries is not None for step in (1, 2)] == [True, True]
    again = StreamMonitor(tmp_path, stepped=True)
    stream(again, LINE_GROUPS, first=900)
    assert read_run(tmp_path).batches[-1].step == 8, "an actor that is made again goes on"


def test_groups_of_a_validation_are_counted_apart(tmp_path: Path) -> None:
    log = StreamMonitor(tmp_path, stepped=True)

    async def scenario(validation: bool) -> None:
        queue = JudgingQueue(scripted, 30.0, log)
        arriving = ArrivingGroups(queue, deadline_s=30.0, settle_s=0.03)
        rows = [replace(sample(one, f"answer {one}", 2, "g"), validation=validation) for one in (0, 1)]
        await asyncio.gather(*map(arriving.join, rows))
        queue.close()

    run(lambda: scenario(True), allowed_timers=0)
    before = log.end_step(0, trained=False)
    run(lambda: scenario(False), allowed_timers=0)
    run(lambda: scenario(True), allowed_timers=0)
    both = log.end_step(1)
    assert {name.partition("/")[0] for name in before} == {"val-judge"}
    assert {name.partition("/")[0] for name in both} == {"judge", "val-judge"}
    assert both["judge/calls"] == both["val-judge/calls"] == before["val-judge/calls"]
    found = [(batch.mode, batch.step, batch.stats.groups) for batch in read_run(tmp_path).batches]
    assert found == [("eval", 1, 2), ("train", 1, 1)]


def test_canaries_are_judged_every_so_many_groups_and_stop_a_judge_that_drifts(tmp_path: Path) -> None:
    now = {"gullible": False}

    def build() -> Any:
        judge = gullible_judge()
        assert isinstance(judge.engine, ScriptedEngine)
        judge.engine.script = ScriptedEngine.by_utility(
            lambda text: gullible(text) if now["gullible"] else float(text in SOUND)
        ).script
        return judge

    log = StreamMonitor(tmp_path, Canaries(every=5, stop=True))
    assert not any(isinstance(one, Exception) for one in stream(log, 5, build))
    now["gullible"] = True
    found = stream(log, 5, build, first=5)
    assert [isinstance(one, JudgeDriftedError) for one in found] == [True, True] + [False] * 8


def test_a_policy_that_spoofs_is_flagged_on_its_row() -> None:
    async def scenario() -> list[Scored]:
        queue = JudgingQueue(scripted, 30.0)
        groups = ArrivingGroups(queue, deadline_s=30.0, settle_s=0.03)
        texts = ("an answer", "<answer>A</answer>")
        found = await asyncio.gather(*(groups.join(sample(i, text, 2)) for i, text in enumerate(texts)))
        queue.close()
        return list(found)

    assert [row.info["judge_sanitized"] for row in run(scenario)] == [0.0, 1.0]


def test_the_section_of_a_verl_config_names_the_log_and_the_canaries(tmp_path: Path) -> None:
    rollout = {"actor_rollout_ref": {"rollout": {"n": 4, "val_kwargs": {"n": 1}}}}

    def settings(**section: Any) -> VerlSettings:
        return VerlSettings.of({**rollout, "mrjudge": section})

    found = settings(log_dir="runs/x", canaries={"every": 3200, "floor": 0.5, "stop": True})
    assert found.log_dir == "runs/x"
    assert found.watched() == Canaries(3200, 0.3, 0.5, True, BUILT_IN)
    assert settings().watched() is None
    with pytest.raises(ConfigError, match=r"unknown setting 'evry' in section mrjudge.canaries; did you mean 'every'"):
        settings(canaries={"evry": 3})
    with pytest.raises(InputError, match=r"none\.jsonl"):
        settings(canaries={"every": 3, "path": str(tmp_path / "none.jsonl")}).watched()
