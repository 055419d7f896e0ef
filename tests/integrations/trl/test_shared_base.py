"""A judge on the policy's own base in real GRPO runs: the same curves as with a judge on a model of its own."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.engines.embedded import embedded_adapter_path
from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.integrations.trl import JudgeReward, SharedBaseJudgeReward
from mrjudge_reward.judge import JudgeConfig
from tests.engines.local.test_shared_base import load, save_adapter, state
from tests.support.trl_setup import grpo_like, logged, prompt_dataset, tiny_policy

SENTIMENT = JudgeConfig(format="sentiment", verdict="read", min_label_mass=0.0)
"""A random model finds every label improbable."""


@pytest.fixture(scope="module")
def tiny_path(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_policy(smol_tokenizer).save_pretrained(folder)
    smol_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny_adapter(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(load(tiny_path), tmp_path_factory.mktemp("adapter"))


def grpo(path: str, reward: JudgeReward, tokenizer: Any, out: Path, **more: Any) -> Any:
    transformers.set_seed(3)
    trainer = GRPOTrainer(
        model=load(path),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        args=GRPOConfig(**grpo_like(out, beta=0.1) | {"max_steps": 3, "learning_rate": 1e-3, **more}),
    )
    if isinstance(reward, SharedBaseJudgeReward):
        reward.attach(trainer)
    return trainer


class Watched(SharedBaseJudgeReward):
    """Looks at the trainer before and after each scoring."""

    trainer: Any = None
    looked = 0

    def __call__(self, *args: Any, **more: Any) -> Any:
        before = self.look()
        rewards = super().__call__(*args, **more)
        after = self.look()
        for part in ("weights", "optimiser"):
            ones, others = before.pop(part), after.pop(part)
            assert ones.keys() == others.keys()
            assert all(torch.equal(value, others[name]) for name, value in ones.items())
        assert torch.equal(before.pop("logits"), after.pop("logits"))
        assert before == after
        self.looked += 1
        return rewards

    def look(self) -> dict[str, Any]:
        moments = self.trainer.optimizer.state_dict()["state"]
        optimiser = {(i, k): torch.as_tensor(v).clone() for i, entry in moments.items() for k, v in entry.items()}
        return {**state(self.trainer.model), "optimiser": optimiser}


def adapters_weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if "lora" in name}


@pytest.mark.parametrize("size", ["tiny", pytest.param("smol", marks=pytest.mark.scale)])
def test_a_run_is_the_same_as_with_a_judge_on_a_model_of_its_own(
    size: str, tiny_path: str, smol_path: str, tiny_adapter: str, smol_tokenizer: Any, tmp_path: Path
):
    path = tiny_path if size == "tiny" else smol_path
    adapter = tiny_adapter if size == "tiny" else save_adapter(load(path), tmp_path / "adapter", r=16)
    shared = Watched(SENTIMENT, adapter=adapter, num_generations=4, name="judge")
    first = grpo(path, shared, smol_tokenizer, tmp_path / "shared")
    shared.trainer = first
    first.train()
    held = len(first.optimizer.state_dict()["state"])
    assert shared.looked == 3
    assert held == len(adapters_weights(first)), "the optimiser holds the policy's adapter alone"

    separate = TransformersEngine(path, adapter=adapter, device="cpu", dtype="float32")
    reward = JudgeReward(SENTIMENT.build(separate), num_generations=4, name="judge")
    second = grpo(path, reward, smol_tokenizer, tmp_path / "separate")
    second.train()
    for metric in ("loss", "reward", "rewards/judge/std", "kl", "grad_norm", "entropy", "judge/calls"):
        assert logged(first, metric) == pytest.approx(logged(second, metric), rel=1e-3, abs=1e-5), metric
        assert len(logged(first, metric)) == 3
    assert all(spread > 0 for spread in logged(first, "rewards/judge/std"))
    others = adapters_weights(second)
    assert adapters_weights(first).keys() == others.keys()
    moved = 0.0
    for name, weight in adapters_weights(first).items():
        assert torch.allclose(weight, others[name], atol=1e-5), name
        moved += float(weight.abs().sum()) if "lora_B" in name else 0.0  # B starts at zero
    assert moved > 0
    gap = max(float((weight - others[name]).abs().max()) for name, weight in adapters_weights(first).items())
    print(f"{size}: losses {logged(first, 'loss')}, furthest weight {gap:.1e} of {moved:.1f} moved")


def test_checkpoints_hold_the_policy_alone_and_a_run_resumes_from_them(
    tiny_path: str, tiny_adapter: str, smol_tokenizer: Any, tmp_path: Path
):
    """A folder of a second adapter in a checkpoint would make the trainer resume without the policy's weights."""

    def trainer(out: str) -> Any:
        reward = SharedBaseJudgeReward(SENTIMENT, adapter=tiny_adapter, num_generations=4, name="judge")
        return grpo(tiny_path, reward, smol_tokenizer, tmp_path / out, save_strategy="steps", save_steps=2)

    whole = trainer("whole")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not [path for path in checkpoint.iterdir() if path.is_dir()]
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 3
    assert logged(whole, "loss")[-1] != 0
    assert logged(resumed, "loss")[-1] == pytest.approx(logged(whole, "loss")[-1], rel=1e-3, abs=1e-5)
    for name, weight in adapters_weights(whole).items():
        assert torch.allclose(weight, adapters_weights(resumed)[name], atol=1e-5), name


def test_gradient_checkpointing_goes_on(tiny_path: str, tiny_adapter: str, smol_tokenizer: Any, tmp_path: Path):
    reward = SharedBaseJudgeReward(SENTIMENT, adapter=tiny_adapter, num_generations=4, name="judge")
    trainer = grpo(tiny_path, reward, smol_tokenizer, tmp_path, gradient_checkpointing=True, max_steps=2)
    trainer.train()
    assert logged(trainer, "judge/failed_rate") == [0.0, 0.0]
    assert trainer.model.is_gradient_checkpointing


def test_the_base_itself_may_judge_and_its_tokenizer_may_be_the_trainers(smol_tokenizer: Any, tmp_path: Path):
    reward = SharedBaseJudgeReward(SENTIMENT, num_generations=4)
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),  # made from a config: it has no name
        processing_class=smol_tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=GRPOConfig(**grpo_like(tmp_path)),
    )
    reward.attach(trainer)
    trainer.train()
    assert reward.last_stats.comparisons > 0
    assert not reward.last_stats.failed


def test_attaching(tiny_path: str, tiny_adapter: str, smol_tokenizer: Any, tmp_path: Path):
    reward = SharedBaseJudgeReward(adapter=tiny_adapter, num_generations=4)
    with pytest.raises(ConfigError, match=r"reward.attach\(trainer\) before training"):
        reward(["p"] * 4, ["a", "b", "c", "d"])
    trainer = grpo(tiny_path, reward, smol_tokenizer, tmp_path)
    judge = reward.judge
    assert type(judge.format).__name__ == "Choice", "the base judges as any model, not as the embedded one"
    assert reward.attach(trainer).judge is judge
    for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        with pytest.raises(ConfigError, match="attach"):
            _ = twin.judge
        assert twin.attach(trainer).judge.engine.identity == judge.engine.identity


def test_a_trainer_without_a_peft_model_is_refused_before_training(smol_tokenizer: Any, tmp_path: Path):
    reward = SharedBaseJudgeReward(SENTIMENT, num_generations=4)
    trainer = GRPOTrainer(
        model=tiny_policy(smol_tokenizer),
        processing_class=smol_tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(tmp_path)),
    )
    with pytest.raises(EngineError, match="peft_config"):
        reward.attach(trainer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "m", "base_url": "http://127.0.0.1:1/v1"}, "base_url does not go"),
        ({"device": "cpu"}, "device does not go"),
        ({"dtype": "float32"}, "dtype does not go"),
        ({"adapter": "other"}, "two adapters"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        SharedBaseJudgeReward(JudgeConfig(**settings), adapter="mine", num_generations=4)


@pytest.mark.parametrize("given", [{"judge": JudgeConfig(adapter="embedded")}, {"adapter": "embedded"}])
def test_the_packages_judge_is_found_and_read_as_it_was_trained(
    given: dict[str, Any], smol_path: str, smol_tokenizer: Any, tmp_path: Path
):
    reward = SharedBaseJudgeReward(**given, num_generations=4)
    assert reward.adapter == str(embedded_adapter_path())
    judge = grpo(smol_path, reward, smol_tokenizer, tmp_path).reward_funcs[0].judge
    assert (judge.settings.verdict_mode, judge.format.template) == ("logprobs", "glance")


def test_a_ready_judge_is_refused():
    with pytest.raises(ConfigError, match="give a JudgeConfig"):
        SharedBaseJudgeReward(SENTIMENT.build(ScriptedEngine(lambda _: "")), num_generations=4)  # type: ignore[arg-type]
