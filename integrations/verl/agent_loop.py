"""Agent-loop managers that tell the reward manager how large each sample's group is.

verl streams a finished rollout to a reward worker without saying whether it belongs to training or validation. Where
``rollout.n`` and ``rollout.val_kwargs.n`` differ, or prompts bring an ``__rollout_n__`` of their own, set::

    actor_rollout_ref:
      rollout:
        agent:
          agent_loop_manager_class: mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager

With the V0 trainer it is ``GroupAgentLoopManagerV0``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils import tensordict_utils
from verl.utils.ray_utils import auto_await

FIELD = "mrjudge_group_size"


def group_size(rollout: Any, validate: bool) -> int:
    """Completions per prompt, from verl's rollout config."""
    return int(rollout.val_kwargs.n if validate else rollout.n)


class GroupAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """V1: marks every prompt with its group's size."""

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch the prompts, marked."""
        validate = bool(tensordict_utils.get(prompts, "validate", False))
        sizes = tensordict_utils.get(prompts, "__rollout_n__", group_size(self.rollout_config, validate))
        own = np.broadcast_to(np.asarray(sizes, dtype=int), len(prompts))  # one for all, or one each
        tensordict_utils.assign_non_tensor_stack(prompts, FIELD, own.tolist())
        super().generate_sequences(prompts)


class GroupAgentLoopManagerV0(AgentLoopManager):  # type: ignore[misc]
    """V0: marks every row with its group's size."""

    @auto_await  # type: ignore[untyped-decorator]
    async def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Generate for the rows, marked."""
        size = group_size(self.rollout_config, bool(prompts.meta_info.get("validate", False)))
        prompts.non_tensor_batch[FIELD] = np.full(len(prompts), size)
        output: DataProto = await super().generate_sequences(prompts)
        return output
