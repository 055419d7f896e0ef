"""Run under torchrun by test_two_ranks.py: real GRPO under FSDP whose groups straddle ranks, everything written down.

Usage: torchrun --nproc_per_node 2 -m tests.support.two_ranks MODEL_DIR OUT_DIR ROWS_PER_RANK...

The first training asks transformers for zeros on the second rank (``FSDP_CPU_RAM_EFFICIENT_LOADING``), the others do not.

What is not training goes on in the same processes, which take their time to start: see two_ranks_failing.py and
two_ranks_watched.py. Each part writes into a folder of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from torch.distributed.tensor import DTensor
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig

from . import fsdp_on_cpu, two_ranks_failing, two_ranks_watched
from .trl_setup import grpo_like, prompt_dataset, tiny_policy

SAME = ["It was awful.", "It lasted two hours.", "I loved every minute."]
"""A group that each rank judges by itself."""
EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


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


def train(judge: JudgeConfig, tokenizer: Any, out: Path, rows: int) -> None:
    reward = WritingReward(judge, num_generations=4, name="judge")
    reward.calls = []
    trainer = GRPOTrainer(
        model=tiny_policy(tokenizer),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        args=GRPOConfig(**grpo_like(out, ddp_timeout=120) | {"per_device_train_batch_size": rows}),
    )
    trainer.train()
    written = {
        "calls": reward.calls,
        "trainer_rewards": list(trainer._logs["rewards"]["judge"]),
        "metrics": [entry["judge/calls"] for entry in trainer.state.log_history if "judge/calls" in entry],
        "weights": reward.judge.engine.weights_checksum,
        "sharded": all(isinstance(parameter, DTensor) for parameter in trainer.model_wrapped.parameters()),
        "same_group": reward.judge.rank("How was it?", SAME).scores_G,
    }
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(written), encoding="utf-8")


def is_zeroed(model_dir: str) -> bool:
    """Whether transformers leaves zeros for weights here, as it does for a launcher that sends them later."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    return not any(parameter.any() for parameter in model.parameters())


def main(model_dir: str, out: Path, *each: int) -> None:
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    judge = JudgeConfig(
        model=model_dir, format="sentiment", verdict="read"
    )  # built on first use, when ranks know of each other
    fsdp_on_cpu.allow()
    for number, rows in enumerate(each):
        os.environ[EFFICIENT] = str(number == 0)
        train(judge, tokenizer, out / str(rows), rows)
    os.environ[EFFICIENT] = "true"
    (out / f"zeroed.rank{dist.get_rank()}").write_text(str(is_zeroed(model_dir)))
    two_ranks_failing.main(out / "failing")
    two_ranks_watched.main(out / "watched")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
