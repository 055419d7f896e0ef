"""The whole pipeline that makes the embedded judge, on a handful of examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("vllm_hidden")

ROOT = Path(__file__).parent.parent


def run(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    places = {"PYTHON": sys.executable, "RUNS": str(tmp_path / "runs"), "ADAPTER": str(tmp_path / "packed")}
    return subprocess.run(
        ["sh", str(ROOT / "recipes" / "run_cpu.sh"), "tiny"],
        env=os.environ | places | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.mark.timeout(1000)
def test_everything_from_packages_to_a_packed_judge_and_nothing_twice(smol_path: str, tmp_path: Path):
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    runs = tmp_path / "runs-tiny"
    for name in ("baselines", "base", "sft-test", "rl-test", "sft-dev", "rl-dev"):
        assert json.loads((runs / name / "report.json").read_text())
    kept = first.stdout.partition("kept: ")[2].split()[0]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        measured = (runs / f"{kept}-packed" / name).read_bytes()
        assert (tmp_path / "packed" / name).read_bytes() == measured, "what is in the package is what was measured"
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "| film_pairs | 2 | 4 | " in card
    assert "| rl-test | 1 | amazon_pairs | " in first.stdout
    assert "| single rater | 1 | film_pairs | " in first.stdout
    made = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    second = run(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()} == made
    assert second.stdout.splitlines()[-20:] == first.stdout.splitlines()[-20:]
