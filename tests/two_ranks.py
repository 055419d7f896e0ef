"""Run under torchrun by test_trl_two_ranks.py: real GRPO whose groups straddle ranks, everything written down.

Usage: torchrun --nproc_per_node 2 -m tests.two_ranks MODEL_DIR OUT_DIR ROWS_PER_RANK
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.config import JudgeConfig
from mrjudge_reward.integrations.trl_reward import JudgeReward

from .trl_support import grpo_like, prompt_dataset, tiny_policy


class WritingReward(JudgeReward):
    """Writes down the rows of each call, their rewards, and which groups this rank judged."""

    calls: list[dict[str, Any]]

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any = None, **rest: Any) -> Any:
        judged: list[str] = []
        judge = self.judge.judge

        def counting(groups: Any) -> Any:
            judged.extend(group.key for group in groups)
            return judge(groups)

        self.judge.judge = counting  # type: ignore[method-assign]
        try:
            rewards = super().__call__(prompts, completions, completion_ids, **rest)
        finally:
            self.judge.judge = judge  # type: ignore[method-assign]
        self.calls.append(
            {
                "prompts": prompts, "completions": completions, "completion_ids": completion_ids, "rewards": rewards,
                "judged": judged, "step": rest["trainer_state"].global_step, "calls": self.last_stats.calls,
            }
        )  # fmt: skip
        return rewards


def main(model_dir: str, out: str, rows: int) -> None:
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    reward = WritingReward(JudgeConfig(model=model_dir, format="sentiment", verdict="read"), num_generations=4)
    reward.calls = []
    trainer = GRPOTrainer(
        model=tiny_policy(tokenizer),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(Path(out)) | {"per_device_train_batch_size": rows}),
    )
    trainer.train()
    rank = dist.get_rank() if dist.is_initialized() else 0
    written = {
        "calls": reward.calls,
        "trainer_rewards": list(trainer._logs["rewards"]["judge"]),
        "metrics": [entry["judge/calls"] for entry in trainer.state.log_history if "judge/calls" in entry],
    }
    Path(out, f"rank{rank}.json").write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if dist.is_initialized():
        dist.destroy_process_group()
