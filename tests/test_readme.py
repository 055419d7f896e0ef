"""Every example of the README is run as it stands, but for the address of the judge server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mrjudge_reward import Choice, Judge, ScriptedEngine
from mrjudge_reward.integrations.verl.reward_manager import JudgeRewardManager
from mrjudge_reward.integrations.verl.settings import VerlSettings
from tests.support.judge_server import JudgeServer

from .support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

COMMANDS = [line for line in SHELL if re.match(r"mrjudge |echo |python ", line)]


def run_block(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_all_examples_are_covered_by_this_file() -> None:
    assert len(BLOCKS) == 5
    assert [line.split("|")[-1].split()[:3] for line in COMMANDS] == [
        ["mrjudge", "rank"],
        ["mrjudge", "doctor"],
        ["mrjudge", "doctor", "--verl"],
        ["python", "recipes/verl/cpu/run.py", "grpo"],  # in test_verl_training.py
        ["mrjudge", "report", "runs/readme"],
    ]


@pytest.mark.usefixtures("smol_path")
def test_the_first_session_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    run_block(BLOCKS[0])
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^# (\(.*\))$", BLOCKS[0], re.MULTILINE)
    assert printed[0] == promised[0]


def test_the_images_example_judges_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "one", "two", "frame-0", "frame-1", "frame-2")):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(f"{name}.png")
    engine = ScriptedEngine.by_utility(len)
    exec(compile(BLOCKS[3], "README.md", "exec"), {"judge": Judge(engine, Choice(), schedule="all_pairs")})
    shown = [sum(len(turn.images) for turn in request.messages) for request in engine.requests]
    assert shown == [1, 1, 2, 2, 3, 3, *[0] * 6]
    clip, molecules = (engine.requests[number].messages[-1].text for number in (4, -1))
    assert "At 1 s:\n(image 2)\nAt 2 s:\n(image 3)\nWhat does the ball do?" in clip
    assert r"F/C=C\F" in molecules or "[Na+].[Cl-]" in molecules


@pytest.mark.usefixtures("smol_path")
def test_the_training_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = run_block(BLOCKS[1])["trainer"]
    assert trainer.state.global_step == 2
    (reward,) = trainer.reward_funcs  # "judge" in a process of its own; a second reward in a process has another name
    assert any(f"{reward.__name__}/calls" in entry for entry in trainer.state.log_history)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run(COMMANDS[4], shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "readme" / "report.html").stat().st_size > 10_000


def test_the_canaries_of_the_example_are_the_defaults() -> None:
    from mrjudge_reward.monitoring.canaries import Canaries

    assert run_block(BLOCKS[4])["canaries"] == Canaries()


def test_the_server_example_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    with JudgeServer() as server:
        judge = run_block(BLOCKS[2].replace("http://127.0.0.1:8000/v1", server.base_url))["judge"]
        judge.close()
    assert capsys.readouterr().out.strip() == "1"


@pytest.mark.usefixtures("smol_path")
def test_the_shell_examples_work(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    rank, doctor, doctor_verl, _, _ = COMMANDS
    done = subprocess.run(rank, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["best"] == 1
    done = subprocess.run(
        doctor, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (export,) = [line.split("#")[0].removeprefix("export ").strip() for line in SHELL if line.startswith("export ")]
    variable, _, value = export.partition("=")
    done = subprocess.run(
        doctor_verl,
        shell=True,
        cwd=ROOT,
        env=environment | {variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_verl_section_is_what_the_adapter_reads() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    config = yaml.safe_load(block)
    assert VerlSettings(**config["mrjudge"]).judge == "judge.yaml"
    manager = config["reward"]["reward_manager"]
    assert f"pkg://{JudgeRewardManager.__module__}" == manager["module"]["path"]
    assert (manager["source"], manager["name"]) == ("importlib", JudgeRewardManager.__name__)


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / name).exists(), name
    for module in set(re.findall(r"`mrjudge_reward\.integrations\.(\w+)`", README)):
        assert (ROOT / "integrations" / f"{module}.py").exists(), module


def test_make_targets_that_the_docs_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    docs = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make (\w+)`?", docs)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
