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
* ``judge_weight`` and ``rule_weight`` mix the judge with the user's ``compute_score``, per ``data_source`` if asked. A
  reward is the weighted sum of ``judge_reward`` and ``rule_reward``, which are numbers on every row, 0 where the weight is
  (such rows are not judged). So they may be GDPO's ``algorithm.gdpo_reward_keys``. What ``compute_score`` tells beside
  its score stands under its own keys, see ``rule_info``.
* A session of several turns passes the tokens of all of them, and does not tell which the policy wrote. ``agent_loop``
  carries its messages; ``view`` says what of them is judged, as in TRL. Without it such a run is refused.
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
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.actor
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from mrjudge_reward.completions import Candidate, judged, plain
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.fields import anchors_at, shown_at, texts_of
from mrjudge_reward.images import bare, known_as
from mrjudge_reward.messages import ImagePart, Message, Part, TextPart, as_messages, final_answer
from mrjudge_reward.reasoning import decode_marked, opens_reasoning
from mrjudge_reward.rubrics.reading import rubric_at
from mrjudge_reward.streaming.queue import refuse, serve
from mrjudge_reward.streaming.scores import Sample, Scored, unjudged

from .actor import MANY, JudgeActorClient
from .settings import ABSENT, CARRIED, VALIDATION, VALIDATION_SPLITS, VerlSettings, is_colocated, served_judge
from .tracking import log_judge_metrics
from .transcripts import told_in

logger = logging.getLogger(__name__)

_TAKEN = frozenset({"score", "reward", "rm_scores", "uid"})
"""Names under which verl keeps something else, the reward itself for one; ``score`` stands as ``rule_score``."""

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

log_judge_metrics()  # in the driver; elsewhere nobody logs


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
        self._columns = self.colocated or not plain["trainer"].get("use_v1", True)
        self._said_untold = False
        if lacking := self.settings.not_passed(plain):
            raise ConfigError(
                f"verl's colocated path does not pass what {', '.join(lacking)} need(s): set actor_rollout_ref.rollout."
                "agent.agent_loop_manager_class to mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager, or "
                "give the reward model devices of its own (enable_resource_pool)"
            )
        if self.settings.tells_no_turns(plain):
            raise ConfigError(
                "verl does not tell a reward which tokens of a session the policy wrote and which its tools returned: set "
                "actor_rollout_ref.rollout.agent.agent_loop_manager_class to mrjudge_reward.integrations.verl.agent_loop."
                "GroupAgentLoopManager (V0: GroupAgentLoopManagerV0)"
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
        self._by_criteria = None if self.settings.factory is not None else self._judge_config.criteria is not None
        stepped = "async_training" not in plain  # that trainer's loggers are in another process
        self.client = JudgeActorClient(self._judge_config, self.settings, served, stepped)
        self._share: list[tuple[Sample, asyncio.Future[Scored]]] = []
        self._share_begun = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one sample.

        Args:
            data: one row, or the rows of one trajectory, of which the last counts.

        Returns:
            ``reward_score``, the weighted sum of the judge's reward and of ``compute_score``, and ``reward_extra_info``,
            what both tell.

        Raises:
            MRJudgeError: if the sample cannot be read, or the judge raised.
        """
        data = with_carried(data if len(data) == 1 else data[-1:])
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
            scored = await self._judged(data, _of_validation(row)) if of_judge else self._unjudged()
            told: Mapping[str, Any] = await ruled if ruled is not None else {"reward_score": math.nan}
        finally:
            if ruled is not None:
                ruled.cancel()
        rule = float(told["reward_score"])
        ruled_reward = rule if of_rule else 0.0  # a number always: verl's GDPO makes NaN of a whole batch with one
        info = dict(scored.info)
        if self._rule is not None:
            own = {"rule_reward": ruled_reward, "rule_score": rule}
            info = self._of_rule(told.get("reward_extra_info", {}), {*data.batch.keys(), *row}) | info | own
        return {"reward_score": of_judge * scored.reward + of_rule * ruled_reward, "reward_extra_info": info}

    def _of_rule(self, told: Mapping[str, Any], taken: Set[str]) -> dict[str, Any]:
        """What ``compute_score`` told beside its score, but for what would take the place of a row's own fields.

        V1 in streaming mode takes any keys of any row. Elsewhere verl makes columns of the keys of a first row, which all
        rows must have then.
        """
        if self.settings.rule_info is not None:
            told = {key: told.get(key) for key in self.settings.rule_info}
        elif self._columns and self.settings.unruled():
            if told and not self._said_untold:
                self._said_untold = True
                logger.warning(
                    "compute_score tells %s, which rows that it is not asked about do not have, and verl wants the same "
                    "keys on every row: name those to be kept in mrjudge.rule_info", ", ".join(told),
                )  # fmt: skip
            told = {}
        return {key: value for key, value in told.items() if key not in _TAKEN and key not in taken}

    async def _judged(self, data: DataProto, validation: bool) -> Scored:
        sample = self.sample_of(data)
        if validation:
            sample = replace(sample, validation=True)
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
        answer, length = self._completion(item)
        member = row.get("session_id")
        return Sample(
            group=self._group(row, prompt),
            member=None if member is None else str(member),
            size=self._size(row),
            prompt=prompt,
            answer=answer.text,
            length=length,
            images=answer.images,
            reference=shown_at(row, self.settings.reference_field, "reference"),
            rubric=rubric_at(row, self.settings.rubric_field, self._by_criteria),
            lasting=row.get("uid") is not None,
            anchors=self._anchors(row),
        )

    def _anchors(self, row: Mapping[str, Any]) -> tuple[str, ...] | None:
        """What of the row's anchors is judged. No template opened a reasoning in them."""
        texts = anchors_at(row, self.settings.anchor_field)
        return None if texts is None else texts_of([self._answer_of(text, opened=False) for text in texts], "anchor")

    def _group(self, row: Mapping[str, Any], prompt: Sequence[Message] = ()) -> str:
        """Identity of a row's group."""
        uid, attempt = row.get("uid"), row.get("attempt")
        group = f"prompt-{prompt_hash(prompt)}" if uid is None else str(uid)
        return group if attempt is None else f"{group}/{attempt}"

    def _completion(self, item: Any) -> tuple[Candidate, int]:
        """What is judged, and how many tokens the policy wrote."""
        row: Mapping[str, Any] = item.non_tensor_batch
        if (told := told_in(row)) is not None:
            answer_of = partial(self._answer_of, opened=self._opened and told["as_sampled"])
            return judged(told["messages"], self.settings.view, answer_of), int(told["length"])
        if (turns := int(row.get("__num_turns__", 2))) > 2:
            raise InputError(
                f"a session of {turns} turns does not tell which of its tokens the policy wrote: let its manager be, or "
                "derive from, mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager"
            )
        responses = item.batch["responses"]
        length = item.non_tensor_batch.get("response_len")
        if length is None:
            mask = item.batch["attention_mask"]
            length = mask[mask.shape[-1] - responses.shape[-1] :].sum()
        ids = responses[: int(length)]
        return plain(self._answer_of(decode_marked(self.tokenizer, ids), self._opened)), int(length)

    def _answer_of(self, text: str, opened: bool) -> str:
        return text if self.settings.thinking == "keep" else final_answer(text, opened)

    def _size(self, row: Mapping[str, Any]) -> int:
        for key in ("mrjudge_group_size", "__rollout_n__"):
            if (size := row.get(key)) is not None:
                return int(size)
        training, validation = self.settings.group_size or 1, self.settings.validation_group_size or 1
        return validation if _of_validation(row) else training


def _of_validation(row: Mapping[str, Any]) -> bool:
    """As the agent-loop manager marked it, or as the data say."""
    if (told := row.get(VALIDATION)) is not None:
        return bool(told)
    extra = row.get("extra_info")
    return isinstance(extra, Mapping) and extra.get("split") in VALIDATION_SPLITS


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
    messages = list(as_messages(turns, unshown=True))
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
            [part.text if isinstance(part, TextPart) else (known_as(part.image),) for part in message.content],
        )
        for message in prompt
    ]
    return hashlib.blake2b(repr(shown).encode(errors="surrogatepass"), digest_size=16).hexdigest()
