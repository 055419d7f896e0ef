"""The folder of a training is of one run: gone on with, not trained twice, and not mixed with another."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import JudgeConfig
from recipes.common.config import read_config
from recipes.common.training_folder import ASIDE, SAVING, TrainingFolder
from recipes.judge.train_rl import RLRecipe
from recipes.judge.train_sft import SFTRecipe
from recipes.policy.train import PolicyRecipe
from tests.support import ROOT

CONFIGS = {
    "judge/sft_cpu": SFTRecipe,
    "judge/rl_cpu": RLRecipe,
    "policy/policy_cpu": PolicyRecipe,
    "policy/main_server": PolicyRecipe,
}


def recipe(config: str, out: Path, *changes: str) -> Any:
    settings = read_config(str(ROOT / "recipes" / f"{config}.yaml"), [f"training.output_dir={out}", *changes])
    return CONFIGS[config](**settings)


class Trainer:
    """Counts steps, and leaves checkpoints as transformers does; may be interrupted."""

    def __init__(self, folder: Path, zero: bool = True, last: int = 3) -> None:
        self.folder, self.zero, self.last = folder, zero, last
        self.args = SimpleNamespace(max_steps=3, num_train_epochs=1)
        self.begun_at: str | None = "never"

    def is_world_process_zero(self) -> bool:
        return self.zero

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.begun_at = resume_from_checkpoint and Path(resume_from_checkpoint).name
        for step in range(1, self.last + 1):
            checkpoint = self.folder / f"checkpoint-{step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": 3}))


def begun(out: Path, config: str = "judge/sft_cpu", *changes: str, finished: bool, last: int = 3) -> None:
    folder = TrainingFolder(recipe(config, out, *changes))
    folder.train(Trainer(out, last=last))
    if finished:
        folder.finish()


OTHER = [
    ("judge/sft_cpu", "training.learning_rate=1.0e-6", "training.learning_rate"),
    ("judge/sft_cpu", "training.max_steps=7", "training.max_steps"),
    ("judge/sft_cpu", "training.num_train_epochs=2", "training.num_train_epochs"),
    ("judge/sft_cpu", "training.seed=1", "training.seed"),
    ("judge/sft_cpu", "tasks.film_pairs.source=editorials", "tasks.film_pairs.source"),
    ("judge/sft_cpu", "tasks.film_alone=null", "tasks.film_alone"),
    ("judge/sft_cpu", "tasks.device={source: tweets}", "tasks.device"),  # a task may have any name
    ("judge/sft_cpu", "lora.r=4", "lora.r"),
    ("judge/sft_cpu", "lora=null", "lora"),
    ("judge/sft_cpu", "model=another", "model"),
    ("judge/sft_cpu", "max_text_tokens=100", "max_text_tokens"),
    ("judge/rl_cpu", "both_orders_bonus=0.0", "both_orders_bonus"),
    ("judge/rl_cpu", "adapter=runs/other", "adapter"),
    ("judge/rl_cpu", "training.save_steps=50", "training.save_steps"),  # the best of other checkpoints
    ("policy/policy_cpu", "judge.schedule=ring", "judge.schedule"),
    ("policy/policy_cpu", "prompts=more.jsonl", "prompts"),
]
SAME = [
    ("judge/sft_cpu", "training.logging_steps=1"),
    ("judge/sft_cpu", "training.report_to=tensorboard"),
    ("judge/sft_cpu", "training.save_total_limit=9"),
    ("judge/sft_cpu", "training.save_steps=7"),
    ("judge/sft_cpu", "training.run_name=mine"),
    ("judge/sft_cpu", "training.dataloader_num_workers=2"),
    ("judge/sft_cpu", "training.gradient_checkpointing=true"),
    ("judge/rl_cpu", "training.save_total_limit=9"),
    ("policy/policy_cpu", "judge.cache=replies.sqlite"),
    ("policy/policy_cpu", "judge.batch_size=4"),
    ("policy/main_server", "judge.base_url=http://127.0.0.1:9000/v1"),
    ("policy/main_server", "judge.deadline_s=60.0"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("config", "change", "named"), OTHER)
def test_a_run_of_other_settings_is_refused_and_what_differs_is_named(
    tmp_path: Path, config: str, change: str, named: str, finished: bool
):
    begun(tmp_path, config, finished=finished, last=3 if finished else 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(ConfigError, match=rf"changed: {named}\), .* name another training.output_dir, or remove"):
        TrainingFolder(recipe(config, tmp_path, change))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


@pytest.mark.parametrize(("config", "change"), SAME)
def test_what_is_logged_and_kept_and_where_a_judge_is_may_change(tmp_path: Path, config: str, change: str):
    begun(tmp_path, config, finished=False, last=1)
    folder = TrainingFolder(recipe(config, tmp_path, change))
    assert not folder.finished
    trainer = Trainer(tmp_path)
    folder.train(trainer)
    folder.finish()
    assert trainer.begun_at == "checkpoint-1"
    assert json.loads((tmp_path / "recipe.json").read_text()) == json.loads(
        recipe(config, tmp_path, change).model_dump_json()
    )
    assert TrainingFolder(recipe(config, tmp_path)).finished


@pytest.mark.parametrize(
    ("last", "finished", "expected", "epochs"),
    [
        (0, False, None, 1),
        (1, False, "checkpoint-1", 1),
        (2, False, "checkpoint-2", 1),
        (3, False, "checkpoint-3", 0),  # interrupted between the last step and the end: loaded, and not one step more
        (3, True, "never", 1),
    ],
)
def test_the_same_command_goes_on_from_where_the_run_is(
    tmp_path: Path, last: int, finished: bool, expected: str | None, epochs: int, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    begun(out, finished=finished, last=last)
    folder, trainer = TrainingFolder(recipe("judge/sft_cpu", out)), Trainer(out)
    assert ("it is finished: nothing is trained" in capsys.readouterr().out) == finished == folder.finished
    if not finished:
        folder.train(trainer)
    assert (trainer.begun_at, trainer.args.num_train_epochs) == (expected, epochs)


def test_settings_may_change_as_long_as_nothing_is_trained(tmp_path: Path):
    begun(tmp_path, finished=False, last=0)
    begun(tmp_path, "judge/sft_cpu", "training.seed=5", finished=True)
    assert json.loads((tmp_path / "recipe.json").read_text())["training"]["seed"] == 5
    assert not (tmp_path / "recipe.unfinished.json").exists()


def test_checkpoints_of_nobody_knows_which_settings_are_refused(tmp_path: Path):
    Trainer(tmp_path).train(None)
    with pytest.raises(ConfigError, match=r"checkpoints of a run whose settings are unknown .* name another"):
        TrainingFolder(recipe("judge/sft_cpu", tmp_path))
    (tmp_path / "recipe.unfinished.json").write_text('{"training": ')
    with pytest.raises(ConfigError, match=r"recipe.unfinished.json is no JSON"):
        TrainingFolder(recipe("judge/sft_cpu", tmp_path))


def test_the_first_rank_alone_writes_and_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    TrainingFolder(recipe("judge/sft_cpu", tmp_path)).train(Trainer(tmp_path, zero=False, last=0))
    assert list(tmp_path.iterdir()) == []
    begun(tmp_path, finished=True)
    monkeypatch.setenv("RANK", "1")
    assert TrainingFolder(recipe("judge/sft_cpu", tmp_path)).finished
    assert capsys.readouterr().out == ""


def test_settings_that_are_set_aside_exist_and_are_no_others():
    import trl

    trainers = {f.name for c in ("SFTConfig", "GRPOConfig", "RLOOConfig", "DPOConfig") for f in fields(getattr(trl, c))}
    assert trainers | {*JudgeConfig.model_fields, "log_dir", "logging_dir"} >= ASIDE | SAVING
    own = {name for kind in (SFTRecipe, RLRecipe, PolicyRecipe) for name in kind.model_fields}
    assert not own & (ASIDE | SAVING)
