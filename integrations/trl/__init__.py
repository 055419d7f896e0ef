"""The judge in TRL: a reward function for GRPO and RLOO, selecting rollouts, a judge on the policy's base, OnlineDPO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .reward import JudgeReward
from .rollout import SelectingRollout
from .shared_base import SharedBaseJudgeReward

if TYPE_CHECKING:
    from .async_grpo import judge_side_by_side
    from .online_dpo import JudgeOnlineDPOTrainer

__all__ = ["JudgeOnlineDPOTrainer", "JudgeReward", "SelectingRollout", "SharedBaseJudgeReward", "judge_side_by_side"]


def __getattr__(name: str) -> Any:
    if name == "JudgeOnlineDPOTrainer":  # trainers of TRL's; the others do without importing them
        from .online_dpo import JudgeOnlineDPOTrainer

        return JudgeOnlineDPOTrainer
    if name == "judge_side_by_side":
        from .async_grpo import judge_side_by_side

        return judge_side_by_side
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
