"""Pieces of a real verl run without its trainers: config, reward workers, rollouts that finish one by one."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput, AgentLoopWorker
from verl.experimental.reward_loop.reward_loop import RewardLoopManager, RewardLoopWorker

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.scoring.rewards import reward_group
from mrjudge_reward.types import Group

_calls = itertools.count()

MANAGER = "pkg://mrjudge_reward.integrations.verl"


def verl_config(tokenizer_path: str, settings: Mapping[str, Any], *overrides: str) -> Any:
    """A verl config as ``main_ppo`` composes it, with our section."""
    config = copy.deepcopy(_composed(f"actor_rollout_ref.model.path={tokenizer_path}", *overrides))
    with open_dict(config):
        config.mrjudge = OmegaConf.create(dict(settings))
    return config


@functools.cache
def _composed(*overrides: str) -> Any:
    ours = ("source=importlib", "name=JudgeRewardManager", f"module.path={MANAGER}")
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*(f"reward.reward_manager.{one}" for one in ours), *overrides])


def ready_judge(config: JudgeConfig) -> Judge:
    """A judge that answers at once and prefers whatever comes first."""
    engine = ScriptedEngine(lambda request: dict.fromkeys(request.labels, 0.4) | {request.labels[0]: 0.6})
    return Judge(engine, Choice(), schedule="ring", verdict="read", min_label_mass=0.0)


def constant_score(**_: Any) -> float:
    """A reward function for verl's own managers."""
    return 1.0


class ServedModel:
    """Stands where verl starts the replicas of a reward model, which need devices: an address, and who woke it when."""

    address = "127.0.0.1:9"

    def __init__(self, config: Any, pool: Any = None) -> None:
        self.calls: list[str] = []

    def get_router_address(self) -> str:
        return self.address

    def wake_up(self) -> None:
        self.calls.append("wake_up")

    def sleep(self) -> None:
        self.calls.append("sleep")


def colocated(tokenizer_path: str) -> list[str]:
    """Overrides for a reward model that shares the policy's devices."""
    return [
        "reward.reward_model.enable=True",
        f"reward.reward_model.model_path={tokenizer_path}",
        "reward.reward_model.rollout.name=vllm",
        f"reward.custom_reward_function.path={MANAGER}",
    ]


@contextmanager
def reward_loop(config: Any) -> Iterator[RewardLoopManager]:
    """verl's own reward loop, its workers killed afterwards (their names can exist only once)."""
    manager = RewardLoopManager(config)
    try:
        yield manager
    finally:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)


WORKERS = 5
"""Reward workers at most; so many that shares of a batch are padded by less and by more than the batch holds."""


_made: list[Any] = []


class _ManagerOfMadeWorkers(RewardLoopManager):  # type: ignore[misc]
    """verl's manager, which takes workers that are there already, and in all has verl's constructor run once more.

    A new worker imports verl for seven seconds of CPU time.
    """

    def _init_reward_loop_workers(self) -> None:
        named = ray.remote(name="given below", get_if_exists=True)
        self.reward_loop_workers_class = named(RewardLoopWorker)
        super()._init_reward_loop_workers()
        _made.extend(self.reward_loop_workers)  # a worker lives as long as someone holds it

        def begin_anew(worker: Any, *args: Any) -> None:
            worker.__init__(*args)

        begun = (self.config, self.reward_router_address)
        ray.get([worker.__ray_call__.remote(begin_anew, *begun) for worker in self.reward_loop_workers])


@contextmanager
def made_reward_loop(config: Any) -> Iterator[RewardLoopManager]:
    """verl's reward loop with workers that tests share. Judge actors of earlier tests are gone."""
    try:
        yield _ManagerOfMadeWorkers(config)
    finally:
        for name in judge_actors():
            ray.kill(ray.get_actor(name))
        deadline = time.monotonic() + 60
        while judge_actors():
            assert time.monotonic() < deadline
            time.sleep(0.02)


def judge_actors() -> list[str]:
    return [name for name in ray.util.list_named_actors() if name.startswith("mrjudge_judge")]


@dataclass(frozen=True, eq=False)
class Rollout:
    """A finished completion."""

    uid: str
    session: int
    prompt: str
    answer: str
    fields: Mapping[str, Any]


def rollouts(groups: int, size: int, fields: Mapping[str, Any] | None = None) -> list[Rollout]:
    """Groups of different completions, in order; no two calls share a group or a prompt."""
    prefix = f"g{next(_calls)}"
    rng = random.Random(prefix)
    words = ["apple", "pear", "plum", "fig", "date", "lime", "kiwi", "nut", "seed", "leaf", "root", "bark", "stem"]
    made = []
    for group in range(groups):
        uid = f"{prefix}-{group}"
        for session in range(size):
            answer = f"{' '.join(rng.sample(words, 4))} {session}"
            made.append(Rollout(uid, session, f"Which fruit, {uid}?", answer, dict(fields or {})))
    return made


def expected(
    made: Sequence[Rollout], judge: Judge, *, names: bool = True, key: str | None = None
) -> dict[Rollout, float]:
    """The reward of each rollout when its whole group is given to the judge directly."""
    by_uid: dict[str, list[Rollout]] = {}
    for rollout in made:
        by_uid.setdefault(rollout.uid, []).append(rollout)
    rewards: dict[Rollout, float] = {}
    for uid, members in by_uid.items():
        sessions = [str(member.session) for member in members] if names else None
        group = Group.of(
            [{"role": "user", "content": members[0].prompt}], [m.answer for m in members], key or uid, names=sessions
        )
        given = reward_group(judge.judge([group])[0], on_abstain="group_mean").rewards_G
        rewards |= dict(zip(members, given, strict=True))  # type: ignore[arg-type]
    return rewards


class Streaming:
    """Sends rollouts to random reward workers, by the very code of verl's agent loop."""

    def __init__(self, manager: Any, tokenizer: Any, sessions: bool = True) -> None:
        self.tokenizer = tokenizer
        self.sessions = sessions
        self.worker = object.__new__(AgentLoopWorker)  # only its _compute_score is used, which needs no model
        self.worker.reward_loop_worker_handles = manager.reward_loop_workers
        self.worker.processor = None
        self.worker.mm_processor_kwargs = {}

    async def score(self, rollout: Rollout) -> AgentLoopOutput:
        fields: dict[str, Any] = {
            "raw_prompt": [{"role": "user", "content": rollout.prompt}],
            "uid": rollout.uid,
            "data_source": "fruit",
            "reward_model": {"ground_truth": "", "style": "rule"},
            "extra_info": {"index": 0},
            "index": 0,
            **({"session_id": rollout.session} if self.sessions else {}),
            **rollout.fields,
        }
        output = AgentLoopOutput(
            prompt_ids=self.tokenizer.encode(rollout.prompt),
            response_ids=self.tokenizer.encode(rollout.answer),
            response_mask=[1] * len(self.tokenizer.encode(rollout.answer)),
            metrics=AgentLoopMetrics(),
        )
        await self.worker._compute_score([output], fields)
        return output

    def all(self, made: Sequence[Rollout], seed: int | None = None) -> dict[Rollout, AgentLoopOutput]:
        """Score rollouts that all finish at once, in a random order."""
        order = list(made)
        random.Random(seed).shuffle(order)

        async def run() -> list[AgentLoopOutput]:
            return await asyncio.gather(*map(self.score, order))

        return dict(zip(order, asyncio.run(run()), strict=True))


def as_batch(made: Sequence[Rollout], tokenizer: Any, *keys: str) -> DataProto:
    """Rollouts as the padded batch of verl's colocated path; of the other fields only ``keys`` (V1 passes none)."""
    prompts = [torch.tensor(tokenizer.encode(rollout.prompt)) for rollout in made]
    answers = [torch.tensor(tokenizer.encode(rollout.answer)) for rollout in made]
    masks = [[torch.ones_like(ids) for ids in side] for side in (prompts, answers)]

    def left(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_side="left")

    def right(rows: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    batch = TensorDict(
        {
            "prompts": left(prompts),
            "responses": right(answers),
            "attention_mask": torch.cat([left(masks[0]), right(masks[1])], dim=1),
        },
        batch_size=len(made),
    )
    raw = np.empty(len(made), dtype=object)
    raw[:] = [[{"role": "user", "content": rollout.prompt}] for rollout in made]
    others = {"uid": np.array([rollout.uid for rollout in made], dtype=object)} if "uid" in keys else {}
    return DataProto(batch=batch, non_tensor_batch={"raw_prompt": raw, **others})
