"""TRL's own scoring loop of AsyncGRPO, with judged groups in its queue; only the generating is left out."""

from __future__ import annotations

import asyncio
import copy
import math
import multiprocessing
import pickle
import queue
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState

from mrjudge_reward import Choice, Judge, JudgeConfig, ScriptedEngine
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.types import EngineFailure, Reply, Request

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker, RolloutGroup, TrainingSequence

    from mrjudge_reward.integrations.trl import JudgeReward, judge_side_by_side
    from mrjudge_reward.integrations.trl.async_grpo import JudgingRolloutLoop, _version

THINK_S = 0.15


class Slow(ScriptedEngine):
    """Takes its time with a call, and knows how many it had at once."""

    def __init__(self, script: Any, concurrent: bool) -> None:
        super().__init__(script)
        self.concurrent_calls = concurrent
        self.now = self.most = 0
        self._counting = threading.Lock()

    def _serve(self, requests: Sequence[Request]) -> list[Reply | EngineFailure]:
        with self._counting:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(THINK_S)
        with self._counting:
            self.now -= 1
            return super()._serve(requests)


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def group(number: int, completions: list[Any] | None = None, ids: list[list[int]] | None = None) -> RolloutGroup:
    """Two completions; the worker's weights are older than those that are published by now."""
    sequence = TrainingSequence([1, 2], [0, 1], [0.0, -1.0], "r")
    return RolloutGroup(
        prompts=[[{"role": "user", "content": f"Which? {number}"}]] * 2, reward_kwargs={"topic": ["fruit"] * 2},
        completions=completions or [[said(f"{number} answer {'x' * i}")] for i in range(2)],
        completions_ids=ids or [[1], [1, 2]],
        completions_sequences=[[sequence]] * 2, tool_call_counts=[0, 0], tool_failure_counts=[0, 0], model_version=3,
        group_id=str(number), env_rewards=[], rollout_rewards=[None, None], queued_at=time.monotonic(),
    )  # fmt: skip


def scored(
    tokenizer: Any, groups: int | list[RolloutGroup], *rewards: Any, **settings: Any
) -> tuple[list[Any], list[dict[str, float]], float]:
    """Samples and metrics of groups that TRL's loop scored, and the seconds it took."""
    PartialState()  # without it TRL cannot log
    context = multiprocessing.get_context("spawn")
    tokenizer = copy.copy(tokenizer)
    tokenizer.response_template = {"none": "no tool is called here"}  # else TRL wants to know the chat template
    samples: Any = queue.Queue()
    metrics: Any = queue.Queue()
    loop = JudgingRolloutLoop(
        model_name="policy", dataset=[{"prompt": "p"}], reward_funcs=list(rewards), processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id], rollout_buffer=samples, model_version_value=SimpleNamespace(value=4),
        heartbeat_value=context.Value("d", 0.0), failed_event=None, exception_info_queue=None, metrics_queue=metrics,
        num_generations=2, score_queue_maxsize=4, **settings,
    )  # fmt: skip

    async def run() -> float:
        stop = asyncio.Event()
        scoring = asyncio.create_task(loop._score_loop(stop))
        began = time.monotonic()
        for one in map(group, range(groups)) if isinstance(groups, int) else groups:
            await loop._groups_to_score.put(one)
        await loop._groups_to_score.put(None)
        await asyncio.wait_for(scoring, 30)
        return time.monotonic() - began

    try:
        took = loop._loop.run_until_complete(run())
    finally:
        loop._loop.close()
    return list(samples.queue), list(metrics.queue), took


def by_length(concurrent: bool = True, **settings: Any) -> tuple[JudgeReward, Slow]:
    engine = Slow(ScriptedEngine.by_utility(len).script, concurrent)
    judge = Judge(engine, Choice(), schedule="ring", verdict="read", **settings)
    return JudgeReward(judge, num_generations=2, name="judge"), engine


def test_groups_are_judged_side_by_side_and_each_sample_has_its_reward(smol_tokenizer: Any) -> None:
    reward, engine = by_length()
    samples, metrics, took = scored(smol_tokenizer, 12, reward)
    assert engine.most > 4
    assert took < 12 * THINK_S / 2
    assert len(samples) == 24
    for sample in samples:
        longer = sample.completion[0]["content"].endswith("x")
        assert (sample.advantage > 0) == longer
        assert (sample.metrics["rewards/judge"] > 0) == longer
    told = [one for one in metrics if "judge/calls" in one]
    assert len(told) == 12
    assert all(one["judge/calls"] == 2 and one["judge/failed_rate"] == 0 for one in told)
    assert all(math.isfinite(value) for one in told for name, value in one.items() if name.startswith("judge/"))
    keys = [judgement.group.key.split("/")[1] for judgement in reward.last_judgements]
    assert set(keys) == {"3"}, "the version that generated, not the one of today"


def test_a_judge_that_takes_one_call_at_a_time_gets_one(smol_tokenizer: Any) -> None:
    reward, engine = by_length(concurrent=False)
    samples, _, _ = scored(smol_tokenizer, 3, reward)
    assert engine.most == 1
    assert len(samples) == 6


@pytest.mark.parametrize("others", [0, 1])
def test_what_was_not_judged_stays_unscored_where_nothing_else_rewards(smol_tokenizer: Any, others: int) -> None:
    """Beside another reward TRL counts None as 0, so there it is the mean of the group."""
    engine = Slow(lambda _: EngineFailure("down"), True)
    judge = Judge(engine, Choice(), schedule="ring", verdict="read", retries=0, alarm=None)
    reward = JudgeReward(judge, num_generations=2, name="judge")
    samples, _, _ = scored(smol_tokenizer, 2, reward, *[length_reward] * others)
    assert len(samples) == 4
    for sample in samples:
        assert math.isnan(sample.metrics["rewards/judge"]) == (others == 0)
        assert (sample.advantage == 0) == (others == 0)


def length_reward(completions: Any, **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


OPENS = (
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)
OFF_BY_DEFAULT = OPENS.replace("is not defined or", "is defined and")


@pytest.mark.parametrize(
    ("ending", "kwargs", "written", "judged"),
    [
        (OPENS, {}, "an unfinished plan", ""),
        (OPENS, {}, "plan</think>Paris.", "Paris."),
        (OPENS, {"enable_thinking": True}, "an unfinished plan", ""),
        (OPENS, {"enable_thinking": False}, "Paris, of course.", "Paris, of course."),
        (OPENS, {"enable_thinking": False}, "<think>an unfinished plan", ""),
        (OFF_BY_DEFAULT, {}, "Paris, of course.", "Paris, of course."),
        (OFF_BY_DEFAULT, {"enable_thinking": True}, "an unfinished plan", ""),
        (OFF_BY_DEFAULT, {"enable_thinking": True}, "plan</think>Paris.", "Paris."),
        (OFF_BY_DEFAULT, {"enable_thinking": False, "other": 1}, "Paris, of course.", "Paris, of course."),
        ("", {"enable_thinking": True}, "Paris, of course.", "Paris, of course."),
    ],
)
def test_the_template_is_asked_as_the_policy_was(
    smol_tokenizer: Any, ending: str, kwargs: dict[str, Any], written: str, judged: str
) -> None:
    reward, _ = by_length()
    tokenizer = copy.copy(smol_tokenizer)
    tokenizer.chat_template += ending
    texts = [written, "b</think>Rome."]
    one = group(0, [[said(text)] for text in texts], [tokenizer.encode(text) for text in texts])
    scored(tokenizer, [one], reward, chat_template_kwargs=kwargs)
    assert reward.last_judgements[0].group.candidates == (judged, "Rome.")


CALL = said("") | {"tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
RESULT = {"role": "tool", "name": "weather", "content": "-3 C"}
CALLED = "plan</think><tool_call>weather</tool_call><|im_end|>"


@pytest.mark.parametrize(
    ("turns", "written", "parsed", "answer"),
    [
        (0, "plan</think>Cold.<|im_end|>", "Cold.", "Cold."),
        (0, "an unfinished plan", "an unfinished plan", ""),
        (1, "plan</think>Cold.<|im_end|>", "Cold.", "Cold."),
        (1, "plan</think>Cold, I gu", "Cold, I gu", "Cold, I gu"),
        (1, "an unfinished plan", "an unfinished plan", ""),
        (1, "a plan that only ends<|im_end|>", "a plan that only ends", ""),
        (1, "</think>Cold.<|im_end|>", "Cold.", "Cold."),
        (1, "</think><|im_end|>", "", ""),
        (3, "plan</think>Cold.<|im_end|>", "Cold.", "Cold."),
        (3, "an unfinished plan", "an unfinished plan", ""),
        (3, "x", "x", ""),
    ],
)
def test_reasoning_that_was_cut_in_the_last_turn_is_no_answer(
    smol_tokenizer: Any, turns: int, written: str, parsed: str, answer: str
) -> None:
    reward, _ = by_length()
    reward.reader.view = "final"
    tokenizer = copy.copy(smol_tokenizer)
    tokenizer.chat_template += "<think>\n"
    completions = [[*[CALL, RESULT] * turns, said(parsed)], [said("I cannot know that.")]]
    ids = [tokenizer.encode(text) for text in (CALLED * turns + written, "</think>I cannot know that.<|im_end|>")]
    scored(tokenizer, [group(0, completions, ids)], reward)
    assert reward.last_judgements[0].group.candidates == (answer, "I cannot know that.")


@pytest.mark.parametrize("criteria", ["absolute", "comparative"])
def test_rewards_by_criterion_are_judged_as_the_whole_is(smol_tokenizer: Any, criteria: Any) -> None:
    texts = ["an unfinished plan", "plan</think>Paris."]
    tokenizer = copy.copy(smol_tokenizer)
    tokenizer.chat_template += "<think>\n"
    config = JudgeConfig(model="x", criteria=criteria, rubric=["Is right.", "Is clear."])
    reward = JudgeReward(config.build(ScriptedEngine.by_utility(len)), num_generations=2, name="judge")
    one = group(0, [[said(text)] for text in texts], [tokenizer.encode(text) for text in texts])
    _, metrics, _ = scored(tokenizer, [one], *reward.components())
    (judgement,) = reward.last_judgements
    assert judgement.group.candidates == ("", "Paris.")
    assert judgement.group.key == "train/3/0/0", "both criteria are of one judging"
    assert len([told for told in metrics if "judge/calls" in told]) == 1


@pytest.mark.parametrize("factories", [None, {None: object}])
def test_prompts_that_an_environment_made_different_are_known_as_such(factories: Any) -> None:
    reward, engine = by_length()
    loop = SimpleNamespace(
        environment_factories=factories, num_generations=2, tokenizer=None, chat_template=None, chat_template_kwargs={},
        eos_token_ids=[2], _push_metrics=None, _loop=SimpleNamespace(call_soon_threadsafe=lambda *_: None),
    )  # fmt: skip
    _version.set(3)
    score = JudgingRolloutLoop._reporting(loop, reward, 1)
    prompts = [[{"role": "user", "content": f"The board is {n}."}] for n in range(2)]
    completions = [[{"role": "assistant", "content": "a" * n}] for n in (1, 2)]
    if factories is None:
        with pytest.raises(InputError, match="should answer one prompt"):
            score(prompts=prompts, completions=completions)
    else:
        assert None not in score(prompts=prompts, completions=completions)
        assert "user: The board is 1." in engine.requests[0].messages[-1].text


def test_calls_without_a_step_are_steps_of_their_own() -> None:
    reward, _ = by_length()
    keys = []
    for _ in range(3):
        reward(["q"] * 2, ["a", "b"])
        keys.append(reward.last_judgements[0].group.key)
    assert len(set(keys)) == 3
    assert [key.split("/")[1] for key in keys] == ["0", "1", "2"]


def test_the_worker_of_a_trainer_is_told_and_goes_to_its_process_with_the_reward() -> None:
    reward = JudgeReward(JudgeConfig(), num_generations=2)
    worker = AsyncRolloutWorker(reward_funcs=[reward])
    judge_side_by_side(SimpleNamespace(rollout_worker=worker))
    assert worker._loop_cls is JudgingRolloutLoop
    kind, settings = pickle.loads(pickle.dumps((worker._loop_cls, worker._loop_kwargs)))
    assert kind is JudgingRolloutLoop
    assert settings["reward_funcs"][0].num_generations == 2
    judge_side_by_side(SimpleNamespace(rollout_worker=None))
    with pytest.raises(ConfigError, match="come from SimpleNamespace, which scores in its own way"):
        judge_side_by_side(SimpleNamespace(rollout_worker=SimpleNamespace()))


@pytest.mark.parametrize("answered", [True, False])
def test_a_call_in_the_manner_of_ms_swift_is_understood(answered: bool) -> None:
    reward, engine = by_length()
    answers = ["short", "rather longer"]
    asked = [{"role": "user", "content": "Which fruit?"}]
    chats = [[*asked, {"role": "assistant", "content": answer}] if answered else asked for answer in answers]
    short, long = reward(answers, messages=chats, trainer_state=SimpleNamespace(global_step=1), solution=["", ""])
    assert short is not None
    assert long is not None
    assert short < long
    assert all("Which fruit?" in request.messages[-1].text for request in engine.requests)


def test_completions_alone_are_refused_in_words() -> None:
    reward, _ = by_length()
    with pytest.raises(Exception, match="one list came, without the column 'messages'"):
        reward(["a", "b"])
