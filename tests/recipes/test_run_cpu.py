"""The whole pipeline that makes the embedded judge, on a handful of examples."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")


def run(folder: Path, python: str) -> subprocess.CompletedProcess[str]:
    places = {"PYTHON": python, "RUNS": str(folder / "runs"), "ADAPTER": str(folder / "packed")}
    return subprocess.run(
        ["sh", str(ROOT / "recipes/judge/run_cpu.sh"), "tiny"],
        env=os.environ | places, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(smol_path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Where both trainings have been done and what comes next has failed, and the exit code."""
    folder = tmp_path_factory.mktemp("whole")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" != recipes.judge.pack_adapter ] || exit 7\nexec {warm_python()} "$@"\n')
    python.chmod(0o755)
    done = run(folder, str(python))
    assert (folder / "runs-tiny" / "rl" / "recipe.json").is_file(), done.stderr[-3000:]
    return folder, done.returncode


@pytest.fixture(scope="module")
def whole(interrupted: tuple[Path, int]) -> tuple[Path, str, dict[Path, int]]:
    """Where the same command has then done the rest, what that printed, and when what was there before was made."""
    folder, _ = interrupted
    before = made(folder)
    done = run(folder, warm_python())
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, before


def made(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "runs-tiny").rglob("*") if path.is_file()}


def test_a_step_that_fails_ends_it(interrupted: tuple[Path, int]):
    folder, code = interrupted
    assert code == 7
    assert not list((folder / "runs-tiny").glob("*-dev"))
    assert not (folder / "packed").exists()


def test_everything_from_packages_to_a_packed_judge(whole: tuple[Path, str, dict[Path, int]]):
    folder, printed, _ = whole
    runs = folder / "runs-tiny"
    for name in ("baselines", "base", "sft-test", "rl-test", "sft-dev", "rl-dev"):
        assert json.loads((runs / name / "report.json").read_text())
    kept = printed.partition("kept: ")[2].split()[0]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        measured = (runs / f"{kept}-packed" / name).read_bytes()
        assert (folder / "packed" / name).read_bytes() == measured, "what is in the package is what was measured"
    card = (folder / "packed" / "README.md").read_text()
    assert "| film_pairs | 2 | 4 | " in card
    assert "| rl-test | 1 | amazon_pairs | " in printed
    assert "| single rater | 1 | film_pairs | " in printed


def test_what_is_there_is_not_made_twice(whole: tuple[Path, str, dict[Path, int]]):
    folder, printed, before = whole
    after = made(folder)
    assert before.items() <= after.items()
    again = run(folder, warm_python())
    assert again.returncode == 0, again.stderr[-3000:]
    assert made(folder) == after
    assert again.stdout.splitlines()[-20:] == printed.splitlines()[-20:]
