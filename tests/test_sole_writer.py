"""One writer of a file at a time, named to others, gone with its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrjudge_reward import ScriptedEngine
from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import Judge
from mrjudge_reward.monitoring.run_log import RunLogWriter, read_run
from mrjudge_reward.sole_writer import SoleWriter
from mrjudge_reward.types import Judgement

from .support import ROOT

HOLD = """
import sys
from mrjudge_reward.sole_writer import SoleWriter
held = SoleWriter(sys.argv[1])
print(1, flush=True)
input()
"""


def holding(path: Path) -> subprocess.Popen[bytes]:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"1\n"
    return other


def test_another_process_is_refused_with_the_holder_until_that_one_dies(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with holding(path) as other:
        with pytest.raises(InputError, match=rf"out.jsonl is being written by process {other.pid} \(.+\); wait for it"):
            SoleWriter(path)
        other.kill()
        other.wait()
    SoleWriter(path).close()


def test_a_second_writer_in_this_process_is_refused_until_the_first_is_closed_or_forgotten(tmp_path: Path):
    first = SoleWriter(tmp_path / "x")
    with pytest.raises(InputError, match=f"process {os.getpid()} "):
        SoleWriter(tmp_path / "x")
    first.close()
    first.close()
    second = SoleWriter(tmp_path / "x")
    del second
    SoleWriter(tmp_path / "x").close()


def test_other_files_and_other_names_of_one_file(tmp_path: Path):
    held = SoleWriter(tmp_path / "x")
    SoleWriter(tmp_path / "y").close()
    (tmp_path / "link").symlink_to("x")
    os.link(tmp_path / "x", tmp_path / "hard")
    for name in ("link", "hard", "../" + tmp_path.name + "/x"):
        with pytest.raises(InputError):
            SoleWriter(tmp_path / name)
    (tmp_path / "x").unlink()
    assert not held.holds(tmp_path / "x")
    anew = SoleWriter(tmp_path / "x")
    assert anew.holds(tmp_path / "x")
    for each in (held, anew):
        each.close()


def test_what_cannot_be_opened_raises_as_open_does(tmp_path: Path):
    for path in (tmp_path, tmp_path / "no" / "x"):
        with pytest.raises(OSError, match="directory"):
            SoleWriter(path)


def judged() -> Judgement:
    return Judge(ScriptedEngine.by_utility(len)).rank("q", ["a", "bb"])


def test_a_run_log_that_another_run_writes_is_left_alone_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    mine = RunLogWriter(tmp_path)
    mine.batch(1, "train", [judged()], [[0.0, 1.0]], [[1, 2]])
    beside = RunLogWriter(tmp_path)
    beside.batch(2, "train", [judged()], [[0.0, 1.0]], [[1, 2]])  # of this process
    assert [batch.step for batch in read_run(tmp_path).batches] == [1, 2]
    path = mine.path
    before = path.read_bytes()
    del mine, beside
    with holding(path) as other:
        theirs = RunLogWriter(tmp_path)
        for step in (3, 4):
            theirs.batch(step, "train", [judged()], [[0.0, 1.0]], [[1, 2]])
        assert path.read_bytes() == before
        (warning,) = caplog.messages
        assert f"is being written by process {other.pid}" in warning
        other.kill()
        other.wait()
    theirs.batch(5, "train", [judged()], [[0.0, 1.0]], [[1, 2]])
    assert [batch.step for batch in read_run(tmp_path).batches] == [1, 2, 5], "what follows is tried again"


def test_a_run_log_that_was_removed_begins_anew(tmp_path: Path):
    writer = RunLogWriter(tmp_path)
    writer.seconds(1, judge=1.0)
    writer.path.unlink()
    writer.seconds(2, judge=1.0)
    assert list(read_run(tmp_path).seconds) == [2]
