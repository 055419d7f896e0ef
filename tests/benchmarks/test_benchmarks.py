"""Benchmarks run, and the numbers behind the defaults hold."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from mrjudge_reward import Judge, ScriptedEngine
from mrjudge_reward.scoring.schedules import SCHEDULES
from tests.support.warm_python import ROOT, run_python, warm_python


def printed_by(*command: str) -> str:
    """What a benchmark prints; it must end well."""
    name, *arguments = command
    paths = [str(ROOT / "tests/support/quick_workers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = run_python("-m", f"tests.benchmarks.{name}", *arguments, env=environment, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_schedules_benchmark_prints_every_schedule_and_its_requirements(tmp_path: Path) -> None:
    printed = printed_by("schedules", "--quick", "--json", str(tmp_path / "rows.json"))
    table, _, requirements = printed.partition("Requirements")
    shown = {line.split()[0] for line in table.splitlines() if line.strip()}
    assert set(SCHEDULES) - {"pointwise"} <= shown
    assert "(a) G=8" in requirements
    assert "(b) G=8" in requirements
    assert "default for soft verdicts: " in requirements
    assert "default for hard verdicts: " in requirements
    assert any(line.startswith(("PASS", "FAIL")) for line in requirements.splitlines())
    written = json.loads((tmp_path / "rows.json").read_text())
    assert {row["schedule"] for row in written["rows"]} == set(SCHEDULES) - {"pointwise"}


def test_the_anchors_benchmark_prints_every_schedule_for_each_number_of_anchors() -> None:
    rows = [line.split() for line in printed_by("anchors", "--groups", "2").splitlines()[1:]]
    assert {row[0] for row in rows} == set(SCHEDULES) - {"pointwise"}
    assert sorted({row[2] for row in rows}) == ["1", "2", "4"]
    assert {row[3] for row in rows if row[0] == "anchor"} == {"16", "32", "64"}


def test_every_requirement_of_groups_of_eight_passes_and_the_default_is_the_one_found_best() -> None:
    requirements = printed_by("schedules", "--sizes", "8", "--groups", "200").partition("Requirements")[2]
    statuses = re.findall(r"^(\S+) +\([ab]\) G=8 ", requirements, re.MULTILINE)
    assert statuses == ["PASS"] * 6, requirements
    found = re.findall(r"^default for soft verdicts: (\w+),", requirements, re.MULTILINE)
    assert found == ["adaptive"]
    assert Judge(ScriptedEngine.by_utility(len)).schedule.name == "adaptive"


def test_a_requirement_that_fails_ends_the_schedules_benchmark_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from . import schedules

    monkeypatch.setitem(schedules.REQUIRED_SHARE, 8, 2.0)
    monkeypatch.setattr(sys, "argv", ["schedules.py", "--sizes", "8", "--groups", "2"])
    with pytest.raises(SystemExit) as ended:
        schedules.main()
    assert ended.value.code == 1
    monkeypatch.setattr(sys, "argv", ["schedules.py", "--quick"])
    schedules.main()


@pytest.mark.usefixtures("smol_path")
def test_the_embedded_judge_benchmark_prints_its_four_rows() -> None:
    printed = printed_by("embedded_judge", "--pairs", "3")
    share = r"[01]\.\d{3} \[-?\d\.\d{3}, \d\.\d{3}\]"
    for name in (
        "alone, sentiment (the default)",
        "as a choice, both orders",
        "as a choice, right in both orders",
        "as a choice, position consistency",
    ):
        assert re.search(rf"^{re.escape(name)} +{share}", printed, re.MULTILINE), printed


def test_the_arrivals_benchmark_prints_three_ways_for_each_schedule() -> None:
    small = ("--groups", "4", "--size", "4", "--median", "0.2", "--think", "0.01", "--slots", "4", "--no-ray")
    printed = printed_by("verl_arrivals", *small, "--schedules", "ring", "adaptive")
    rows = re.findall(
        r"^(ring|adaptive) +(at the end of the batch|group by group|as it arrives)", printed, re.MULTILINE
    )
    assert len(set(rows)) == len(rows) == 6
    ratios = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith(("ring", "adaptive"))]
    assert ratios[0] == ratios[3] == 1.0


@pytest.mark.parametrize(
    "size",
    [
        ("--comparisons", "4", "--megapixels", "1", "--quick"),
        pytest.param(("--comparisons", "6", "--megapixels", "2"), marks=pytest.mark.scale),
    ],
    ids=["small", "as used"],
)
def test_the_images_benchmark_shows_that_a_shared_image_is_processed_once(
    size: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from . import images

    monkeypatch.setattr(sys, "executable", warm_python())  # of each way, a process of its own
    monkeypatch.setattr(sys, "argv", ["images.py", *size])
    images.main()
    printed = capsys.readouterr().out
    ratios = [float(ratio) for ratio in re.findall(r"ratio of the times ([.\d]+)", printed)]
    assert len(ratios) == 2
    assert max(ratios) < 0.6, printed  # at least four times the work against little more than one
    assert "not shared" in printed


def test_the_rank_benchmark_prints_four_ways_and_finds_the_same_scores() -> None:
    printed = printed_by("rank", "--quick")
    rows = re.findall(r"^(adaptive|ring) +(batches|window|default|at once) +\d+ +[\d.]+ ", printed, re.MULTILINE)
    assert len(set(rows)) == len(rows) == 8
    assert "scores of all ways are identical" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's peak memory from /proc: run it on Linux")
def test_the_report_benchmark_prints_memory_time_and_the_size_of_the_page() -> None:
    printed = printed_by("report", "--quick")
    found = re.search(r"100 steps x 2 ranks, (\d+) MB of log: peak memory (\d+) MiB, .* page ([\d.]+) MB", printed)
    assert found, printed
    assert int(found[1]) > 5
    assert int(found[2]) < 256
    assert 0.1 < float(found[3]) < 10


def test_the_adaptive_benchmark_finds_the_same_games_both_ways() -> None:
    printed = printed_by("adaptive", "--quick")
    assert re.findall(r"^ +(\d+) +3 +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE) == ["4", "8"]
    assert "both ways play the same games" in printed


def test_the_rubrics_benchmark_prints_a_row_for_each_way_to_ask() -> None:
    from .rubrics import WAYS

    lines = printed_by("rubrics", "--quick").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [name for name, _ in WAYS]
    assert [int(line.split("|")[2]) for line in lines[2:6]] == [16, 4, 16, 4]
