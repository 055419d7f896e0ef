"""The job that most people come for, GRPO on 8 GPUs with a judge of 8B: its configs parse, and train on two CPU ranks."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrjudge_reward import JudgeConfig
from mrjudge_reward.cli import app
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.integrations.trl.distributed import check_timeout
from recipes.common.config import read_config
from recipes.policy.train import PolicyRecipe, rule_of
from tests.support import ROOT
from tests.support.judge_server import JudgeServer, longest_wins, prompt_text
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python, warm_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

POLICY = ROOT / "recipes" / "policy"
LAUNCH = POLICY / "accelerate" / "fsdp2.yaml"
MAIN = {"main_colocated": 8, "main_server": 6}
"""Configs, and the GPUs that train."""


def recipe_of(name: str) -> PolicyRecipe:
    return PolicyRecipe(**read_config(str(POLICY / f"{name}.yaml")))


def commands(name: str) -> list[list[str]]:
    """The commands in the comment on top of a config."""
    lines = (POLICY / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line.removeprefix("#") for line in lines if line.startswith("#")).replace("\\\n", " ")
    return [shlex.split(line) for line in comment.splitlines() if line.startswith("   ")]


@pytest.mark.parametrize("name", MAIN)
def test_the_trainer_and_the_judge_take_the_settings(name: str) -> None:
    from trl import GRPOConfig

    recipe = recipe_of(name)
    taken = GRPOConfig(**recipe.training | {"bf16": False, "use_cpu": True})
    rows = taken.per_device_train_batch_size * taken.gradient_accumulation_steps
    assert rows % taken.num_generations == 0, "no group straddles ranks"
    assert rows * MAIN[name] == {"main_colocated": 256, "main_server": 192}[name], "as the comment says"
    assert taken.vllm_max_model_length > taken.max_completion_length
    assert type(taken.learning_rate) is float
    assert isinstance(recipe.judge, dict)
    judge = JudgeConfig(**recipe.judge)
    assert judge.model == "Qwen/Qwen3-8B"
    reward = JudgeReward(judge, num_generations=taken.num_generations, **recipe.reward)
    assert (reward.reader.reference_column, reward.reader.rubric_column) == ("reference", "rubric")
    (rule,) = map(rule_of, recipe.rules)
    assert rule(["It is 42."], answer=["42"]) == [1.0]
    check_timeout(trainer_of(taken), judge, MAIN[name])
    assert judge.deadline_s * (1 + judge.retries) + judge.outage_wait_s < taken.ddp_timeout


def trainer_of(taken: Any) -> Any:
    return type("Trainer", (), {"args": taken})


@pytest.mark.parametrize("name", MAIN)
def test_accelerate_takes_the_command_and_its_file(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    found = [words for words in commands(name) if "accelerate" in words]
    assert len(found) == 1
    words = found[0][found[0].index("launch") + 1 :]
    parsed = launch_command_parser().parse_args(words)
    assert (ROOT / parsed.config_file) == LAUNCH
    assert parsed.module
    assert [parsed.training_script, *parsed.training_script_args] == [
        "recipes.policy.train", f"recipes/policy/{name}.yaml"
    ]  # fmt: skip
    environment = launched_by(words)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert (parsed.num_processes or 8) == MAIN[name]
    visible = [word for word in found[0] if word.startswith("CUDA_VISIBLE_DEVICES=")]
    assert all(len(word.split(",")) == MAIN[name] for word in visible)


def launched_by(words: list[str]) -> Mapping[str, str]:
    """What ``accelerate launch`` puts into the environment of a run."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    made = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in made.items() if name.startswith(("FSDP_", "ACCELERATE_"))}


def test_both_ways_differ_in_where_the_judge_is_alone() -> None:
    colocated, server = (recipe_of(name).model_dump() for name in MAIN)
    placed = {
        "engine", "colocated", "gpu_memory_utilization", "context_tokens", "base_url", "max_concurrency",
    }  # fmt: skip
    for recipe in (colocated, server):
        recipe["judge"] = {name: value for name, value in recipe["judge"].items() if name not in placed}
    assert colocated == server


def test_the_page_counts_memory_with_the_settings_of_the_config() -> None:
    page = (ROOT / "docs" / "main_job.md").read_text(encoding="utf-8")
    recipe = recipe_of("main_colocated")
    assert isinstance(recipe.judge, dict)
    judge = JudgeConfig(**recipe.judge)
    assert f"share={judge.gpu_memory_utilization}, cache_tokens={judge.context_tokens}" in page
    length = recipe.training["vllm_max_model_length"]
    assert f"share={recipe.training['vllm_gpu_memory_utilization']}, cache_tokens={length}" in page


def test_the_doctor_passes_on_the_served_judge(tmp_path: Path) -> None:
    judge = recipe_of("main_server").judge
    assert isinstance(judge, dict)
    with JudgeServer(longest_wins) as server:
        (tmp_path / "judge.yaml").write_text(json.dumps(judge | {"base_url": server.base_url}), encoding="utf-8")
        done = CliRunner().invoke(app, ["doctor", "-c", str(tmp_path / "judge.yaml")])
    assert done.exit_code == 0, done.output


ROWS = [
    {"prompt": f"{number} + {number} =", "reference": [str(2 * number), "an even number"], "rubric": "Be brief.",
     "answer": 2 * number if number % 2 else None}
    for number in range(40)
]  # fmt: skip


@pytest.mark.parametrize("name", MAIN)
def test_two_ranks_train_under_fsdp_on_tiny_models(name: str, smol_tokenizer: Any, tmp_path: Path) -> None:
    import torch
    import transformers

    tiny = small_text_model(smol_tokenizer, tmp_path / "tiny")
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    words = ["--config_file", str(LAUNCH), "--num_processes", "2", "--mixed_precision", "no", "a_script"]
    with JudgeServer(longest_wins) as server:
        judge = {
            "main_colocated": [f"judge={{model: {tiny}, format: choice, verdict: logprobs, min_label_mass: 0.0}}"],
            "main_server": [f"judge.base_url={server.base_url}"],
        }[name]
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                   "-m", "tests.support.fsdp_on_cpu", "recipes.policy.train", POLICY / f"{name}.yaml"]  # fmt: skip
        for override in (
            f"model={tiny}", f"prompts={prompts}", f"training.output_dir={out}", *judge, "training.max_steps=2",
            "training.use_cpu=true", "training.bf16=false", "training.gradient_checkpointing=false",
            "training.use_vllm=false", "training.gradient_accumulation_steps=1", "training.max_completion_length=6",
            "training.save_steps=50", "training.dataloader_pin_memory=false",
        ):  # fmt: skip
            command += ["--set", override]
        ranks = {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm_python()}
        done = run_python(*command, env=os.environ | ranks | launched_by(words))
    assert done.returncode == 0, done.stderr[-4000:]
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        told = step["metrics"]
        assert told["rewards/judge/std"] > 0
        assert told["judge/failed_rate"] == 0
        assert told["rewards/number/mean"] in (None, 0.0), "no random model adds"
        assert told["grad_norm"] > 0
    if name == "main_server":
        shown = [prompt_text(request) for request in server.requests]
        asked = [text for text in shown if "Reference 1 of 2" in text and "Be brief." in text]
        assert len(asked) >= 2 * 2 * 8
    trained = transformers.AutoModelForCausalLM.from_pretrained(out)  # saved whole by the first rank
    before = dict(transformers.AutoModelForCausalLM.from_pretrained(tiny).named_parameters())
    moved = [not torch.equal(weights, before[name]) for name, weights in trained.named_parameters()]
    assert all(weights.any() for weights in trained.parameters())
    assert any(moved)
