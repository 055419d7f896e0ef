"""The judge as a reward manager of verl: groups rewarded through a reward loop that shows one sample at a time.

.. code-block:: yaml

    reward:
      reward_manager:
        source: importlib
        name: JudgeRewardManager
        module: {path: pkg://mrjudge_reward.integrations.verl}
    mrjudge:
      judge: judge.yaml

See ``settings`` for the ``mrjudge`` section. What verl does, and what this adapter makes of it (verl 0.9,
``experimental/reward_loop``, ``experimental/agent_loop``, ``trainer/ppo/v1``):

* *Streaming* (no reward model, or one on devices of its own): each finished rollout goes to a random reward worker, whose
  manager brings it to its group in an actor that all workers share. Samples carry ``uid``; in V1 also
  ``session_id``, their identity within the group.
* *Colocated* (``reward.reward_model.enable`` without ``enable_resource_pool``): the batch is padded with copies, cut
  evenly over the workers, and scored while the reward model is awake. V1 passes no ``uid`` here, so rows meet by their
  prompt, unless the prompt carries it (``agent_loop``). The batch is judged as one when all workers have handed in.
* ``judge_weight`` and ``rule_weight`` mix the judge with the user's ``compute_score``, per ``data_source`` if asked; rows
  whose judge has no weight are not judged, and their ``judge_`` values are NaN or 0.
* A reward must be a number. Rows whose score is unknown get the mean of their group, whose advantage is zero, and are
  flagged: ``judge_abstained``. ``reward_extra_info`` has the same keys on every row (``streaming.scores.INFO_KEYS``).
* Nothing tells training from validation in a streamed sample. Where their group sizes differ, a sample's size is taken
  from ``mrjudge_group_size`` (set by ``agent_loop``), ``__rollout_n__``, or ``extra_info.split``.
* A rollout that failed, or that gave no answer, never comes. ``agent_loop`` tells so; without it its siblings wait until
  ``deadline_s``. V1 drops the whole group then, but only when all its sessions have ended.
* When too many judgements failed, nothing more is judged and every sample ends with that error. V0 and the colocated path
  stop at the first one; V1 in streaming mode drops groups whose scoring raised, and ends with the first step in which all
  did ("no materializable trajectories"), the reason in the log of the judge actor.
* With a reward model, verl calls the manager only if ``reward.custom_reward_function.path`` is set: name this module
  and ``compute_score``.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.actor
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.images import bare, given_as
from mrjudge_reward.messages import ImagePart, Message, Part, TextPart, as_messages, final_answer
from mrjudge_reward.reasoning import decode_marked, opens_reasoning
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.rubrics.reading import read_rubric
from mrjudge_reward.streaming.scores import Sample, Scored, unjudged
from mrjudge_reward.streaming.waiting import refuse, serve

from .actor import MANY, JudgeActorClient
from .settings import ABSENT, CARRIED, VALIDATION_SPLITS, VerlSettings, is_colocated, served_judge

logger = logging.getLogger(__name__)

# Reward workers are actors that verl makes with Ray's default of 1,000 concurrent calls. A sample waits in its worker
# until its group is whole, so with more samples in flight than slots the missing members could never get in. verl loads
# this module in the driver before it makes the workers, and Ray has no other way to change what others create.
if hasattr(ray.actor, "DEFAULT_MAX_CONCURRENCY_ASYNC"):
    ray.actor.DEFAULT_MAX_CONCURRENCY_ASYNC = max(MANY, ray.actor.DEFAULT_MAX_CONCURRENCY_ASYNC)
else:
    logger.warning(
        "this Ray keeps its default concurrency of async actors elsewhere: set reward.num_workers so that num_workers x "
        "1000 exceeds train_batch_size x rollout.n, or groups may wait for their deadline"
    )


def compute_score(*args: Any, **kwargs: Any) -> float:
    """Stands in ``reward.custom_reward_function``, without which verl does not call a manager beside a reward model.

    Raises:
        ConfigError: always; the manager never calls it.
    """
    raise ConfigError(
        "compute_score is a placeholder: rewards come from JudgeRewardManager. Set reward.reward_manager.source=importlib, "
        "name=JudgeRewardManager, module.path=pkg://mrjudge_reward.integrations.verl"
    )


class JudgeRewardManager(RewardManagerBase):  # type: ignore[misc]
    """Scores samples by judging them with their group.

    Args:
        config: verl's, with the section ``mrjudge``.
        tokenizer: of the policy.
        compute_score: called where ``rule_weight`` is not 0, as verl's own manager calls it.
        reward_router_address: of verl's own reward model replicas, if any; then these are the judge.
        reward_model_tokenizer: not used.

    Raises:
        ConfigError: if the section is invalid, asks for fields that verl's colocated path does not pass, or its judge has
            no room for candidates in the context that verl gives it.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        plain: Any = OmegaConf.to_container(config, resolve=True)
        self.settings = VerlSettings.of(plain)
        served = served_judge(plain, reward_router_address)
        self.colocated = is_colocated(plain)
        if lacking := self.settings.not_passed(plain):
            raise ConfigError(
                f"verl's colocated path does not pass what {', '.join(lacking)} need(s): set actor_rollout_ref.rollout."
                "agent.agent_loop_manager_class to mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager, or "
                "give the reward model devices of its own (enable_resource_pool)"
            )
        of_reward_model = (reward_router_address, reward_model_tokenizer)
        self._rule = (
            NaiveRewardManager(config, tokenizer, compute_score, *of_reward_model)
            if self.settings.rule_weight
            else None
        )
        self.settings.check_context(served)
        self._opened = self.settings.thinking == "opened" or opens_reasoning(
            tokenizer, plain["data"].get("apply_chat_template_kwargs")
        )
        self.workers = int(plain["reward"]["num_workers"])
        self._judge_config = self.settings.judge_config(served)
        self.client = JudgeActorClient(self._judge_config, self.settings, served)
        self._share: list[tuple[Sample, asyncio.Future[Scored]]] = []
        self._share_begun = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one sample.

        Args:
            data: one row, or the rows of one trajectory, of which the last counts.

        Returns:
            ``reward_score``, the weighted sum of the judge's reward and of ``compute_score``, and ``reward_extra_info``.

        Raises:
            MRJudgeError: if the sample cannot be read, or the judge raised.
        """
        data = with_carried(data[-1:])
        row: Mapping[str, Any] = data[0].non_tensor_batch
        if row.get(ABSENT):  # told by ``agent_loop``, which has no use for the result
            await self.client.leave(self._group(row), str(row["session_id"]), self._size(row))
            return {"reward_score": 0.0, "reward_extra_info": {}}
        of_judge, of_rule = self.settings.weights(row.get("data_source"))
        ruled = None
        if of_rule and self._rule is not None:
            self._rule.loop = asyncio.get_running_loop()  # verl's own may be another where the manager was made
            ruled = asyncio.create_task(self._rule.run_single(data))
        try:
            scored = await self._judged(data) if of_judge else self._unjudged()
            rule = float((await ruled)["reward_score"]) if ruled is not None else math.nan
        finally:
            if ruled is not None:
                ruled.cancel()
        reward = of_judge * scored.reward + (of_rule * rule if of_rule else 0.0)
        info = dict(scored.info) | ({"rule_score": rule} if self._rule is not None else {})
        return {"reward_score": reward, "reward_extra_info": info}

    async def _judged(self, data: DataProto) -> Scored:
        sample = self.sample_of(data)
        if not self.colocated:
            return await self.client.join(sample)
        self._begin_share()
        waiter: asyncio.Future[Scored] = asyncio.get_running_loop().create_future()
        self._share.append((sample, waiter))
        return await waiter

    def _unjudged(self) -> Scored:
        if self.colocated:  # the batch waits for every worker's share, also for one without a row to judge
            self._begin_share()
        return unjudged(self._judge_config)

    def _begin_share(self) -> None:
        """Rows of a share begin in one turn of the loop, so in the next turn the share is complete."""
        if not self._share_begun:
            self._share_begun = True
            asyncio.get_running_loop().call_soon(self._hand_in)

    def _hand_in(self) -> None:
        share, self._share, self._share_begun = self._share, [], False

        async def deliver() -> None:
            try:
                scored = await self.client.join_share([sample for sample, _ in share], _worker_number(), self.workers)
            except Exception as error:  # noqa: BLE001  told to every row
                refuse((waiter for _, waiter in share), error)
                return
            for (_, waiter), result in zip(share, scored, strict=True):
                serve([waiter], result)

        task = asyncio.get_running_loop().create_task(deliver())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- reading a row --------------------------------------------------------------------------------------------------

    def sample_of(self, data: DataProto) -> Sample:
        """What a row says.

        Raises:
            InputError: if it holds no chat messages.
        """
        item = data[0]
        row: Mapping[str, Any] = item.non_tensor_batch
        prompt = _prompt(row)
        text, length = self._completion(item)
        answer = text if self.settings.thinking == "keep" else final_answer(text, self._opened)
        member = row.get("session_id")
        return Sample(
            group=self._group(row, prompt),
            member=None if member is None else str(member),
            size=self._size(row),
            prompt=prompt,
            answer=answer,
            length=length,
            reference=_text_at(row, self.settings.reference_field),
            rubric=_rubric_at(row, self.settings.rubric_field),
            lasting=row.get("uid") is not None,
        )

    def _group(self, row: Mapping[str, Any], prompt: Sequence[Message] = ()) -> str:
        """Identity of a row's group."""
        uid, attempt = row.get("uid"), row.get("attempt")
        group = f"prompt-{prompt_hash(prompt)}" if uid is None else str(uid)
        return group if attempt is None else f"{group}/{attempt}"

    def _completion(self, item: Any) -> tuple[str, int]:
        responses = item.batch["responses"]
        length = item.non_tensor_batch.get("response_len")
        if length is None:
            mask = item.batch["attention_mask"]
            length = mask[mask.shape[-1] - responses.shape[-1] :].sum()
        ids = responses[: int(length)]
        return decode_marked(self.tokenizer, ids), int(length)

    def _size(self, row: Mapping[str, Any]) -> int:
        for key in ("mrjudge_group_size", "__rollout_n__"):
            if (size := row.get(key)) is not None:
                return int(size)
        training, validation = self.settings.group_size or 1, self.settings.validation_group_size or 1
        extra = row.get("extra_info")
        split = extra.get("split") if isinstance(extra, Mapping) else None
        return validation if split in VALIDATION_SPLITS else training


def with_carried(data: DataProto) -> DataProto:
    """A row with the fields that its prompt carries, where verl passed none of that name."""
    raw = data.non_tensor_batch.get("raw_prompt")
    first = raw[0][0] if raw is not None and len(raw) and len(raw[0]) else None
    carried = first.get(CARRIED) if isinstance(first, Mapping) else None
    if not carried:
        return data
    fields = {name: np.empty(1, dtype=object) for name in carried if name not in data.non_tensor_batch}
    for name, column in fields.items():
        column[0] = carried[name]
    return DataProto(data.batch, {**data.non_tensor_batch, **fields}, data.meta_info)


def _worker_number() -> int:
    """Which of verl's reward workers this process is; they are named ``reward_loop_worker_<number>``."""
    name = ray.get_runtime_context().get_actor_name() or ""
    number = name.rpartition("_")[2]
    if not number.isdigit():
        raise ConfigError(f"this is not one of verl's reward workers: the actor is called {name!r}")
    return int(number)


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The chat messages of a row, with images that came beside them in the last user turn."""
    raw = row.get("raw_prompt")
    if raw is None:
        raise InputError("the row holds no raw_prompt, so there is nothing to show a judge")
    turns: list[Any] = [getattr(turn, "data", turn) for turn in (raw.tolist() if hasattr(raw, "tolist") else raw)]
    messages = list(as_messages(turns))
    beside = row.get("multi_modal_data")
    given = [beside.get("images"), beside.get("image")] if isinstance(beside, Mapping) else []
    images: Sequence[Any] = next((images for images in given if images is not None and len(images)), ())
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(images) and users and not any(message.images for message in messages):
        last = messages[users[-1]]
        shown: tuple[Part, ...] = tuple(ImagePart(bare(image)) for image in images)
        messages[users[-1]] = Message(last.role, (*shown, *last.content))
    return tuple(messages)


def prompt_hash(prompt: Sequence[Message]) -> str:
    """Identity of a prompt, its images included."""
    shown = [
        (
            message.role,
            [part.text if isinstance(part, TextPart) else (given_as(part.image),) for part in message.content],
        )
        for message in prompt
    ]
    return hashlib.blake2b(repr(shown).encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _at(row: Mapping[str, Any], path: str | None) -> Any:
    """What is at a dotted path; None where the row has nothing."""
    value: Any = row if path is not None else None
    for key in path.split(".") if path is not None else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value.item() if isinstance(value, np.generic) else value


def _rubric_at(row: Mapping[str, Any], path: str | None) -> str | Rubric | None:
    """The rubric at a dotted path: a text, or criteria.

    Raises:
        InputError: if it is neither.
    """
    value = _at(row, path)
    structured = isinstance(value, list | tuple | np.ndarray | Mapping)
    return read_rubric(value, str(path)) if structured else _text_at(row, path)


def _text_at(row: Mapping[str, Any], path: str | None) -> str | None:
    """The text at a dotted path; None where the row has none.

    Raises:
        InputError: if something else than text or a number is there.
    """
    value = _at(row, path)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise InputError(f"{path} must hold text; got {type(value).__name__}")
