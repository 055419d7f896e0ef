"""The verl recipes for GPUs: verl's own loader and validation take them, and the doctor finds no fault."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from mrjudge_reward.integrations.verl.doctor.checks import examine_verl
from mrjudge_reward.integrations.verl.doctor.versions import WITHOUT_TRL
from mrjudge_reward.integrations.verl.settings import VerlSettings, is_colocated, served_judge
from tests.support import ROOT

RECIPES = ROOT / "recipes" / "verl"
CONFIGS = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "judge_rl")  # that one trains the judge


@pytest.fixture
def server() -> Iterator[Any]:
    from tests.support.judge_server import JudgeServer

    with JudgeServer() as running:
        yield running


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(RECIPES), version_base=None):
        return compose(name, overrides=list(overrides))


def test_there_is_a_recipe_for_each_way_to_place_the_judge() -> None:
    assert CONFIGS == ["grpo_colocated", "grpo_vision", "ppo_standalone"]
    plain = {name: OmegaConf.to_container(composed(name), resolve=True) for name in CONFIGS}
    ways = {name: (is_colocated(config), served_judge(config, "router") is not None) for name, config in plain.items()}  # type: ignore[arg-type]
    assert ways == {"grpo_colocated": (True, True), "grpo_vision": (False, False), "ppo_standalone": (False, True)}


@pytest.mark.parametrize("name", CONFIGS)
def test_verl_takes_the_config(name: str, smol_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = composed(name, f"critic.model.path={smol_path}")  # a critic's config reads its model's, which is not here
    critic = need_critic(config)
    assert critic == (name == "ppo_standalone")
    validate_config(config, need_reference_policy(config), critic)
    assert "checks passed" in capsys.readouterr().out
    parts = ["algorithm", "actor_rollout_ref.actor", "actor_rollout_ref.rollout"]
    parts += ["reward.reward_model.rollout"] if config.reward.reward_model.enable else []
    parts += ["critic"] if critic else []
    for part in parts:
        assert omega_conf_to_dataclass(OmegaConf.select(config, part)) is not None


@pytest.mark.parametrize("name", CONFIGS)
def test_the_doctor_finds_no_fault(name: str, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRJUDGE_BASE_URL", server.base_url)
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", WITHOUT_TRL)  # as launch.sh does
    checks = examine_verl(str(RECIPES / f"{name}.yaml"))
    faults = [check for check in checks if check.status == "failed"]
    assert faults == []
    assert bool(server.requests) == (name == "grpo_vision")
    versions = {"Python", "verl", "ray", "torch", "transformers", "tensordict", "numpy", "vllm"}
    noted = {check.name for check in checks if check.status == "note"} - versions
    # A model that verl serves cannot be asked before the run; the server of this test serves another model.
    assert noted == ({"server"} if name == "grpo_vision" else {"judge"})


def test_the_colocated_recipe_judges_by_a_server_with_the_overrides_in_its_comment(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", WITHOUT_TRL)
    path = RECIPES / "grpo_colocated.yaml"
    comment = "".join(line.removeprefix("#") for line in path.read_text("utf-8").splitlines(True) if line[0] == "#")
    (command,) = (line for line in comment.replace("\\\n", "").splitlines() if "enable=false" in line)
    overrides = command.split("grpo_colocated.yaml")[1].replace("http://127.0.0.1:8000/v1", server.base_url).split()
    config: Any = OmegaConf.to_container(composed("grpo_colocated", *overrides), resolve=True)
    assert not is_colocated(config)
    assert served_judge(config, "router") is None
    rows = config["data"]["train_batch_size"] * config["actor_rollout_ref"]["rollout"]["n"]
    assert rows % config["trainer"]["n_gpus_per_node"] == 0
    faults = [check for check in examine_verl(str(path), overrides) if check.status == "failed"]
    assert faults == []
    assert server.requests


def test_the_colocated_recipe_shows_references_and_mixes_a_rule_for_some_sources() -> None:
    settings = VerlSettings.of(OmegaConf.to_container(composed("grpo_colocated"), resolve=True))  # type: ignore[arg-type]
    assert (settings.reference_field, settings.rubric_field) == ("extra_info.reference", "extra_info.rubric")
    assert [settings.weights(source) for source in ("maths", "essays")] == [(1.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_judge_of_the_recipe_compares_or_grades_for_a_critic_in_a_known_context(name: str) -> None:
    config: Any = OmegaConf.to_container(composed(name), resolve=True)
    settings = VerlSettings.of(config)
    judge = settings.judge_config(served_judge(config, "router:1"))
    assert judge.base_url
    graded = name == "ppo_standalone"  # a critic learns nothing of comparisons
    assert (judge.judge_format.max_slots > 1, judge.judge_rating.neutral is None) == (not graded, graded)
    assert (settings.group_size or 0) >= 4
    assert judge.context_tokens
    assert judge.deadline_s < settings.deadline_s or is_colocated(config)


def test_every_recipe_has_its_row_in_the_readme() -> None:
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    for name in CONFIGS:
        assert f"`{name}.yaml`" in readme
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"recipes/verl/{name}.yaml" in text  # the command


# -- launch.sh --------------------------------------------------------------------------------------------------------


def launched(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run launch.sh with the real doctor and a ``python`` that only says what it was to run."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "RUNS $*"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    path = os.pathsep.join((str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        ["bash", str(RECIPES / "launch.sh"), *arguments],
        # An importable module in this variable makes the doctor's word on TRL a note.
        env={**os.environ, "PATH": path, "VERL_USE_EXTERNAL_MODULES": "colorsys", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_launch_starts_verl_with_the_config_and_the_overrides_after_the_doctor_agreed(tmp_path: Path) -> None:
    result = launched(tmp_path, str(RECIPES / "grpo_colocated.yaml"), "trainer.total_epochs=2", "+mrjudge.settle_s=1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The verl config works." in result.stdout
    command = f"-m verl.trainer.main_ppo --config-path {RECIPES} --config-name grpo_colocated"
    assert f"RUNS {command} trainer.total_epochs=2 +mrjudge.settle_s=1\n" in result.stdout


def test_launch_starts_nothing_where_a_check_failed(tmp_path: Path) -> None:
    result = launched(tmp_path, str(RECIPES / "grpo_colocated.yaml"), "actor_rollout_ref.rollout.n=1")
    assert result.returncode == 1
    assert "RUNS" not in result.stdout
    assert "nothing to be compared" in " ".join(result.stdout.split())


def test_launch_without_a_config_says_how_it_is_used(tmp_path: Path) -> None:
    result = launched(tmp_path)
    assert result.returncode != 0
    assert "usage: launch.sh CONFIG.yaml" in result.stderr


@pytest.mark.filterwarnings("ignore:.* engine is not available:UserWarning")  # those that nobody asked for
@pytest.mark.parametrize("name", CONFIGS)
def test_main_ppo_reads_the_config_as_the_command_line_names_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["main_ppo", "--config-path", str(RECIPES), "--config-name", name, "--cfg", "job"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_module("verl.trainer.main_ppo", run_name="__main__")  # as python -m does
    printed = capsys.readouterr().out
    shown = OmegaConf.create(printed[printed.index("actor_rollout_ref:") :])
    assert shown.reward.reward_manager.name == "JudgeRewardManager"
    assert "judge" in shown.mrjudge
