"""How the reward manager reads verl's rows, and how its client treats an actor that dies; without a cluster."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray.exceptions import RayActorError, RayTaskError
from tensordict import TensorDict
from verl import DataProto

from mrjudge_reward.errors import ConfigError, EngineError, InputError, MRJudgeError
from mrjudge_reward.integrations.verl import actor as verl_actor
from mrjudge_reward.integrations.verl import reward_manager as verl_reward
from mrjudge_reward.integrations.verl.actor import JudgeActorClient
from mrjudge_reward.integrations.verl.reward_manager import JudgeRewardManager, prompt_hash, with_carried
from mrjudge_reward.integrations.verl.settings import VerlSettings
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import ImagePart, TextPart, as_messages
from mrjudge_reward.streaming.exchange import Outcome
from mrjudge_reward.streaming.scores import INFO_KEYS, Sample, Scored
from tests.support.arriving import run, sample
from tests.support.verl_setup import colocated, verl_config

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]


class Tokenizer:
    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(f"t{int(i)}" for i in ids)


def manager(*overrides: str, **settings: Any) -> JudgeRewardManager:
    given = {"judge": {"model": "some/judge"}, **settings}
    config = verl_config(
        "policy", given, "actor_rollout_ref.rollout.n=8", "actor_rollout_ref.rollout.val_kwargs.n=2", *overrides
    )
    with a_loop():
        return JudgeRewardManager(config, Tokenizer())


@contextmanager
def a_loop() -> Iterator[None]:
    """verl's base class opens one where there is none, and nobody closes that where the manager is refused."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        yield
    finally:
        loop.close()
        asyncio.set_event_loop(None)


def rows(*answers: list[int], prompt: int = 3, streamed: bool = True, **fields: Any) -> DataProto:
    """Rows as verl's agent loop makes them: prompts and responses padded on the right, every field repeated."""
    count = len(answers)
    width = max(map(len, answers))
    responses = torch.tensor([answer + [0] * (width - len(answer)) for answer in answers], dtype=torch.int64)
    mask = torch.zeros(count, prompt + width, dtype=torch.int64)
    for row, answer in enumerate(answers):
        mask[row, : prompt + len(answer)] = 1
    fields = {"raw_prompt": CHAT, "uid": "u1", **fields}
    others = {key: np.array([value] * count) for key, value in fields.items() if value is not None}
    if streamed:
        others["response_len"] = np.array([len(answer) for answer in answers])
    batch = TensorDict({"responses": responses.reshape(count, width), "attention_mask": mask}, batch_size=count)
    return DataProto(batch=batch, non_tensor_batch=others)


def test_a_row_of_the_v1_trainer():
    found = manager().sample_of(rows([5, 6], session_id=3, mrjudge_group_size=4, index=0))
    assert found == Sample("u1", "3", 4, as_messages(CHAT), "t5 t6", 2)
    assert pickle.loads(pickle.dumps(found)) == found
    for value in (found.group, found.member, found.answer):
        assert type(value) is str, "numpy's own types stay out of what travels"
    assert type(found.size) is type(found.length) is int


@pytest.mark.parametrize("streamed", [True, False])
def test_an_empty_response_is_empty_and_has_no_length(streamed: bool):
    found = manager().sample_of(rows([], streamed=streamed))
    assert (found.answer, found.length) == ("", 0)


def test_padding_of_a_response_is_not_read():
    batch = rows([5, 6, 7, 8], [9], streamed=False)
    assert [manager().sample_of(batch[i : i + 1]).answer for i in range(2)] == ["t5 t6 t7 t8", "t9"]


def test_the_last_output_of_a_trajectory_counts():
    seen: list[Sample] = []

    async def join(given: Sample) -> Scored:
        seen.append(given)
        return Scored(0.5, dict.fromkeys(INFO_KEYS, 0.0))

    mine = manager()
    mine.client.join = join  # type: ignore[method-assign]
    scored = run(lambda: mine.run_single(rows([1, 2, 3], [4], [5, 6], session_id=1)))
    assert scored == {"reward_score": 0.5, "reward_extra_info": dict.fromkeys(INFO_KEYS, 0.0)}
    assert [(one.answer, one.length, one.member) for one in seen] == [("t5 t6", 2, "1")]


@pytest.mark.parametrize(
    ("judge", "rule", "source", "weights"),
    [
        (1.0, 0.0, "a", (1, 0)),
        (0.5, 2.0, None, (0.5, 2)),
        ({"a": 0.5, "default": 1.0}, 0.0, "a", (0.5, 0)),
        ({"a": 0.5, "default": 1.0}, {"default": 0.25}, "b", (1, 0.25)),
        ({"default": 1.0}, {"a": 1.0, "default": 0.0}, None, (1, 0)),
        (0.0, 0.0, "a", "both 0 for the data_source 'a', so that nothing rewards its rows"),
        ({"sums": 0.0, "default": 1.0}, {"essays": 1.0, "default": 0.0}, "sums", "both 0 for the data_source 'sums'"),
        ({"a": 0.5}, 0.0, "b", "judge_weight has no weight for the data_source 'b': it knows a"),
        (1.0, {"a": 0.5, "c": 1.0}, None, "rule_weight has no weight for the data_source None: it knows a, c"),
    ],
)
def test_weights_of_the_judge_and_the_rule(judge: Any, rule: Any, source: Any, weights: Any):
    settings = manager(judge_weight=judge, rule_weight=rule).settings
    if isinstance(weights, str):
        with pytest.raises(ConfigError, match=weights):
            settings.weights(source)
    else:
        assert settings.weights(source) == weights


def test_weights_per_source_are_refused_where_verl_passes_no_source():
    for weight in (
        {"judge_weight": {"a": 1.0}},
        {"rule_weight": {"default": 1.0}},
        {"rubric_field": "extra_info.rubric"},
    ):
        with pytest.raises(ConfigError, match=r"does not pass what .* need.*GroupAgentLoopManager"):
            manager(*colocated("policy"), **weight)
        manager(*colocated("policy"), CARRYING, **weight)


CARRYING = (
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class="
    "mrjudge_reward.integrations.verl.agent_loop.GroupAgentLoopManager"
)


def test_what_a_prompt_carries_counts_where_verl_passes_nothing():
    carried = {"uid": "u7", "data_source": "essays", "mrjudge_group_size": 4, "extra_info": {"rubric": "Be kind."}}
    chat = [{**CHAT[0], "mrjudge": carried}, *CHAT[1:]]
    mine = manager(rubric_field="extra_info.rubric")
    bare = rows([5, 6], raw_prompt=None, uid=None, streamed=False)
    bare.non_tensor_batch["raw_prompt"] = np.empty(1, dtype=object)
    bare.non_tensor_batch["raw_prompt"][0] = chat
    found = mine.sample_of(with_carried(bare))
    assert found == Sample("u7", None, 4, as_messages(CHAT), "t5 t6", 2, rubric="Be kind.")
    bare.non_tensor_batch["uid"] = np.array(["own"], dtype=object)
    assert mine.sample_of(with_carried(bare)).group == "own", "what verl passes stands"
    plain = rows([5], streamed=False)
    assert with_carried(plain) is plain


def test_a_share_without_a_row_to_judge_is_handed_in(monkeypatch: pytest.MonkeyPatch):
    """The batch is judged when every worker has sent its share."""
    monkeypatch.setattr(verl_reward, "_worker_number", lambda: 0)
    weights = {"judge_weight": {"sums": 0.0, "default": 1.0}, "rule_weight": {"sums": 1.0, "default": 0.0}}
    mine = manager(*colocated("policy"), CARRYING, "reward.num_workers=1", **weights)
    handed: list[int] = []

    async def ruled(data: DataProto) -> dict[str, float]:
        return {"reward_score": 0.25}

    mine._rule = SimpleNamespace(run_single=ruled)

    async def join_share(samples: list[Sample], worker: int, workers: int) -> list[Scored]:
        handed.append(len(samples))
        return [Scored(1.0, dict.fromkeys(INFO_KEYS, 0.0)) for _ in samples]

    mine.client.join_share = join_share  # type: ignore[method-assign]

    async def share(*sources: str) -> list[float]:
        batch = rows(*[[1]] * len(sources), streamed=False)
        batch.non_tensor_batch["data_source"] = np.array(sources, dtype=object)
        scored = await asyncio.gather(*(mine.run_single(batch[i : i + 1]) for i in range(len(sources))))
        await asyncio.sleep(0)
        return [row["reward_score"] for row in scored]

    assert run(lambda: share("sums", "sums")) == [0.25, 0.25]
    assert run(lambda: share("sums", "essays", "sums")) == [0.25, 1.0, 0.25]
    assert handed == [0, 1]


SOME = {"rule_weight": {"sums": 1.0, "default": 0.0}}
TOLD = {"score": 0.25, "acc": 1.0, "pred": "42", "judge_reward": 9.0, "reward": 9.0, "uid": "x", "data_source": "x"}
V0 = ("trainer.use_v1=False",)
ONE_WORKER = (*colocated("policy"), CARRYING, "reward.num_workers=1")


@pytest.mark.parametrize(
    ("overrides", "settings", "result", "kept"),
    [
        ((), {"rule_weight": 1.0}, TOLD, [{"acc": 1.0, "pred": "42"}] * 2),
        ((), {"rule_weight": 1.0}, 0.25, [{"acc": 0.25}] * 2),
        ((), {"rule_weight": 1.0, "rule_info": ["pred", "other"]}, TOLD, [{"pred": "42", "other": None}] * 2),
        ((), {"rule_weight": 1.0, "rule_info": []}, TOLD, [{}] * 2),
        (V0, {"rule_weight": 1.0}, TOLD, [{"acc": 1.0, "pred": "42"}] * 2),
        (ONE_WORKER, {"rule_weight": 1.0}, TOLD, [{"acc": 1.0, "pred": "42"}] * 2),
        # Some rows are not asked about: V1 in streaming mode fills in what a row has not.
        ((), SOME, TOLD, [{"acc": 1.0, "pred": "42"}, {}]),
        ((), SOME | {"rule_info": ["acc"]}, TOLD, [{"acc": 1.0}, {"acc": None}]),
        (V0, SOME | {"rule_info": ["acc"]}, TOLD, [{"acc": 1.0}, {"acc": None}]),
        (ONE_WORKER, SOME | {"rule_info": ["acc", "score"]}, TOLD, [{"acc": 1.0}, {"acc": None}]),
        (V0, SOME, TOLD, [{}, {}]),
        (ONE_WORKER, SOME, TOLD, [{}, {}]),
    ],
)  # fmt: skip
def test_what_a_rule_tells_stands_on_its_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: Any, overrides: Any, settings: Any, result: Any, kept: Any
):
    monkeypatch.setattr(verl_reward, "_worker_number", lambda: 0)
    with a_loop():
        config = verl_config(
            "policy", {"judge": {"model": "x"}, **settings}, "actor_rollout_ref.rollout.n=8", *overrides
        )
        mine = JudgeRewardManager(config, Tokenizer(), lambda **_: result)

    async def join(_: Sample) -> Scored:
        return Scored(0.5, dict.fromkeys(INFO_KEYS, 0.0))

    async def join_share(samples: list[Sample], *_: int) -> list[Scored]:
        return [await join(sample) for sample in samples]

    mine.client.join, mine.client.join_share = join, join_share  # type: ignore[method-assign]

    async def scored() -> list[dict[str, Any]]:
        batch = rows([1], [2], streamed=not mine.colocated, reward_model={"ground_truth": "42"}, extra_info={})
        batch.non_tensor_batch["data_source"] = np.array(["sums", "essays"], dtype=object)
        found = await asyncio.gather(*(mine.run_single(batch[i : i + 1]) for i in range(2)))
        await asyncio.sleep(0)
        return found

    own = {"rule_reward", "rule_score", *INFO_KEYS}
    found = run(scored)
    told = [row["reward_extra_info"] for row in found]
    assert [{key: value for key, value in one.items() if key not in own} for one in told] == kept
    assert all(one["judge_reward"] == 0.0 for one in told), "the judge's own keys are the judge's"
    assert all(set(one) >= own for one in told)
    assert (told[0]["rule_score"], found[0]["reward_score"]) == (0.25, 0.75)
    if mine.colocated or overrides == V0:
        assert [*told[0]] == [*told[1]], "verl makes columns of the keys of a first row"
    lost = [one for one in caplog.messages if "mrjudge.rule_info" in one]
    assert len(lost) == (settings == SOME and bool(overrides))


def test_rule_info_without_a_rule_is_refused():
    with pytest.raises(ConfigError, match="rule_info does nothing while rule_weight is 0"):
        manager(rule_info=["acc"])


def test_what_a_rule_did_not_tell_is_no_fault_of_verls_validation_and_columns():
    from verl.trainer.ppo.metric_utils import process_validation_metrics
    from verl.utils import tensordict_utils

    infos = {"reward": [0.5, 0.75, 0.25], "acc": [1.0, None, 0.0], "pred": ["42", None, "41"], "none": [None] * 3}
    metrics = process_validation_metrics(["sums", "essays", "sums"], ["u", "v", "u"], infos)
    assert metrics["sums"]["acc"]["mean@2"] == 0.5
    assert {*metrics["essays"]} == {"reward"}
    column = tensordict_utils.get_tensordict({"acc": np.array(infos["acc"])})
    assert list(tensordict_utils.get(column, "acc")) == infos["acc"]


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 8),
        ({"extra_info": {"split": "train"}}, 8),
        ({"extra_info": {"split": "test"}}, 2),
        ({"__rollout_n__": 5, "extra_info": {"split": "test"}}, 5),
        ({"mrjudge_group_size": 4, "__rollout_n__": 5}, 4),
    ],
    ids=str,
)
def test_the_size_of_a_group(fields: dict[str, Any], size: int):
    assert manager().sample_of(rows([1], **fields)).size == size


def test_identities():
    assert manager().sample_of(rows([1], session_id=None)).member is None
    assert manager().sample_of(rows([1], attempt=2)).group == "u1/2"
    nameless = manager().sample_of(rows([1], uid=None))
    assert nameless.group == f"prompt-{prompt_hash(as_messages(CHAT))}"
    assert not nameless.lasting
    assert manager().sample_of(rows([1])).lasting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("42", "42"), (42, "42"), (1.5, "1.5"), (np.int64(42), "42"), (np.float32(1.5), "1.5"), (None, None),
        (["42"], "42"), (np.array(["42", "42"], dtype=object), "42"), ([], None),
        (np.array(["a", "b"], dtype=object), "Reference 1 of 2: a\nReference 2 of 2: b"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_reference_may_be_texts_and_numbers_of_any_kind(value: Any, text: str | None):
    mine = manager(reference_field="reward_model.ground_truth", rubric_field="extra_info.rubrics.text")
    row = rows([1], reward_model={"ground_truth": value}, extra_info={"rubrics": [{"text": value}]})
    for given in (row, carried_by_prompt(row)):
        found = mine.sample_of(with_carried(given))
        assert found.reference == text
        assert found.rubric == (text and text.replace("Reference", "Criterion"))
    with pytest.raises(
        InputError, match=r"reward_model\.ground_truth: the reference must be text.* fields a; name one"
    ):
        mine.sample_of(rows([1], reward_model={"ground_truth": {"a": 1}}))


def carried_by_prompt(row: DataProto) -> DataProto:
    """The same row as V1's colocated path passes it: the prompt carries the fields."""
    fields = {name: row.non_tensor_batch[name][0] for name in ("uid", "reward_model", "extra_info")}
    first, *rest = row.non_tensor_batch["raw_prompt"][0]
    chat = np.empty(1, dtype=object)
    chat[0] = [{**first, "mrjudge": fields}, *rest]
    return DataProto(row.batch, {"raw_prompt": chat})


@pytest.mark.parametrize("field", ["reference_field", "rubric_field"])
@pytest.mark.parametrize("judge", [{}, {"format": "sentiment", "verdict": "logprobs"}], ids=repr)
def test_a_reference_that_the_wording_does_not_show_is_refused_before_the_run(field: str, judge: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"{field}='extra_info.x' brings a .* 'sentiment' shows responses alone"):
        manager(judge=judge, **{field: "extra_info.x"})
    manager(judge=judge, factory="some.module:judge", **{field: "extra_info.x"})  # whose wording is not known here


def test_prompts_of_parts_and_images_beside_them():
    image = Image.new("RGB", (2, 2), "red")
    parts = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    (message,) = manager().sample_of(rows([1], raw_prompt=parts)).prompt
    assert [part.image for part in message.images] == [image]
    for beside in ({"images": [image]}, {"image": [image]}, {"images": np.array([image], dtype=object)}):
        prompt = manager().sample_of(rows([1], multi_modal_data=beside)).prompt
        assert [len(turn.images) for turn in prompt] == [0, 1]
    for beside in ({}, {"images": None}, {"images": []}, {"videos": [1]}):
        assert manager().sample_of(rows([1], multi_modal_data=beside)).prompt == as_messages(CHAT)
    with pytest.raises(InputError, match="holds no raw_prompt"):
        manager().sample_of(rows([1], raw_prompt=None))


def test_prompts_that_differ_have_different_identities():
    red, blue = (Image.new("P", (2, 2), 0) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    grey = Image.new("L", (2, 2), 0)

    def user(*parts: Any) -> tuple[Any, ...]:
        return as_messages([{"role": "user", "content": [_part(part) for part in parts]}])

    def _part(part: Any) -> Any:
        return TextPart(part) if isinstance(part, str) else ImagePart(part)

    prompts = [
        user("ab"), user("a", "b"), user("b", "a"), user("a\0text\0b"), user("a\0", "b"), user("a", "\0b"),
        user(red), user(blue), user(grey), user(b"text\0a"), user("text\0a"), user(b"a"), user("a"),
        user(red, "a"), user("a", red), user(np.zeros((2, 2))), user(np.zeros((4, 1))), user(),
        as_messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        as_messages([{"role": "system", "content": "ab"}]), (),
    ]  # fmt: skip
    assert len({prompt_hash(prompt) for prompt in prompts}) == len(prompts)
    assert prompt_hash(user(red.copy(), "x")) == prompt_hash(user(red, "x"))
    for same in (np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), None, 3, [[0]]):
        assert prompt_hash(user(copy.deepcopy(same))) == prompt_hash(user(same))


def test_rows_of_a_share_are_handed_in_together_and_an_error_reaches_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(verl_reward, "_worker_number", lambda: 1)
    mine = manager(*colocated("judge"), "reward.num_workers=2")
    assert mine.colocated
    handed: list[Any] = []

    async def join_share(samples: list[Sample], worker: int, workers: int) -> list[Scored]:
        handed.append(([one.answer for one in samples], worker, workers))
        if len(handed) > 1:
            raise EngineError("down")
        return [Scored(float(len(one.answer)), {}) for one in samples]

    mine.client.join_share = join_share  # type: ignore[method-assign]
    batch = rows([1], [2, 22], [3], streamed=False)

    async def share() -> list[Any]:
        tasks = [asyncio.create_task(mine.run_single(batch[i : i + 1])) for i in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [row["reward_score"] for row in run(share)] == [2.0, 6.0, 2.0]
    assert [str(row) for row in run(share)] == ["down"] * 3
    assert handed == [(["t1", "t2 t22", "t3"], 1, 2)] * 2


# -- the way to the actor -----------------------------------------------------------------------------------------------


class Actors:
    """Actors whose answers are given; counts how many were made."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.made = 0

    def remote(self, judge: JudgeConfig, settings: VerlSettings, stepped: bool) -> Any:
        self.made += 1
        answer = self.answers.pop(0)
        ours = isinstance(answer, MRJudgeError) and not isinstance(
            answer, RayTaskError
        )  # which is of its cause's class
        if isinstance(answer, ValueError) and not ours:
            raise answer

        class Exchange:
            @staticmethod
            async def remote(client: str, coming: Sequence[tuple[int, Sample]]) -> list[Outcome]:
                await asyncio.sleep(0)
                if answer is None:
                    await asyncio.sleep(60)
                if isinstance(answer, BaseException) and not ours:
                    raise answer
                return [(number, answer if ours else Scored(1.0, {})) for number, _ in coming]

        return type("Actor", (), {"exchange": Exchange})


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[..., JudgeActorClient]:
    real_sleep = asyncio.sleep

    class Quick:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        @staticmethod
        async def sleep(seconds: float) -> None:
            await real_sleep(seconds / 100)

    monkeypatch.setattr(verl_actor, "asyncio", Quick())

    def made(*answers: Any, **settings: Any) -> JudgeActorClient:
        mine = JudgeActorClient(JudgeConfig(), VerlSettings(**settings))
        mine._maker = Actors(*answers)
        return mine

    return made


def task_error(cause: Exception) -> Exception:
    error: Exception = RayTaskError("join", "traceback", cause).as_instanceof_cause()
    return error


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ((RayActorError(), RayActorError(), RayActorError()), EngineError, "died 3 times under the same sample"),
        ((ConfigError("no such model"),), ConfigError, "no such model"),
        ((task_error(ConfigError("no such file")),), ConfigError, "no such file"),
        ((TypeError("cannot pickle"),), EngineError, "not brought to the judge actor: TypeError"),
        ((task_error(EngineError("down")),), EngineError, "down"),
        ((task_error(TimeoutError("slow")),), EngineError, "the judge actor: TimeoutError"),
        ((task_error(ValueError("odd")),), EngineError, "the judge actor: ValueError"),
        ((ray.exceptions.RaySystemError("lost"),), EngineError, "cannot be reached"),
        ((None,), EngineError, "no answer of the judge actor within"),
    ],
    ids=str,
)
def test_what_goes_wrong_on_the_way_is_an_error_of_ours(client: Any, answers: Any, error: Any, message: str):
    mine = client(*answers)
    if answers == (None,):
        mine._patience_s = 0.05
    with pytest.raises(error, match=message):
        run(lambda: mine.join(sample(0, "a")))
    assert mine._maker.made == len(answers)


def test_a_dead_actor_is_made_again_once_for_all_that_waited(client: Any):
    mine = client(RayActorError(), ValueError("the name is being given up"), "works")

    async def many() -> list[Scored]:
        return await asyncio.gather(*(mine.join(sample(member, "a")) for member in range(3)))

    assert [scored.reward for scored in run(many)] == [1.0] * 3
    assert mine._maker.made == 3


def test_actor_options_that_ray_does_not_take_are_told_at_once():
    for options in ({"num_gpu": 1}, {"name": "mine"}, {"max_concurrency": 5}):
        with pytest.raises(ConfigError, match="actor_options"):
            JudgeActorClient(JudgeConfig(), VerlSettings(actor_options=options))
    JudgeActorClient(JudgeConfig(), VerlSettings(actor_options={"num_gpus": 0.5, "num_cpus": 1}))


def test_workers_of_a_run_agree_on_the_actors_name_and_other_runs_have_another():
    served = {"model": "m", "base_url": "http://a/v1", "context_tokens": 100}
    settings = {"judge": {"schedule": "ring"}, "deadline_s": 5.0}
    name = VerlSettings(**settings).actor_name(served)
    assert VerlSettings(**settings).actor_name(dict(reversed(served.items()))) == name
    assert pickle.loads(pickle.dumps(VerlSettings(**settings))).actor_name(served) == name
    assert len({name, VerlSettings(**settings).actor_name(), VerlSettings(judge={}).actor_name(served)}) == 3


def test_a_served_judge_needs_room_for_candidates() -> None:
    served = {"model": "judge", "base_url": "http://127.0.0.1:9/v1", "context_tokens": 1024}
    with pytest.raises(ConfigError, match="context of 1024 tokens leaves"):
        VerlSettings().check_context(served)
    VerlSettings(judge={"max_tokens": 256}).check_context(served)
    VerlSettings().check_context(served | {"context_tokens": 8192})
    VerlSettings(judge={"format": "sentiment", "verdict": "read"}).check_context(served)
    VerlSettings().check_context(None)


@pytest.mark.parametrize(
    ("value", "anchors"),
    [
        ("42", ("42",)), (42, ("42",)), (1.5, ("1.5",)), (np.int64(42), ("42",)), (None, ()), ("", ()), ([], ()),
        (["42", "forty-two"], ("42", "forty-two")), (np.array(["a", "b"], dtype=object), ("a", "b")),
        (np.array(["42", "42"], dtype=object), ("42",)), ("<think>Hm.</think>42", ("42",)), ("<think>Hm.", ()),
        (["<think>Hm.</think>42", "42", "<think>Hm."], ("42",)),
    ],
    ids=repr,
)  # fmt: skip
def test_anchors_of_a_row_are_texts_and_numbers_without_their_reasoning(value: Any, anchors: tuple[str, ...]):
    mine = manager(anchor_field="reward_model.ground_truth")
    row = rows([1], reward_model={"ground_truth": value}, extra_info={})
    for given in (row, carried_by_prompt(row)):
        found = mine.sample_of(with_carried(given))
        assert found.anchors == anchors
        assert found.reference is None
    assert pickle.loads(pickle.dumps(found)) == found
    assert manager().sample_of(row).anchors is None
    with pytest.raises(InputError, match=r"reward_model\.ground_truth: the anchor must be text.* fields a; name one"):
        mine.sample_of(rows([1], reward_model={"ground_truth": {"a": 1}}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"judge": {"model": "m", "centre": True}},
            "anchor_field='extra_info.x' gives rewards a level, and centre takes",
        ),
        ({"reference_field": "extra_info.x"}, "anchor_field='extra_info.x' is also shown as the reference"),
        ({"reference_field": "extra_info"}, "anchor_field='extra_info.x' is also shown as the reference"),
    ],
)
def test_anchors_that_would_do_nothing_are_refused_before_the_run(settings: dict[str, Any], says: str):
    with pytest.raises(ConfigError, match=says):
        manager(anchor_field="extra_info.x", **settings)
    manager(anchor_field="extra_info.x", reference_field="extra_info.y")


def test_a_colocated_run_that_does_not_pass_anchors_is_refused():
    with pytest.raises(ConfigError, match="does not pass what anchor_field need"):
        manager(*colocated("some/judge"), judge={}, anchor_field="extra_info.x")
