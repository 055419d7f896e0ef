"""Agent-loop managers that tell the reward manager what verl does not: how large a sample's group is, whether it is of a
validation, what its session did, and who will not come.

verl streams a finished rollout to a reward worker without saying whether it belongs to training or validation, and says
nothing of a rollout that raised or gave no answer. Where ``rollout.n`` and ``rollout.val_kwargs.n`` differ, prompts bring an
``__rollout_n__`` of their own, or rollouts may fail (tools, environments), set::

    actor_rollout_ref:
      rollout:
        agent:
          agent_loop_manager_class: mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager

Where the reward model shares the policy's devices, V1 passes a judge the prompt's messages and nothing else. The manager
then writes what is needed on the first of them, under the key ``mrjudge``, which chat templates do not look at: the group's
identity, its ``data_source``, and what ``reference_field``, ``rubric_field``, ``anchor_field`` and
``compute_score`` ask for.

Sessions of several turns need it too: their messages are carried to the reward, see ``transcripts``.

With the V0 trainer it is ``GroupAgentLoopManagerV0``; there a rollout that raises ends the run.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.utils import tensordict_utils
from verl.utils.ray_utils import auto_await

from .settings import ABSENT, CARRIED, COMPLETION, VALIDATION, VerlSettings, is_colocated
from .transcripts import TellingToolAgentLoop, told_of

logger = logging.getLogger(__name__)

FIELD = "mrjudge_group_size"


def group_size(rollout: Any, validate: bool) -> int:
    """Completions per prompt, from verl's rollout config."""
    return int(rollout.val_kwargs.n if validate else rollout.n)


def carried_fields(settings: VerlSettings) -> tuple[str, ...]:
    """Fields of a row that its reward may need."""
    paths = (settings.reference_field, settings.rubric_field, settings.anchor_field)
    named = [path.partition(".")[0] for path in paths if path is not None]
    rule = ["reward_model", "extra_info"] if settings.rule_weight else []
    return tuple(dict.fromkeys(("uid", "data_source", FIELD, VALIDATION, *named, *rule)))


class TellingWorker:
    """Tells a reward what each session did; the first base of a worker."""

    tokenizer: Any
    reward_loop_worker_handles: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _agent_loop_registry.update({name: telling(loop) for name, loop in _agent_loop_registry.items()})

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        final = outputs[-1]
        told = told_of(final, self.tokenizer)
        if told is not None:
            self._carry(told, final, kwargs)
        await super()._compute_score(outputs, kwargs=kwargs)  # type: ignore[misc]
        if self.reward_loop_worker_handles is not None:  # the reward is known: what it needed stays behind
            final.extra_fields.pop(COMPLETION, None)

    def _carry(self, told: dict[str, Any], output: Any, kwargs: dict[str, Any]) -> None:
        output.extra_fields[COMPLETION] = told


def telling(loop: Mapping[str, Any]) -> Mapping[str, Any]:
    """The agent loop that is told of in the registry, verl's tool agent in our edition."""
    stock = f"{ToolAgentLoop.__module__}.{ToolAgentLoop.__qualname__}"
    ours = f"{TellingToolAgentLoop.__module__}.{TellingToolAgentLoop.__qualname__}"
    return {**loop, "_target_": ours} if loop["_target_"] == stock else loop


class GroupAgentLoopWorkerV0(TellingWorker, AgentLoopWorker):  # type: ignore[misc]
    """V0: tells what each session did."""


class GroupAgentLoopWorker(TellingWorker, AgentLoopWorkerTQ.__ray_metadata__.modified_class):  # type: ignore[misc]
    """V1: tells what each session did, and says so where one will bring no sample to its group."""

    def _carry(self, told: dict[str, Any], output: Any, kwargs: dict[str, Any]) -> None:
        if self.reward_loop_worker_handles is not None:
            super()._carry(told, output, kwargs)
            return
        first, *others = kwargs["raw_prompt"]  # of all fields of a session verl passes this one
        kwargs["raw_prompt"] = [{**first, CARRIED: {**first.get(CARRIED, {}), COMPLETION: told}}, *others]

    async def _run_agent_loop(self, *args: Any, **session: Any) -> Any:
        try:
            return await super()._run_agent_loop(*args, **session)
        except BaseException:
            await self._absent(session)
            raise

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **session: Any) -> None:
        if isinstance(output, list) and not output:
            await self._absent(session)
        await super()._agent_loop_postprocess(output, validate, **session)

    async def _absent(self, session: dict[str, Any]) -> None:
        """Told to any reward worker, whose manager tells the judge; a failure here costs the siblings their deadline."""
        if self.reward_loop_worker_handles is None:  # judged in a batch, after all sessions
            return
        known = {
            name: session[name] for name in ("uid", "session_id", "attempt", "extra_info", FIELD) if name in session
        }
        fields = {name: np.empty(1, dtype=object) for name in known}
        for name, value in known.items():
            fields[name][0] = value
        row = DataProto(TensorDict({"absent": torch.ones(1, 1)}, batch_size=1), fields | {ABSENT: np.array([True])})
        try:
            await random.choice(self.reward_loop_worker_handles).compute_score.remote(row)
        except Exception as error:  # noqa: BLE001  the session's own error is what matters
            logger.warning("the judge could not be told that a session of %s failed: %s", session.get("uid"), error)


class GroupAgentLoopManager(AgentLoopManagerTQ):  # type: ignore[misc]
    """V1: marks every prompt with its group's size, and of a validation or not; its workers tell of failed sessions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(GroupAgentLoopWorker)
        plain: Any = OmegaConf.to_container(self.config, resolve=True)
        self.carried = carried_fields(VerlSettings.of(plain)) if is_colocated(plain) else ()

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Dispatch the prompts, marked."""
        validate = bool(tensordict_utils.get(prompts, "validate", False))
        sizes = tensordict_utils.get(prompts, "__rollout_n__", group_size(self.rollout_config, validate))
        own = np.broadcast_to(np.asarray(sizes, dtype=int), len(prompts))  # one for all, or one each
        tensordict_utils.assign_non_tensor_stack(prompts, FIELD, own.tolist())
        tensordict_utils.assign_non_tensor_stack(prompts, VALIDATION, [validate] * len(prompts))
        if self.carried:
            columns = {name: list(tensordict_utils.get(prompts, name)) for name in self.carried if name in prompts}
            chats = [
                [{**chat[0], CARRIED: {name: column[row] for name, column in columns.items()}}, *chat[1:]]
                for row, chat in enumerate(tensordict_utils.get(prompts, "raw_prompt"))
            ]
            tensordict_utils.assign_non_tensor_stack(prompts, "raw_prompt", chats)
        super().generate_sequences(prompts)


class GroupAgentLoopManagerV0(AgentLoopManager):  # type: ignore[misc]
    """V0: marks every row with its group's size, and whether it is of a validation; its workers tell what sessions did."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.agent_loop_workers_class = ray.remote(GroupAgentLoopWorkerV0)
        super().__init__(*args, **kwargs)

    @auto_await  # type: ignore[untyped-decorator]
    async def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Generate for the rows, marked."""
        validate = bool(prompts.meta_info.get("validate", False))
        prompts.non_tensor_batch[FIELD] = np.full(len(prompts), group_size(self.rollout_config, validate))
        prompts.non_tensor_batch[VALIDATION] = np.full(len(prompts), validate)
        output: DataProto = await super().generate_sequences(prompts)
        return output
