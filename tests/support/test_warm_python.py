"""A warm interpreter does with a script what a fresh one does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .warm_python import run_python, warm_python

SCRIPT = """
import os, sys
print(__name__, sys.argv, os.getcwd(), os.environ.get("SAID"), sys.path[0], sys.stdin.read())
print("an error", file=sys.stderr)
if sys.argv[1] == "import":
    print([sys.modules.get(name) is not None for name in ("torch", "trl", "vllm", "mrjudge_reward")])
if sys.argv[1] == "fail":
    raise ValueError("not this")
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
if sys.argv[1] == "sleep":
    print(os.getpid(), file=open("pid", "w"), flush=True)
    import time
    time.sleep(1000)
sys.exit({"three": 3, "words": "in words"}.get(sys.argv[1]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "script.py"
    path.parent.mkdir()
    path.write_text(SCRIPT)
    return path


@pytest.mark.parametrize("word", ["none", "three", "words", "fail", "killed"])
def test_a_script_finds_and_leaves_what_it_does_in_a_fresh_interpreter(script: Path, tmp_path: Path, word: str):
    more = {"input": "from outside", "cwd": tmp_path, "env": os.environ | {"SAID": "so"}}
    warm, fresh = (run_python(script, word, "2 3", python=python, **more) for python in (None, sys.executable))
    assert (warm.returncode, warm.stdout) == (fresh.returncode, fresh.stdout)
    assert fresh.stderr.splitlines()[-1:] == warm.stderr.splitlines()[-1:]


def test_only_packages_of_others_are_there_already(script: Path):
    done = run_python(script, "import", input="")
    assert done.stdout.splitlines()[-1] == "[True, True, False, False]", done.stderr
    seen = run_python("-c", "import sys; print('torch' in sys.modules)")
    assert seen.stdout == "False\n", "what is not a script is left to a fresh interpreter"


def test_a_script_dies_with_the_command_that_runs_it(script: Path, tmp_path: Path):
    command = subprocess.Popen([warm_python(), str(script), "sleep"], cwd=tmp_path, stdin=subprocess.DEVNULL)
    while not (pid := (tmp_path / "pid").read_text() if (tmp_path / "pid").exists() else ""):
        time.sleep(0.05)
    command.kill()
    assert command.wait() == -9
    while Path(f"/proc/{pid.strip()}").exists():  # or the time is out
        time.sleep(0.05)
