"""The judge in verl: ``pkg://mrjudge_reward.integrations.verl`` with ``JudgeRewardManager``, and ``compute_score`` where
verl wants a function beside a reward model (see ``reward_manager``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reward_manager import JudgeRewardManager, compute_score

__all__ = ["JudgeRewardManager", "compute_score"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # not before it is asked for: verl imports ``without_trl`` of this package while it is imported
        from . import reward_manager

        return getattr(reward_manager, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
