"""The overhead benchmark measures what it says: the judge against its engine, our own time, memory."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from .test_benchmarks import printed_by

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="needs vLLM, which `make setup` installs"
)


def assert_rows_of_a_duel(printed: str, rows: list[dict[str, Any]], engine: str) -> None:
    cases = [("logprobs", "adaptive"), ("generate", "ring")]
    number = r"\d+\.\d+"
    spread = rf"{number} \[{number}, {number}\]"
    for verdict, schedule in cases:
        row = rf"^{engine} +{verdict} +{schedule} +2 +1 +\d+ +{number} +{number} +{spread} +{spread} +{number} +\d+$"
        assert re.search(row, printed, re.MULTILINE), printed
    assert [(row["engine"], row["verdict"], row["schedule"]) for row in rows] == [(engine, *case) for case in cases]
    for row in rows:
        assert all(0 < inside < judge for inside, judge in zip(row["inside_s"], row["judge_s"], strict=True))


# engines/vllm/test_engine.py measures vLLM where it is imported already.
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=[pytest.mark.scale, needs_vllm])])
@pytest.mark.usefixtures("smol_path")
def test_the_overhead_benchmark_prints_its_three_tables_and_its_requirements(engine: str, tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    printed = printed_by("overhead", "--quick", "--engines", engine, "--json", str(written))
    speed, own, memory, requirements = re.split(r"\n(?:Our own time|Memory of one call|Requirements).*\n", printed)

    assert (
        len(re.findall(r"^ +4  (?:adaptive|ring|all_pairs) +(?:logprobs|generate) +\d+ +\d+ ", own, re.MULTILINE)) == 6
    )
    assert re.findall(r"^(\w+) +\d+ +\d+\.\d", memory, re.MULTILINE) == ["adaptive"] * 2 + ["all_pairs"] * 2
    assert len(re.findall(rf"^(?:PASS|FAIL)  {engine}: ", requirements, re.MULTILINE)) == 2, requirements

    rows = json.loads(written.read_text())
    assert_rows_of_a_duel(speed, rows["speed"], engine)
    for row in rows["own"]:
        assert row["us"] > 0
        assert min(row["stages_us"].values()) >= 0
    for row in rows["memory"]:
        assert row["peak"] > row["returned"] > row["rationales"] > 0
        assert row["left"] < row["returned"] / 10  # a judge keeps nothing of what it returned


def test_a_requirement_that_fails_ends_the_overhead_benchmark_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from . import overhead

    def findings(judge_s: float) -> list[overhead.Finding]:
        turns = ([1.0, 1.0, 1.0, 1.0], [judge_s, judge_s, 2.0], [1.0, 1.0, 2.0])  # the last was disturbed
        return overhead.speed_findings("vllm", [overhead.Duel("vllm", "logprobs", "ring", 8, 1, 300.0, *turns)])

    assert [finding.status for finding in findings(1.01)] == ["PASS", "PASS"]
    assert overhead.exit_code(findings(1.01)) == 0
    assert [finding.status for finding in findings(1.1)] == ["FAIL", "FAIL"]
    assert overhead.exit_code(findings(1.1)) == 1

    def growing(peak: int) -> overhead.Finding:
        sizes = ((1000, 1_000_000), (2000, 2_000_000), (4000, peak))
        rows = [overhead.Memory("ring", count, held, 0, 0, 0, 0) for count, held in sizes]
        return overhead.memory_finding("ring", rows)

    assert growing(4_100_000).status == "PASS"
    assert growing(16_000_000).status == "FAIL"
    assert overhead.exit_code([growing(16_000_000)]) == 1
    assert overhead.exit_code([*overhead.speed_findings("vllm", []), overhead.memory_finding("ring", [])]) == 0
