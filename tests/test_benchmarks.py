from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mrjudge_reward.schedules import SCHEDULES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_the_schedules_benchmark_prints_every_schedule_and_its_requirements(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "schedules.py"), "--quick", "--json", str(tmp_path / "rows.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    table, _, requirements = printed.partition("Requirements")
    shown = {line.split()[0] for line in table.splitlines() if line.strip()}
    assert set(SCHEDULES) - {"pointwise"} <= shown
    assert "(a) G=8" in requirements
    assert "(b) G=8" in requirements
    assert "default: " in requirements
    assert any(line.startswith(("PASS", "FAIL")) for line in requirements.splitlines())
    written = json.loads((tmp_path / "rows.json").read_text())
    assert {row["schedule"] for row in written["rows"]} == set(SCHEDULES) - {"pointwise"}
