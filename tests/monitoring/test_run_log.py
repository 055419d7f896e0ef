"""A run's log: what a crash, a full disk, a rerun and several ranks leave of it."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward import Judge, ScriptedEngine
from mrjudge_reward.errors import InputError
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.monitoring.explain import verdict_line
from mrjudge_reward.monitoring.run_log import MAX_CANDIDATES, MAX_CHARS, LoggedGroup, RewardSums, RunLogWriter, read_run
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.types import Group, Judgement
from tests.support import ROOT
from tests.support.report_runs import log_run, reasoning_judge


def judged(key: str = "g", *answers: str) -> Judgement:
    (judgement,) = reasoning_judge().judge([Group.of("Which?", answers or ("one", "three", "eleven"), key)])
    return judgement


def write(folder: Path, step: int, rank: int = 0, answers: tuple[str, ...] = ("a", "bb"), **more: Any) -> Judgement:
    judgement = judged(f"g{rank}{step}", *answers)
    rewards = [float(index) for index in range(len(answers))]
    RunLogWriter(folder, rank=rank, **more).batch(
        step, "train", [judgement], [rewards], [[len(answer) for answer in answers]], {"judge": "j"}
    )
    return judgement


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    run = read_run(tmp_path)
    (batch,) = run.batches
    assert (run.name, run.about, batch.step, batch.mode) == ("judge", {"judge": "j"}, 1, "train")
    assert batch.stats.groups == 1
    assert batch.rewards.metrics() == {"reward": 0.5, "reward_std": 0.5, "spread": 0.5, "length": 1.5}
    (group,) = batch.groups
    assert [candidate.text for candidate in group.candidates] == ["a", "bb"]
    assert group.wins[1][0] == group.games[0][1] == 2
    assert group.candidates[1].strength > 0 > group.candidates[0].strength  # type: ignore[operator]
    assert group.candidates[0].error > 0  # type: ignore[operator]
    assert "says more" in group.verdicts[0]["rationale"]


def test_anchors_are_logged_apart_and_read_again_also_from_logs_that_know_none(tmp_path: Path) -> None:
    (judgement,) = reasoning_judge().judge([Group.of("Which?", ["one", "three"], "g", anchors=["four", "x" * 9000])])
    RunLogWriter(tmp_path).batch(1, "train", [judgement], [judgement.scores_G], [[3, 5]], {"judge": "j"})
    (batch,) = read_run(tmp_path).batches
    (group,) = batch.groups
    assert group == LoggedGroup.of(judgement, judgement.scores_G, [3, 5])
    assert [one["score"] for one in group.anchors] == list(judgement.anchors_A)
    assert len(group.anchors[1]["text"]) < MAX_CHARS + 100
    assert (batch.stats.candidates, batch.stats.against_anchors, batch.stats.anchor_wins) == (2, 2, 0)
    assert batch.stats.calls == judgement.calls == 8
    (path,) = tmp_path.glob("*.jsonl")
    for name in ("anchors", "level", "against_anchors", "anchor_wins"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines[1:]:
            line["stats"].pop(name, None)
            line["groups"][0].pop(name, None)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (batch,) = read_run(tmp_path).batches
    assert batch.groups[0].anchors == ()
    assert "anchor_win_rate" not in batch.stats.metrics()


def test_of_a_group_judged_by_criteria_each_criterion_is_logged_and_games_are_not_mixed(tmp_path: Path) -> None:
    judge = Judge(
        ScriptedEngine.by_utility(len), criteria="absolute", verdict="logprobs", rubric=["Is long.", "Is kind."]
    )
    (judgement,) = judge.judge([Group.of("Which?", ["a", "bbb"], "g")])
    writer = RunLogWriter(tmp_path)
    writer.batch(1, "train", [judgement], [judgement.scores_G], [[1, 3]], {})
    (group,) = read_run(tmp_path).batches[0].groups
    assert [one["name"] for one in group.criteria] == ["criterion 1", "criterion 2"]
    assert group.criteria[0]["scores"] == list(judgement.criteria[0].scores_G)
    assert {verdict["criterion"] for verdict in group.verdicts} == {"criterion 1", "criterion 2"}
    assert [candidate.strength for candidate in group.candidates] == [None, None]
    assert group.rubric is None
    assert "criterion 1: " in verdict_line(judgement.played[0])


def test_a_torn_last_line_is_ignored_and_removed_when_the_run_goes_on(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "judge.rank0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "batch", "step": 2, "mo')
    assert [batch.step for batch in read_run(tmp_path).batches] == [1]
    write(tmp_path, 2)
    run = read_run(tmp_path)
    assert [batch.step for batch in run.batches] == [1, 2]
    assert run.damaged == 0


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.support.report_runs import log_run\n"
        "log_run(Path(sys.argv[1]), 3); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert [batch.step for batch in read_run(tmp_path).batches] == [1, 2, 3]


def test_lines_that_are_damaged_are_counted_and_cost_only_themselves(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "judge.rank0.jsonl"
    bad = b'not json\n{"kind": "batch", "step": 2, "time": 1}\n[]\n{"kind": "other", "step": 1, "time": 1}\n\xff\xfe\n'
    path.write_bytes(path.read_bytes() + bad)
    run = read_run(tmp_path)
    assert [batch.step for batch in run.batches] == [1]
    assert run.damaged == 5


def test_steps_that_a_continued_run_went_over_again_count_once(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    before = {batch.step: batch.stats.groups for batch in read_run(tmp_path).batches}
    again = RunLogWriter(tmp_path)  # from a checkpoint after step 2; it dies before it gets to step 4
    judgement = judged()
    again.batch(3, "train", [judgement, judgement], [[0.0] * 3] * 2, [[1, 2, 3]] * 2)
    after = {batch.step: batch.stats.groups for batch in read_run(tmp_path).batches}
    assert before == {1: 1, 2: 1, 3: 1, 4: 1}
    assert after == {1: 1, 2: 1, 3: 2}


def test_ranks_and_calls_of_a_step_add_up(tmp_path: Path) -> None:
    one, two = RunLogWriter(tmp_path, rank=0), RunLogWriter(tmp_path, rank=1)
    judgement = judged()
    for writer, rewards in ((one, [1.0, 2.0, 3.0]), (one, [1.0, 2.0, 3.0]), (two, [4.0, None, None])):
        writer.batch(1, "train", [judgement], [rewards], [[1, 1, 4]])
    (batch,) = read_run(tmp_path).batches
    assert batch.stats.groups == 3
    assert batch.stats.calls == 3 * judgement.calls
    assert batch.stats.seconds == pytest.approx(2 * judgement.seconds), "calls follow each other, ranks do not"
    assert batch.rewards.metrics()["reward"] == pytest.approx(16 / 7)
    assert len(batch.groups) == 3


def test_the_texts_of_a_long_run_are_not_held_in_memory(tmp_path: Path) -> None:
    """Twenty megabytes of texts: a line's are read, its sums kept, and the groups found again where they are asked for."""
    write(tmp_path, 1, answers=("a" * 5000, "b" * 5000, "c" * 5000))
    path = tmp_path / "judge.rank0.jsonl"
    start, line = path.read_text().splitlines(keepends=True)
    steps = 20_000_000 // len(line)
    for rank in (0, 1):
        lines = (
            line.replace('"step": 1,', f'"step": {step},').replace('"g01"', f'"g{rank}-{step}"')
            for step in range(steps)
        )
        (tmp_path / f"judge.rank{rank}.jsonl").write_text(start + "".join(lines))
    tracemalloc.start()
    run = read_run(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.batches) == steps > 500
    assert peak < 10_000_000
    assert [group.key for group in run.batches[7].groups] == ["g0-7", "g1-7"]
    assert run.batches[-1].stats.groups == 2


def test_a_torn_line_and_damaged_ones_do_not_move_the_groups_that_follow(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
        with (tmp_path / "judge.rank0.jsonl").open("ab") as file:
            file.write("not JSON, ☃\n\n".encode() if step < 3 else b'{"kind": "batch", "step": 4')
    run = read_run(tmp_path)
    assert [group.key for batch in run.batches for group in batch.groups] == ["g01", "g02", "g03"]
    assert run.damaged == 4


def test_a_disk_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        reward = log_run(tmp_path / "file" / "run", 3)
    assert reward.last_stats.groups == 1
    assert [record.message for record in caplog.records if "without its log" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


def test_texts_and_groups_are_bounded_and_say_so(tmp_path: Path) -> None:
    huge = tuple("word " * 100_000 + str(index) for index in range(MAX_CANDIDATES + 4))
    write(tmp_path, 1, answers=huge)
    (batch,) = read_run(tmp_path).batches
    (group,) = batch.groups
    assert (group.size, len(group.candidates)) == (MAX_CANDIDATES + 4, MAX_CANDIDATES)
    assert all(len(candidate.text) < MAX_CHARS + 60 for candidate in group.candidates)
    assert "characters cut here" in group.candidates[0].text
    assert group.candidates[0].chars == len(huge[0])
    assert (tmp_path / "judge.rank0.jsonl").stat().st_size < 1_000_000


def test_a_group_too_large_to_fit_strengths_to_is_logged_without_them() -> None:
    answers = tuple(f"answer {index}" for index in range(200))
    group = LoggedGroup.of(judged("g", *answers), [0.0] * 200, [1] * 200)
    assert {candidate.strength for candidate in group.candidates} == {None}


def test_which_groups_are_drawn_depends_on_the_seed_and_the_step_alone(tmp_path: Path) -> None:
    judgements = [judged(f"g{index}") for index in range(20)]

    def drawn(folder: str, seed: int) -> list[str]:
        RunLogWriter(tmp_path / folder, groups=3, seed=seed).batch(
            7, "train", judgements, [[0.0] * 3] * 20, [[1] * 3] * 20
        )
        return [group.key for group in read_run(tmp_path / folder).batches[0].groups]

    assert drawn("a", 0) == drawn("b", 0)
    assert len(drawn("c", 1)) == 3
    assert drawn("a", 0) != drawn("d", 5)


def test_stats_survive_json_with_the_reasons_of_failures() -> None:
    stats = JudgeStats.of([judged("g", "fail here", "fail here too")])
    assert stats.reasons == {"no verdict": 2}
    assert JudgeStats.read(json.loads(json.dumps(stats.record()))) == stats


@pytest.mark.parametrize("answers", [("only one",), ("same", "same"), ("", ""), ("fail here", "fail here too")])
def test_groups_without_games_are_logged(tmp_path: Path, answers: tuple[str, ...]) -> None:
    write(tmp_path, 1, answers=answers)
    (batch,) = read_run(tmp_path).batches
    assert [candidate.strength for candidate in batch.groups[0].candidates] == [None] * len(answers)


def test_a_batch_of_nothing_is_logged(tmp_path: Path) -> None:
    RunLogWriter(tmp_path).batch(1, "train", [], [], [])
    (batch,) = read_run(tmp_path).batches
    assert batch.groups == ()
    assert batch.rewards == RewardSums()


def test_a_folder_without_a_log_and_one_with_several_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set log_dir of JudgeReward"):
        read_run(tmp_path)
    for name in ("style", "facts"):
        RunLogWriter(tmp_path, name).seconds(1, judge=1.0)
    with pytest.raises(InputError, match="facts, style; choose one with --name"):
        read_run(tmp_path)
    assert read_run(tmp_path, "style").seconds == {1: {"judge": 1.0}}
    with pytest.raises(InputError, match="no log of 'judge'"):
        read_run(tmp_path, "judge")


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    writer = RunLogWriter(tmp_path, "../../etc/x")
    writer.seconds(1, judge=1.0)
    assert writer.path.parent == tmp_path
    assert writer.path.exists()


def test_a_reward_with_a_log_travels_to_another_process(tmp_path: Path) -> None:
    reward = log_run(tmp_path, 1)
    reward._judge = None  # a scripted engine holds a local function
    copy = pickle.loads(pickle.dumps(reward))
    copy._judge = reasoning_judge()
    copy(["p"] * 4, ["a", "bb", "ccc", "dddd"], trainer_state=SimpleNamespace(global_step=1))
    assert [batch.step for batch in read_run(tmp_path).batches] == [1, 2]


def test_evaluation_is_logged_apart(tmp_path: Path) -> None:
    reward = JudgeReward(reasoning_judge(), num_generations=2, name="judge", log_dir=tmp_path)
    trainer = SimpleNamespace(model=SimpleNamespace(training=False), reward_funcs=[reward])

    class Logger:
        model, reward_funcs = trainer.model, trainer.reward_funcs

        def log_metric(self, name: str, value: float) -> None:
            pass

    reward(["p", "p"], ["a", "bb"], log_metric=Logger().log_metric)
    (batch,) = read_run(tmp_path).batches
    assert batch.mode == "eval"
