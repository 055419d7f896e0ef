"""What TRL's rows become: completions of calls and results, lengths, prompts that an environment made different."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mrjudge_reward import InputError, JudgeConfig, ScriptedEngine
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.integrations.trl import JudgeReward
from mrjudge_reward.integrations.trl.rows import ITS_OWN, common_prompt, own_length
from mrjudge_reward.messages import as_messages
from mrjudge_reward.scoring.rewards import RewardShape

CALL = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
}  # fmt: skip
RESULT = {"role": "tool", "name": "weather", "content": "-3 C"}
CALLED = '[Tool call 1]\nweather {"city": "Oslo"}\n[End of tool call 1]'
TOLD = "[Tool result 1, not written by the responder]\n-3 C\n[End of tool result 1]"


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def asks(*texts: str) -> list[dict[str, Any]]:
    roles = ("system", "user") if len(texts) > 1 else ("user",)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def judged(prompts: Any, completions: Any, **more: Any) -> tuple[JudgeReward, list[float | None], list[str]]:
    engine = ScriptedEngine.by_utility(len)
    settings = {name: more.pop(name) for name in ("view", "thinking") if name in more}
    judge = JudgeConfig(model="x", audit=False, max_failed_fraction=1.0).build(engine)
    reward = JudgeReward(judge, num_generations=len(completions), on_abstain="none", **settings)
    rewards = reward(prompts, completions, **more)
    shown: list[str] = []
    for request in engine.requests:
        code = request.messages[-1].text.split("\n")[0][-9:]
        shown += [text.replace(code, "]") for text in shown_candidates(request).values()]
    return reward, rewards, shown


@pytest.mark.parametrize(
    ("view", "completion", "shown"),
    [
        ("transcript", [CALL], CALLED),
        ("final", [CALL], CALLED),
        ("transcript", [CALL, RESULT], f"{CALLED}\n{TOLD}"),
        ("final", [CALL, RESULT], CALLED),
        ("transcript", [CALL, RESULT, said("Cold.")], f"{CALLED}\n{TOLD}\nCold."),
        ("final", [CALL, RESULT, said("Cold.")], "Cold."),
        ("transcript", [said("<think>x</think>Cold.")], "Cold."),
        ("final", [{**CALL, "content": "I look."}], f"I look.\n{CALLED}"),
        ("transcript", [{**CALL, "content": "<think>x</think>I look."}, RESULT], f"I look.\n{CALLED}\n{TOLD}"),
        ("transcript", [{**CALL, "content": None}, RESULT, said("<think>never closed")], f"{CALLED}\n{TOLD}"),
    ],
)
def test_the_judge_is_shown_what_the_view_says(view: str, completion: Any, shown: str):
    _, _, seen = judged([asks("Weather?")] * 2, [completion, [said("I cannot know that.")]], view=view)
    bare = {text.replace(" ]", "]") for text in seen}
    assert bare == {shown, "I cannot know that."}


def test_a_view_that_there_is_not_is_refused():
    with pytest.raises(Exception, match="view must be one of transcript, final; got 'last'"):
        JudgeReward(num_generations=2, view="last")  # type: ignore[arg-type]


class Trainer:
    """Knows with which tokens it puts in what tools return."""

    def _get_tool_suffix_ids(self, messages: list[Any]) -> list[int]:
        return [0] * (4 + sum(len(message["content"]) for message in messages))


LONG = {"role": "tool", "content": "x" * 30}


@pytest.mark.parametrize(
    ("completion", "tokens", "trainer", "length"),
    [
        ("plain", 5, Trainer(), 5),
        ([said("a")], 7, Trainer(), 7),
        ([CALL, RESULT, said("b")], 30, Trainer(), 30 - 8),
        ([CALL, RESULT, RESULT, said("b")], 40, Trainer(), 40 - 12),
        ([CALL, LONG, CALL, RESULT, said("b")], 90, Trainer(), 90 - 34 - 8),
        ([CALL, RESULT], 20, Trainer(), 12),
        ([CALL, RESULT, said("b")], 30, SimpleNamespace(), 30),  # AsyncGRPO's ids are the policy's alone
        ([said("a" * 50)], 10, None, 10),
        ([said("a" * 100), {"role": "tool", "content": "x" * 10000}], 1000, None, 10),
        ([], 0, Trainer(), 0),
    ],
)
def test_what_tools_return_is_not_the_policys_length(completion: Any, tokens: int, trainer: Any, length: int):
    assert own_length(completion, [0] * tokens, trainer) == pytest.approx(length, abs=1)


def test_without_tokens_length_is_in_the_policys_characters():
    engine = ScriptedEngine.by_utility(lambda text: 1.0)
    judge = JudgeConfig(model="x", audit=False).build(engine)
    reward = JudgeReward(judge, num_generations=2, shape=RewardShape(length_weight=1.0))
    by_length = reward(
        [asks("q")] * 2, [[CALL, {**RESULT, "content": "x" * 5000}, said("a")], [CALL, RESULT, said("bb")]]
    )
    assert by_length[0] > by_length[1], "the second wrote a letter more"  # type: ignore[operator]


A, B, C = (asks(text)[0] for text in "abc")
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("prompts", "common", "own"),
    [
        ([[A], [A]], [A], [[], []]),
        ([[SYSTEM, A], [SYSTEM, B]], [SYSTEM], [[A], [B]]),
        ([[A], [B]], None, [[A], [B]]),
        ([[SYSTEM, A, B], [SYSTEM, A]], [SYSTEM, A], [[B], []]),
        ([[SYSTEM, A], [SYSTEM, B], [SYSTEM, A]], [SYSTEM], [[A], [B], [A]]),
        ([[A, B], [B, A]], None, [[A, B], [B, A]]),
        ([[SYSTEM, A, C], [SYSTEM, B, C]], [SYSTEM], [[A, C], [B, C]]),
        ([["a"], ["b"]], None, None),
        ([[{**A, "content": None}], [A]], None, [[{**A, "content": None}], [A]]),
        ([[SYSTEM], [SYSTEM, A]], [SYSTEM], [[], [A]]),
    ],
)
def test_what_prompts_of_an_environment_have_in_common(prompts: Any, common: Any, own: Any):
    if own is None:
        prompts, own = [[asks(text)[0] for text in one] for one in prompts], [[A], [B]]
    prompt, rest = common_prompt([as_messages(one) for one in prompts])
    assert prompt == as_messages(common if common is not None else ITS_OWN)
    assert rest == [as_messages(one) for one in own]


def test_each_candidates_own_context_is_told_beside_it():
    prompts = [asks("Play.", f"The board is {n}.") for n in range(2)]
    _, rewards, shown = judged(prompts, [[said("a1")], [said("b2!")]], environments=[object()] * 2)
    assert None not in rewards
    assert {text.replace(" ]", "]") for text in shown} == {
        "[Message, not written by the responder]\nuser: The board is 0.\n[End of message]\na1",
        "[Message, not written by the responder]\nuser: The board is 1.\n[End of message]\nb2!",
    }


@pytest.mark.parametrize("environments", [None, [None, None], [object(), None]])
def test_prompts_that_no_environment_made_different_are_refused(environments: Any):
    more = {} if environments is None else {"environments": environments}
    with pytest.raises(InputError, match=r"rows 0\.\.1 should answer one prompt.*environment_factory"):
        judged([asks("s", "a"), asks("s", "b")], [[said("a1")], [said("b2")]], **more)


FRAME = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (FRAME, True), (torch.tensor(FRAME), True), (torch.tensor(FRAME.transpose(2, 0, 1).copy()), True),
        (FRAME[..., 0], True), (FRAME[::2], True),
        (FRAME / 255, False), (torch.zeros(3, 8, 9), False), (FRAME.tolist(), False), (3, False), (None, False),
        ({"bytes": None, "path": None}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["prompt", "result"])
def test_a_frame_is_shown_and_what_is_no_image_costs_what_it_is_shown_in_and_not_the_run(
    image: Any, shown: bool, where: str
):
    """Rows hold copies of their own."""

    def part() -> dict[str, Any]:
        return {"type": "image", "image": copy.deepcopy(image)}

    prompt = (lambda: [{"role": "user", "content": [part()]}]) if where == "prompt" else lambda: asks("q")
    tool = [CALL, {"role": "tool", "content": [part()]}, said("a")]
    judge = JudgeConfig(model="x", audit=False, max_failed_fraction=1.0).build(ScriptedEngine.by_utility(len))
    reward = JudgeReward(judge, num_generations=2, on_abstain="none")
    completions = [[said("a")] if where == "prompt" else tool, [said("bb")], [said("a")], [said("bb")]]
    rewards = reward([prompt(), prompt(), asks("q"), asks("q")], completions)
    assert [one is not None for one in rewards] == [shown, shown, True, True]
    assert ("image (2)" in reward.last_stats.failures) != shown


@pytest.mark.parametrize("kind", ["audio", "video", "input_audio"])
def test_an_audio_prompt_fails_its_group_and_not_the_run(kind: str):
    def heard() -> list[dict[str, Any]]:  # every row holds arrays of its own
        return [{"role": "user", "content": [{"type": kind, kind: np.zeros(4)}, {"type": "text", "text": "?"}]}]

    engine = ScriptedEngine.by_utility(len)
    judge = JudgeConfig(model="x", audit=False, max_failed_fraction=1.0).build(engine)
    reward = JudgeReward(judge, num_generations=2, on_abstain="none")
    rewards = reward([heard(), heard(), *[asks("q")] * 2], [[said(text)] for text in ("a", "bb", "a", "bb")])
    assert rewards[:2] == [None, None]
    assert None not in rewards[2:]
    assert f"{kind} (2)" in reward.last_stats.failures
    assert f"leave out rows with parts of type {kind}" in reward.last_stats.advice


@pytest.mark.parametrize(
    ("last", "parsed", "shown"),
    [
        ("plan</think>Cold.", "Cold.", f"{CALLED}\n{TOLD}\nCold."),
        ("unfinished plan", "unfinished plan", f"{CALLED}\n{TOLD}"),
        ("</think>", "", f"{CALLED}\n{TOLD}"),
        ("</think>Cold.", "Cold.", f"{CALLED}\n{TOLD}\nCold."),
    ],
)
def test_reasoning_that_was_cut_in_the_last_of_several_turns_is_no_answer(
    smol_tokenizer: Any, last: str, parsed: str, shown: str
):
    tokenizer = copy.deepcopy(smol_tokenizer)
    tokenizer.chat_template += "<think>\n"

    class Thinking(Trainer):
        processing_class = tokenizer
        model = SimpleNamespace(training=True)
        reward_funcs = (None,)

        def log_metric(self, name: str, value: float) -> None:
            """As TRL takes it."""

    trainer = Thinking()
    ids = [1, 2, *trainer._get_tool_suffix_ids([RESULT]), *tokenizer.encode(last, add_special_tokens=False)]
    other = tokenizer.encode("</think>I cannot know that.", add_special_tokens=False)
    _, _, seen = judged(
        [asks("Weather?")] * 2,
        [[CALL, RESULT, said(parsed)], [said("I cannot know that.")]],
        completion_ids=[ids, other],
        log_metric=trainer.log_metric,
    )
    assert {text.replace(" ]", "]") for text in seen} == {shown, "I cannot know that."}
