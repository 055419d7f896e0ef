"""GRPO of a policy that sees, and a judge that sees the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.engines.local.engine import TransformersEngine
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig
from tests.support.trl_setup import common, logged
from tests.support.vision_setup import llava, picture


@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers", "ignore::DeprecationWarning:torch")
def test_a_step_of_grpo_with_an_image_column_shows_each_group_its_image(smol_path: str, tmp_path: Path):
    model, processor = llava(smol_path)
    judge_model, judge_processor = llava(smol_path)
    engine = TransformersEngine(judge_model, tokenizer=judge_processor)
    config = JudgeConfig(model="llava", schedule="ring", verdict="read", min_label_mass=0.0)
    reward = JudgeReward(config.build(engine), num_generations=2, name="judge")
    colours = ["red", "blue", "green", "yellow"]
    data = Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"Which colour is number {n}?"}] for n in range(4)],
            "image": [picture(colour) for colour in colours],
        }
    )
    settings: dict[str, Any] = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6}
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=reward,
        train_dataset=data,
        args=GRPOConfig(**(common(tmp_path, **settings) | {"max_steps": 1})),
    )
    trainer.train()
    assert logged(trainer, "judge/failed_rate") == [0.0]
    assert logged(trainer, "rewards/judge/std")[0] > 0
    assert engine._images is not None
    assert engine._images.calls == 2, "one image for each of the two groups"
    shown = [turn.images for judgement in reward.last_judgements for turn in judgement.group.prompt]
    assert [len(images) for images in shown] == [1, 1]
