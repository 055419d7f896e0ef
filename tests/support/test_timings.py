"""A test that takes too long fails the run, unless a reason is known; the slowest files are shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import ROOT

LIMITS = """
from tests.support import timings

timings.LIMIT_S = 0.2
timings.LONGER = {"test_b.py::test_known": (20, "it waits"), "test_b.py::test_longer": (0.3, "and more")}
"""
SLOW = """
import time

def test_known():
    time.sleep(0.4)

def test_new():
    time.sleep(0.4)

def test_longer_still():
    time.sleep(0.4)
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "conftest.py").write_text(LIMITS)
    (tmp_path / "test_a.py").write_text("def test_quick(): pass\n")
    (tmp_path / "test_b.py").write_text(SLOW)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.timings", "--rootdir", str(tmp_path), str(tmp_path)]
    return lambda *more: subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_fails_with_a_long_test_that_is_not_known(run: Callable[..., subprocess.CompletedProcess[str]]):
    done = run("-n", "2")
    assert done.returncode == 1, done.stdout
    assert "over 0.2 s (see tests/support/timings.py): test_b.py::test_new" in done.stdout
    assert "over 0.3 s (see tests/support/timings.py): test_b.py::test_longer_still" in done.stdout
    assert "(see tests/support/timings.py): test_b.py::test_known" not in done.stdout
    shown = done.stdout.partition("slowest files")[2].splitlines()
    assert [line.split()[-1] for line in shown[1:3]] == ["test_b.py", "test_a.py"]


def test_a_long_test_that_is_known_fails_nothing(run: Callable[..., subprocess.CompletedProcess[str]]):
    done = run("-k", "known")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
