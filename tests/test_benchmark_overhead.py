"""The overhead benchmark measures what it says: the judge against its engine, our own time, memory."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "overhead.py"
ENGINES = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]


@pytest.mark.usefixtures("smol_path")
def test_the_overhead_benchmark_prints_its_three_tables_and_its_requirements(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    command = [sys.executable, str(SCRIPT), "--quick", "--engines", *ENGINES, "--json", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    speed, own, memory, requirements = re.split(r"\n(?:Our own time|Memory of one call|Requirements).*\n", done.stdout)

    cases = [(engine, *case) for engine in ENGINES for case in (("read", "adaptive"), ("sampled", "ring"))]
    number = r"\d+\.\d+"
    spread = rf"{number} \[{number}, {number}\]"
    for engine, verdict, schedule in cases:
        row = rf"^{engine} +{verdict} +{schedule} +2 +1 +\d+ +{number} +{number} +{spread} +{spread} +{number} +\d+$"
        assert re.search(row, speed, re.MULTILINE), speed
    assert len(re.findall(r"^ +4  (?:adaptive|ring|all_pairs) +(?:read|sampled) +\d+ +\d+ ", own, re.MULTILINE)) == 6
    assert re.findall(r"^(\w+) +\d+ +\d+\.\d", memory, re.MULTILINE) == ["adaptive"] * 2 + ["all_pairs"] * 2
    for engine in ENGINES:
        assert len(re.findall(rf"^(?:PASS|FAIL)  {engine}: ", requirements, re.MULTILINE)) == 2, requirements

    rows = json.loads(written.read_text())
    assert [(row["engine"], row["verdict"], row["schedule"]) for row in rows["speed"]] == cases
    for row in rows["speed"]:
        assert all(0 < inside < judge for inside, judge in zip(row["inside_s"], row["judge_s"], strict=True))
    for row in rows["own"]:
        assert row["us"] > 0
        assert min(row["stages_us"].values()) >= 0
    for row in rows["memory"]:
        assert row["peak"] > row["returned"] > row["rationales"] > 0
        assert row["left"] < row["returned"] / 10  # a judge keeps nothing of what it returned


def test_a_requirement_that_fails_ends_the_overhead_benchmark_with_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import overhead

    def findings(judge_s: float) -> list[overhead.Finding]:
        turns = ([1.0, 1.0, 1.0, 1.0], [judge_s, judge_s, 2.0], [1.0, 1.0, 2.0])  # the last was disturbed
        return overhead.speed_findings("vllm", [overhead.Duel("vllm", "read", "ring", 8, 1, 300.0, *turns)])

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
