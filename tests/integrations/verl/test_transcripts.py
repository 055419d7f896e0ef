"""What a session did reaches its reward message by message: verl's own tool agent without a model, workers, rows."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopMetrics,
    AgentLoopOutput,
    DictConfigWrap,
    ToolListWrap,
)
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.function_tool import FunctionTool
from verl.tools.schemas import OpenAIFunctionToolSchema
from verl.workers.rollout.replica import TokenOutput

from mrjudge_reward.completions import judged, readable
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.integrations.trl.rows import RowReader
from mrjudge_reward.integrations.verl.reward_manager import with_carried
from mrjudge_reward.integrations.verl.settings import CARRIED, COMPLETION
from mrjudge_reward.messages import UnshownPart, final_answer
from tests.support.tool_runs import CALL, chat_template
from tests.support.verl_setup import colocated, verl_config

from .test_reward_manager import CARRYING, CHAT, manager, rows

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl's trainer tells of every engine that is not installed
    from mrjudge_reward.integrations.verl.agent_loop import (
        GroupAgentLoopWorker,
        GroupAgentLoopWorkerV0,
        TellingToolAgentLoop,
        telling,
    )

LOOK = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
SESSIONS: list[list[dict[str, Any]]] = [
    [{"role": "assistant", "content": "Hello."}],
    [{"role": "assistant", "content": "", "tool_calls": [LOOK]}],
    [{"role": "assistant", "content": "", "tool_calls": [LOOK]}, {"role": "tool", "content": "-3 C"}],
    [
        {"role": "assistant", "content": "<think>hm</think>I look.", "tool_calls": [LOOK]},
        {"role": "tool", "content": "-3 C <answer>A</answer>"},
        {"role": "assistant", "content": "Cold."},
    ],
    [
        {"role": "assistant", "content": "", "tool_calls": [{**LOOK, "id": "1"}, {**LOOK, "id": "2"}]},
        {"role": "tool", "content": "two", "tool_call_id": "2"}, {"role": "tool", "content": "one", "tool_call_id": "1"},
        {"role": "assistant", "content": "Both."},
    ],
    [{"role": "assistant", "content": "a1"}, {"role": "user", "content": "b2"}, {"role": "assistant", "content": "c3"}],
    [{"role": "assistant", "content": "a1"}, {"role": "environment", "content": "b2\n"}],
    [{"role": "assistant", "content": [{"type": "audio", "audio": "x"}]}],
    [{"role": "assistant", "content": "\ufffc[result 1]30 C\ufffc[end]"}, {"role": "tool", "content": "\ufffc[end]"}],
    [{"role": "assistant", "content": "<think>never closed"}, {"role": "tool", "content": ""}],
    [{"role": "tool", "content": "the setting"}, {"role": "assistant", "content": None}],
]  # fmt: skip


@pytest.mark.parametrize("view", ["transcript", "final"])
@pytest.mark.parametrize("number", range(len(SESSIONS)))
def test_rows_of_every_path_say_what_trl_says_of_the_same_messages(view: Any, number: int):
    messages = SESSIONS[number]
    told = {"messages": messages, "length": 17, "as_sampled": True}
    carried = [{**CHAT[0], CARRIED: {COMPLETION: told, "uid": "u1"}}, *CHAT[1:]]
    raw = np.empty(1, dtype=object)
    raw[0] = carried
    colocated_row = rows([1, 2], raw_prompt=None, streamed=False)
    colocated_row.non_tensor_batch["raw_prompt"] = raw
    streamed = rows([1, 2])
    streamed.non_tensor_batch["tool_extra_fields"] = np.array([{COMPLETION: told}], dtype=object)
    before = rows([1, 2], streamed=False)
    before.non_tensor_batch[COMPLETION] = np.array([told], dtype=object)
    (trl,) = RowReader(None, None, None, "strip", view).rows([CHAT], [messages], None, {}, None)
    mine = manager(view=view)
    for row in (with_carried(colocated_row), streamed, before):
        sample = mine.sample_of(row)
        assert (sample.answer, sample.images, sample.length) == (trl.answer.text, trl.answer.images, 17)


def test_a_session_of_several_turns_without_its_messages_is_refused():
    several = rows([1, 2])
    several.non_tensor_batch["__num_turns__"] = np.array([4])
    with pytest.raises(InputError, match=r"4 turns does not tell.*GroupAgentLoopManager"):
        manager().sample_of(several)
    several.non_tensor_batch["__num_turns__"] = np.array([2])
    assert manager().sample_of(several).answer == "t1 t2"


@pytest.mark.parametrize(
    ("as_sampled", "text", "shown"),
    [
        (True, "plan</think>Cold.", "Cold."),
        (True, "unfinished plan", ""),
        (False, "Cold.", "Cold."),
        (False, "<think>plan</think>Cold.", "Cold."),
    ],
)
def test_reasoning_that_a_template_opened_is_known_in_what_was_sampled(as_sampled: bool, text: str, shown: str):
    mine = manager()
    mine._opened = True
    row = rows([1], streamed=False)
    told = {"messages": [{"role": "assistant", "content": text}], "as_sampled": as_sampled, "length": 3}
    row.non_tensor_batch[COMPLETION] = np.array([told], dtype=object)
    assert mine.sample_of(row).answer == shown


@pytest.mark.parametrize(
    "override",
    [
        "actor_rollout_ref.rollout.multi_turn.enable=True",
        "actor_rollout_ref.rollout.multi_turn.function_tool_path=/tools.py",
        "actor_rollout_ref.rollout.multi_turn.tool_config_path=/tools.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
    ],
)
def test_a_run_with_tools_needs_a_manager_that_tells(override: str):
    with pytest.raises(ConfigError, match="which tokens of a session the policy wrote"):
        manager(override)
    manager(override, CARRYING)
    manager(override, CARRYING, *colocated("policy"))


@pytest.mark.parametrize("kind", ["audio", "video", "input_audio"])
def test_a_part_that_cannot_be_shown_is_no_error_of_the_row(kind: str):
    chat = [{"role": "user", "content": [{"type": kind, kind: b"x"}, {"type": "text", "text": "?"}]}]
    sample = manager().sample_of(rows([1], raw_prompt=chat))
    assert [part.kind for part in sample.prompt[0].content if isinstance(part, UnshownPart)] == [kind]


# -- what a worker carries ------------------------------------------------------------------------------------------------


def output(mask: Sequence[int], **extra: Any) -> AgentLoopOutput:
    return AgentLoopOutput(
        prompt_ids=[1], response_ids=list(range(10, 10 + len(mask))), response_mask=list(mask),
        metrics=AgentLoopMetrics(), extra_fields=extra,
    )  # fmt: skip


class Tokenizer:
    all_special_tokens = ("<|im_end|>",)

    def decode(self, ids: Any, skip_special_tokens: bool) -> str:
        return " ".join(f"t{int(i)}" for i in ids)


MESSAGES = SESSIONS[3]
BY_MASK = [
    {"role": "assistant", "content": "t10 t11"},
    {"role": "environment", "content": "t12"},
    {"role": "assistant", "content": "t13"},
]


@pytest.mark.parametrize(
    ("mask", "extra", "told"),
    [
        ([1, 1], {}, None),
        ([1, 1, 0, 1], {}, {"messages": BY_MASK, "length": 3, "as_sampled": True}),
        ([1, 1, 0, 1], {COMPLETION: MESSAGES}, {"messages": MESSAGES, "length": 3, "as_sampled": False}),
        (
            [1, 1],
            {COMPLETION: {"messages": MESSAGES[:1], "as_sampled": True}},
            {"messages": MESSAGES[:1], "length": 2, "as_sampled": True},
        ),
    ],
)
@pytest.mark.parametrize("path", ["V1", "V1 colocated", "V0", "V0 colocated"])
def test_a_worker_carries_it_on_every_path(
    monkeypatch: pytest.MonkeyPatch, mask: Any, extra: Any, told: Any, path: str
):
    seen: list[Any] = []

    async def scored(self: Any, outputs: list[Any], kwargs: Any) -> None:
        seen.append(outputs[-1].extra_fields.get(COMPLETION))

    kind = GroupAgentLoopWorker if path.startswith("V1") else GroupAgentLoopWorkerV0
    monkeypatch.setattr(kind.__bases__[-1], "_compute_score", scored)
    worker: Any = object.__new__(kind)
    worker.tokenizer = Tokenizer()
    worker.reward_loop_worker_handles = None if "colocated" in path else [object()]
    one, session = output(mask, turn_scores=[], **extra), {"raw_prompt": CHAT, "uid": "u"}
    asyncio.run(worker._compute_score([output([0, 0]), one], kwargs=session))
    in_prompt = session["raw_prompt"][0].get(CARRIED, {}).get(COMPLETION)  # type: ignore[attr-defined,index]
    assert seen == [None if path == "V1 colocated" else told]
    assert in_prompt == (told if path == "V1 colocated" else None)
    assert one.extra_fields.get(COMPLETION) == (told if path == "V0 colocated" else None), (
        "it goes no further than needed"
    )
    assert CARRIED not in CHAT[0], "the data set's own chat stays as it is"


def test_only_verls_own_tool_agent_is_replaced():
    ours = f"{TellingToolAgentLoop.__module__}.{TellingToolAgentLoop.__qualname__}"
    stock = f"{ToolAgentLoop.__module__}.{ToolAgentLoop.__qualname__}"
    assert telling({"_target_": stock, "x": 1}) == {"_target_": ours, "x": 1}
    for other in ({"_target_": "own.Loop"}, {"_target_": ours}):
        assert telling(other) == other


# -- verl's tool agent ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(smol_path: str) -> Callable[..., AgentLoopOutput]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smol_path)
    tokenizer.chat_template = chat_template()
    schema = {
        "type": "function",
        "function": {
            "name": "weather", "description": "Looks it up.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }  # fmt: skip

    @cache
    def config_of(*overrides: str) -> Any:
        return verl_config(smol_path, {}, *overrides)

    def run(turns: Sequence[str], result: str = "-3 C", **settings: int | str) -> AgentLoopOutput:
        tool = FunctionTool("weather", lambda city: f"{city}: {result}", OpenAIFunctionToolSchema(**schema))
        left = [tokenizer.encode(f"{turn}<|im_end|>", add_special_tokens=False) for turn in turns]

        async def generate(**_: Any) -> TokenOutput:
            return TokenOutput(token_ids=left.pop(0), extra_fields={"min_global_steps": 1, "max_global_steps": 1})

        length = settings.pop("response_length", 200)
        turns_of = (f"actor_rollout_ref.rollout.multi_turn.{name}={value}" for name, value in settings.items())
        config = config_of(f"data.max_response_length={length}", "data.max_prompt_length=512", *turns_of)

        async def go() -> AgentLoopOutput:
            loop = TellingToolAgentLoop(
                trainer_config=DictConfigWrap(config), server_manager=SimpleNamespace(generate=generate),
                tokenizer=tokenizer, processor=None, dataset_cls=None, data_config=DictConfigWrap(config.data),
                tools=ToolListWrap([tool]),
            )  # fmt: skip
            return await loop.run({}, raw_prompt=[{"role": "user", "content": "What is the weather in Oslo?"}])

        return asyncio.run(go())

    return run


CALLS = CALL.format(city="Oslo")
ASKED = '[Tool call 1]\nweather {"city": "Oslo"}\n[End of tool call 1]'
TOLD = "[Tool result 1, not written by the responder]\nOslo: -3 C\n[End of tool result 1]"


@pytest.mark.parametrize(
    ("turns", "settings", "shown"),
    [
        (["Cold, I guess."], {}, "Cold, I guess."),
        ([CALLS, "Cold."], {}, f"{ASKED}\n{TOLD}\nCold."),
        ([f"I look. {CALLS}", "Cold."], {}, f"I look.\n{ASKED}\n{TOLD}\nCold."),
        # The last turn is one that verl keeps no message of.
        ([CALLS, "Cold."], {"max_assistant_turns": 2}, f"{ASKED}\n{TOLD}\nCold."),
        ([CALLS, CALLS], {"max_assistant_turns": 2}, f"{ASKED}\n{TOLD}\n{ASKED.replace(' 1', ' 2')}"),
        (["one two three four five six"], {"response_length": 4}, "one two three four"),
        ([f"I look. {CALLS}"], {"response_length": 3}, "I look."),
        # What had no room in the response the policy never saw.
        ([CALLS, "Cold."], {"response_length": 30}, ASKED),
        (["<think>hm</think>Cold."], {}, "Cold."),
        ([""], {}, ""),
        (["[Tool result 1]\n30 C"], {}, "[Tool result 1]\n30 C"),
    ],
)
def test_what_verls_tool_agent_tells(session: Any, turns: list[str], settings: dict[str, int], shown: str):
    done = session(turns, **settings)
    assert readable(judged(done.extra_fields[COMPLETION]["messages"]).text) == shown
    assert done.extra_fields["max_global_steps"] == 1, "what verl keeps there is there"
    assert "turn_scores" in done.extra_fields


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "CITY"}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nCITY\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>CITY</arg_value>\n</tool_call>",
    "seed": "<seed:tool_call><function=weather><parameter=city>CITY</parameter></function></seed:tool_call>",
    "minimax": '<minimax:tool_call><invoke name="weather"><parameter name="city">CITY</parameter></invoke>'
    "</minimax:tool_call>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "CITY"}<|tool_call_end|><|tool_calls_section_end|>',
    "deepseek_v4": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">CITY'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    "gemma4": '<|tool_call>call:weather{city:<|"|>CITY<|"|>}<tool_call|>',
}
"""A call in every form that verl reads, beside gpt-oss's."""


def seen(done: AgentLoopOutput, opened: bool = False) -> str:
    answer_of = partial(final_answer, opened=opened)
    return readable(judged(done.extra_fields[COMPLETION]["messages"], answer_of=answer_of).text)


@pytest.mark.parametrize(
    "city", ["Oslo", "Sào Paulo", 'a \\ "b" c', "🙂 null true 3.0", "Oslo, then 'Rome'\tand <b>Bonn</b>"]
)
@pytest.mark.parametrize("form", WRITTEN)
def test_a_call_in_any_form_is_told_as_a_call(session: Any, form: str, city: str):
    inside = json.dumps(city, ensure_ascii=False)[1:-1] if form in ("hermes", "kimi") else city
    done = session([f"I look. {WRITTEN[form].replace('CITY', inside)}"], format=form, max_assistant_turns=1)
    shown = f"I look.\n[Tool call 1]\nweather {json.dumps({'city': city}, ensure_ascii=False)}\n[End of tool call 1]"
    assert seen(done) == shown


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_every_call_is_told_whether_verl_runs_it_or_not(session: Any, limit: int):
    """It runs one of a turn, or ``max_parallel_calls``."""
    cities = ["Oslo", "Rome", "Bonn"]
    done = session(["\n".join(CALL.format(city=city) for city in cities), "Cold."], max_parallel_calls=limit)
    calls = [
        f'[Tool call {n}]\nweather {{"city": "{city}"}}\n[End of tool call {n}]' for n, city in enumerate(cities, 1)
    ]
    results = [
        TOLD.replace("Oslo", city).replace("result 1", f"result {n}") for n, city in enumerate(cities[:limit], 1)
    ]
    assert seen(done) == "\n".join([*calls, *results, "Cold."])


UNREAD = [
    # hermes deletes what is no call
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}\n</tool_call>'),
    ("hermes", 'Let me see. <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}\n</tool_call>'),
    ("hermes", "<tool_call>[1]</tool_call>"),
    ("hermes", '<tool_call>{"nom": 3}</tool_call>'),
    ("hermes", "<tool_call></tool_call>"),
    ("hermes", f"<tool_call>weather in Oslo</tool_call>{CALL.format(city='Oslo')}"),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}, "why": "I own you"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "city": "Oslo"}}</tool_call>'),
    # the others what follows a call, too
    *((form, f"I look. {WRITTEN[form].replace('CITY', 'Oslo')} It must be cold.") for form in WRITTEN if form != "hermes"),
    *((form, f"{WRITTEN[form].replace('CITY', 'Oslo')} 👎") for form in WRITTEN if form != "hermes"),
    ("qwen3_coder", "<tool_call><function=weather</tool_call>"),
    ("qwen3_coder", "<tool_call><function=weather><parameter=city>Oslo</parameter>And be quick</function></tool_call>"),
    ("glm", "<tool_call>weather<arg_key>city</arg_key><arg_value>Oslo</arg_value><arg_key>day</arg_key>1</tool_call>"),
    ("seed", "<seed:tool_call>weather in Oslo</seed:tool_call>"),
    ("minimax", "<minimax:tool_call>weather in Oslo</minimax:tool_call>"),
    ("kimi", WRITTEN["kimi"].replace('"CITY"', "Oslo")),
    ("gemma4", "<|tool_call>weather in Oslo<tool_call|>"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "turn"), UNREAD)
def test_a_turn_that_verls_parser_does_not_read_whole_is_told_as_it_stands(session: Any, form: str, turn: str):
    assert seen(session([turn], format=form, max_assistant_turns=1)) == turn.strip()
    if form == "hermes":
        done = session([turn, "Cold."], format=form)
        assert seen(done).startswith(turn), "nor where the session goes on"


@pytest.mark.parametrize("form", ["hermes", "glm", "deepseek_v4"])
@pytest.mark.parametrize("opened", [True, False])
def test_reasoning_that_a_parser_drops_does_not_take_the_answer_along(session: Any, form: str, opened: bool):
    """Its end tells that what follows is the answer, where a template opened it."""
    thought = "plan</think>" if opened else "<think>plan</think>"
    assert seen(session([f"{thought}Cold."], format=form), opened) == "Cold."
    called = session([f"{thought}I look. {WRITTEN[form].replace('CITY', 'Oslo')}"], format=form, max_assistant_turns=1)
    assert seen(called, opened) == f"I look.\n{ASKED}"


def test_a_call_in_harmony_is_told_whatever_was_thought_before(session: Any):
    """Its channels are reasoning but for the final one, so the turn as it stands would say nothing."""
    thought = "<|channel|>analysis<|message|>I wonder.<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
    done = session([f"{thought}{call}"], format="gpt-oss", max_assistant_turns=1)
    assert seen(done) == ASKED
