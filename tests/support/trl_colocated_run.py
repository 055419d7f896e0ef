"""Run by test_trl_colocated.py and test_gpu.py: real GRPO beside TRL's colocated vLLM, a colocated judge as the reward.

Usage: python -m tests.support.trl_colocated_run POLICY_DIR OUT.json DEVICE

Two steps, and one whose reward raises. TRL's own engine runs in this process; on a CPU see ``vllm_on_cpu``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from trl import GRPOConfig, GRPOTrainer

from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.judge import JudgeConfig

from .trl_setup import grpo_like, logged, prompt_dataset
from .vllm_on_cpu import let_trl_train_on_a_cpu


class WritingReward(JudgeReward):
    """Writes down the rows of each call and their rewards."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any = None, **rest: Any) -> Any:
        rewards = super().__call__(prompts, completions, completion_ids, **rest)
        step = rest["trainer_state"].global_step
        self.calls.append({"prompts": prompts, "completions": completions, "completion_ids": completion_ids,
                           "rewards": rewards, "step": step})  # fmt: skip
        return rewards


class Watch:
    """Asks the judge's server, not the engine that owns it, whether it sleeps; keeps the answers in order.

    Attributes:
        seen: when, and what the server said.
        used: bytes in use on the GPU at these moments; 0 on a CPU.
        breaks: whether judging is to raise.
    """

    def __init__(self, server: Any) -> None:
        self.server = server
        self.seen: list[tuple[str, str]] = []
        self.used: list[int] = []
        self.breaks = False

    def look(self, when: str) -> None:
        asleep = self.server._child.ask("GET", "/is_sleeping")["is_sleeping"]
        self.seen.append((when, "asleep" if asleep else "awake"))
        free, total = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
        self.used.append(total - free)

    def before(self, owner: Any, verb: str, when: str) -> None:
        """Look each time before ``owner.verb`` runs."""
        run: Callable[..., Any] = getattr(owner, verb)

        def watched(*args: Any, **more: Any) -> Any:
            self.look(when)
            if self.breaks and when == "judging":
                raise RuntimeError("planted in the middle of a judgement")
            return run(*args, **more)

        setattr(owner, verb, watched)

    def all(self) -> dict[str, Any]:
        return {"seen": list(self.seen), "used": list(self.used)}


class StepEnds(transformers.TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.watch.look("step done")


def main(policy_dir: str, out: Path, device: str) -> None:
    transformers.utils.logging.disable_progress_bar()
    on_cpu = device == "cpu"
    if on_cpu:
        let_trl_train_on_a_cpu()
    config = JudgeConfig(
        engine="vllm_server", colocated=True, dtype="float32" if on_cpu else None, context_tokens=1024,
        engine_kwargs={"enforce_eager": True} | ({"block_size": 32} if on_cpu else {}),
    )  # fmt: skip
    reward = WritingReward(config, num_generations=2, name="judge")
    watch = Watch(reward.judge.engine.engine)  # type: ignore[attr-defined]
    watch.look("judge built")
    watch.before(watch.server, "_call", "judging")
    trainer = GRPOTrainer(
        model=policy_dir,
        reward_funcs=reward,
        train_dataset=prompt_dataset(),
        callbacks=[StepEnds(watch)],
        args=GRPOConfig(
            **grpo_like(out.parent, use_vllm=True, vllm_mode="colocate", vllm_enable_sleep_mode=not on_cpu)
            | {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 12,
               "learning_rate": 1e-3, "use_cpu": on_cpu, "bf16": not on_cpu, "vllm_max_model_length": 256,
               "vllm_gpu_memory_utilization": 0.3, "model_init_kwargs": {"dtype": "float32"}}
        ),
    )  # fmt: skip
    watch.look("trainer built")
    watch.before(trainer.vllm_generation.llm, "generate", "policy generates")
    watch.before(trainer, "compute_loss", "policy trains")
    trainer.train()
    written: dict[str, Any] = {
        "server": watch.server.pid,
        "calls": list(reward.calls),
        "trainer_rewards": list(trainer._logs["rewards"]["judge"]),
        "failed": logged(trainer, "judge/failed_rate"),
        "gradients": logged(trainer, "grad_norm"),
        "sampled_against_trained": logged(trainer, "sampling/sampling_logp_difference/max"),
        **watch.all(),
    }
    alike = JudgeReward(reward.judge, num_generations=2, on_abstain="none")  # its calls count from the beginning
    written["again"] = [
        alike(**{name: call[name] for name in ("prompts", "completions", "completion_ids")},
              trainer_state=SimpleNamespace(global_step=call["step"]))
        for call in written["calls"]
    ]  # fmt: skip

    watch.seen, watch.used, watch.breaks = [], [], True
    written["error"] = ""
    try:
        trainer.train()
    except RuntimeError as error:
        written["error"] = str(error)
    watch.look("after the error")
    written |= {f"{name}_with_error": values for name, values in watch.all().items()}
    out.write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
