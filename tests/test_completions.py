"""What of a completion is judged, and how it stands in a candidate's text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrjudge_reward import Group, InputError, Judge, JudgeConfig, ScriptedEngine
from mrjudge_reward.completions import (
    Candidate,
    View,
    candidate_of,
    image_numbers,
    judged,
    own_words,
    pieces,
    plain,
    readable,
    unshown,
    written,
)
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.messages import ImagePart, TextPart, UnshownPart, as_messages
from mrjudge_reward.training.items import Item
from mrjudge_reward.types import NoVerdict

RED = Image.new("RGB", (8, 8), "red")


def says(content: Any, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | ({"tool_calls": list(calls)} if calls else {})


def call(name: str, arguments: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


OSLO = call("weather", {"city": "Oslo"})


def section(of: str, text: str) -> str:
    name = of.split(",")[0]
    return f"[{of}]\n{text}\n[End of {name[0].lower()}{name[1:]}]"


def asked(number: int, text: str) -> str:
    return section(f"Tool call {number}", text)


def told(number: int, text: str) -> str:
    return section(f"Tool result {number}, not written by the responder", text)


ASKED = asked(1, 'weather {"city": "Oslo"}')


def heard(text: str) -> str:
    return section("Message, not written by the responder", text)


@pytest.mark.parametrize(
    ("completion", "transcript", "final"),
    [
        ("plain", "plain", "plain"),
        ("<think>no</think> yes ", "yes", "yes"),
        ([says("one turn")], "one turn", "one turn"),
        ([], "", ""),
        ([says(None)], "", ""),
        ([says("", OSLO)], asked(1, 'weather {"city": "Oslo"}'), asked(1, 'weather {"city": "Oslo"}')),
        (
            [says("<think>hm</think>Let me look.", OSLO), result("-3 C"), says("Cold.")],
            f"Let me look.\n{ASKED}\n{told(1, '-3 C')}\nCold.",
            "Cold.",
        ),
        ([says("", OSLO), result("-3 C")], f"{ASKED}\n{told(1, '-3 C')}", None),
        ([says("", call("now")), result(""), says("")], f"{asked(1, 'now')}\n{told(1, '')}", ""),
        ([says("", call("f", "{not json")), says("x")], f"{asked(1, 'f {not json')}\nx", "x"),
        (  # of several calls the results say whose they are: by id, by name, by order
            [
                says("", call("a", id="1"), call("b", id="2")), result("of b", tool_call_id="2"),
                result("of a", tool_call_id="1"), says("", call("c")), result("of c"), says("d"),
            ],
            "\n".join(
                [asked(1, "a"), asked(2, "b"), told(2, "of b"), told(1, "of a"), asked(3, "c"), told(3, "of c"), "d"]
            ),
            "d",
        ),
        (
            [says("", call("a"), call("b")), result("of b", name="b"), result("of a", name="a")],
            "\n".join([asked(1, "a"), asked(2, "b"), told(2, "of b"), told(1, "of a")]),
            f"{asked(1, 'a')}\n{asked(2, 'b')}",
        ),
        (
            [says("", call("a"), call("a")), result("one", name="a"), result("two", name="a")],
            "\n".join([asked(1, "a"), asked(2, "a"), told(1, "one"), told(2, "two")]),
            f"{asked(1, 'a')}\n{asked(2, 'a')}",
        ),
        (  # a result of no call
            [says("x"), result("odd"), says("y")],
            f"x\n{section('Tool result, not written by the responder', 'odd')}\ny",
            "y",
        ),
        (  # dialogue, and what an environment says first
            [{"role": "user", "content": "The board is empty."}, says("a1"), {"role": "user", "content": "b2"}, says("c3")],
            f"{heard('user: The board is empty.')}\na1\n{heard('user: b2')}\nc3",
            f"{heard('user: The board is empty.')}\nc3",
        ),
        ([says("one"), says("two")], "one\n\ntwo", "two"),
        ([result({"temperature": -3}), says("x")], None, None),
        ([says([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], "a\nb", "a\nb"),
        ([says("<think>a verdict: never closed")], "", ""),
        ([says("", {"name": "flat", "arguments": {"a": [1, None]}})], asked(1, 'flat {"a": [1, null]}'), None),
        ([says("", call("f", {"gr\u00fc\u00df": "\u732b"}))], asked(1, 'f {"gr\u00fc\u00df": "\u732b"}'), None),
    ],
)  # fmt: skip
def test_what_of_a_completion_is_judged(completion: Any, transcript: str | None, final: str | None):
    for view, wanted in (("transcript", transcript), ("final", final)):
        if wanted is not None:
            assert readable(judged(completion, view).text) == wanted  # type: ignore[arg-type]


RETURNED = [
    ["doc one", "doc two"], [], [{"title": "doc", "score": 1}], [1, 2.5, None], [["nested"], {}], {"error": "none"}, True,
    ["a", {"type": "text", "text": "b"}], -3, 0.5, [{"type": "text", "note": "no text"}], [{"type": 3}], np.array([1, 2]),
    np.float64(2.5), np.array(["a", "b"], dtype=object), [np.int64(4), np.array([5])],
]  # fmt: skip


@pytest.mark.parametrize("returned", RETURNED, ids=repr)
@pytest.mark.parametrize("role", ["tool", "function", "ipython"])
def test_a_tool_may_return_what_it_likes_and_the_judge_is_shown_it_as_json(returned: Any, role: str):
    turns = [says("", OSLO), {"role": role, "content": returned}, says("Cold.")]
    as_json = json.dumps(returned, default=lambda value: value.tolist())
    assert readable(judged(turns).text) == f"{ASKED}\n{told(1, as_json)}\nCold."
    assert as_messages(turns)[1].text == as_json


@pytest.mark.parametrize("returned", [{(1, 2): 3}, {1, 2}, b"abc", object, range(3)], ids=repr)
def test_what_json_does_not_have_is_shown_as_text(returned: Any):
    assert str(returned)[:4] in as_messages([result(returned)])[0].text


def test_parts_of_a_result_stay_parts():
    parts = [{"type": "text", "text": "Seen:"}, {"type": "image", "image": RED}]
    for given in (parts, tuple(parts), objects(*parts)):
        assert as_messages([result(given)])[0].content == (TextPart("Seen:"), ImagePart(RED))


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
@pytest.mark.parametrize("content", [["a", "b"], [{"title": "doc"}], [3], object(), {1, 2}], ids=type)
def test_a_content_of_no_tool_is_text_or_parts(role: str, content: Any):
    with pytest.raises(InputError, match=r"part must be|'content' must be text or a list of parts"):
        as_messages([{"role": role, "content": content}])


def objects(*values: Any) -> Any:
    """An array of objects, as pandas and Parquet hold lists."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


ARGUMENTS = '{"city": "Oslo"}'
FUNCTION = {"name": "weather", "arguments": ARGUMENTS}
NOTHING: list[Any] = [None, [], (), objects(), {}, "", {"name": None, "arguments": None}, {"function": {"name": None}}]


@pytest.mark.parametrize(
    "fields",
    [
        {"function_call": FUNCTION},
        {"function_call": {"name": "weather", "arguments": {"city": "Oslo"}}},
        {"function_call": FUNCTION, "tool_calls": None},
        {"function_call": FUNCTION, "tool_calls": objects()},
        {"function_call": {"name": None, "arguments": None}, "tool_calls": [OSLO]},
        {"function_call": FUNCTION, "tool_calls": [OSLO]},  # the same, said twice
        {"tool_calls": objects(OSLO)},
        {"tool_calls": OSLO},
        {"tool_calls": (OSLO, None)},
        {"tool_calls": objects(FUNCTION), "function_call": None},
    ],
)
@pytest.mark.parametrize("content", [None, "", objects()], ids=repr)
def test_a_call_is_one_call_however_a_turn_holds_it(fields: dict[str, Any], content: Any):
    turns = [
        {"role": "assistant", "content": content, **fields},
        {"role": "function", "name": "weather", "content": "-3"},
    ]
    assert readable(judged(turns).text) == f"{ASKED}\n{told(1, '-3')}"
    mine, engine = judge()
    assert mine.rank("q", [turns[:1], "no idea"]).forfeits == ()
    assert engine.requests


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
@pytest.mark.parametrize("field", ["tool_calls", "function_call"])
def test_a_field_that_says_nothing_is_no_call(field: str, nothing: Any):
    turn = {"role": "assistant", "content": "x", field: nothing}
    assert as_messages([turn])[0].content == (TextPart("x"),)
    assert judge()[0].rank("q", [[turn | {"content": ""}], "no idea"]).forfeits == (0,)


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": "", "refusal": "I will not."}, "I will not."),
        ({"content": "No.", "refusal": "I will not."}, "No.\nI will not."),
        ({"content": [], "refusal": "I will not."}, "I will not."),
        ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not."),
        ({"content": "x", "refusal": None}, "x"),
        ({"content": "", "refusal": None}, ""),
        ({"content": objects({"type": "text", "text": "a"}, {"type": "text", "text": "b"})}, "a\nb"),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, "a"),
        ({"content": objects({"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"})}, "a"),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}]}, "a"),
        ({"content": [{"type": "text", "text": "hm", "thought": True}, {"type": "text", "text": "a"}]}, "a"),
        ({"content": [{"type": "thinking", "thinking": "never answered"}]}, ""),
    ],
)
def test_a_refusal_is_an_answer_and_a_part_of_reasoning_is_none(turn: dict[str, Any], text: str):
    turn = {"role": "assistant", **turn}
    assert judged([turn]).text == judged(objects(turn), "final").text == text
    mine, _ = judge(max_failed_fraction=1.0)
    judgement = mine.rank("q", [[turn], "something else"])
    assert judgement.forfeits == (() if text else (0,))
    assert None not in judgement.scores_G


def test_arrays_of_messages_and_of_parts_are_candidates():
    parts = objects(
        {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}
    )
    assert candidate_of(objects(says("", OSLO))) == judged([says("", OSLO)])
    assert candidate_of(parts) == candidate_of("ab")


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_reasoning_of_somebody_else_is_no_answers_reasoning(kind: str):
    assert isinstance(
        as_messages([{"role": "user", "content": [{"type": kind}]}], unshown=True)[0].content[0], UnshownPart
    )


def test_an_image_given_as_an_array_is_looked_at_as_an_image():
    pixels = np.zeros((4, 4, 3), dtype=np.uint8)
    (part,) = as_messages([says([{"type": "image", "image": pixels}])])[0].content
    assert isinstance(part, ImagePart)
    assert part.image is pixels


@pytest.mark.parametrize(
    ("arguments", "shown", "in_prompt"),
    [
        ({"path": None}, '{"path": null}', "{}"),
        ({"path": None, "force": None}, '{"path": null, "force": null}', "{}"),
        ({"path": "/x", "force": None}, '{"path": "/x", "force": null}', '{"path": "/x"}'),
        ({"to": {"a": None}}, '{"to": {"a": null}}', '{"to": {"a": null}}'),
        ({"all": [None]}, '{"all": [null]}', '{"all": [null]}'),
        ({"n": 0, "no": False, "x": None}, '{"n": 0, "no": false, "x": null}', '{"n": 0, "no": false}'),
        ({}, "{}", "{}"),
        ('{"path": null}', '{"path": null}', '{"path": null}'),
        ("null", "null", "null"),
        (None, "", ""),
    ],
)  # fmt: skip
def test_an_argument_that_is_null_is_one_in_what_a_policy_called(arguments: Any, shown: str, in_prompt: str):
    """A prompt's may come of a column, in which every call has the names of all."""
    turn = says("", call("delete", arguments))
    for made in (judged([turn]), judged([turn], "final"), candidate_of([turn])):
        assert readable(made.text) == asked(1, f"delete {shown}".rstrip())
    (message,) = as_messages([turn])
    assert message.text == f"[tool call] delete {in_prompt}".rstrip()


@pytest.mark.parametrize("view", ["transcript", "final"])
def test_one_turn_is_the_same_in_both_views_and_as_text(view: View):
    for text in ("plain", "a\n\nb", "[Tool result 1]\n-3 C", " ", "<think>x</think>\ny"):
        assert judged([says(text)], view) == judged(text, view)


@pytest.mark.parametrize(
    "text",
    [
        "\ufffc", "\ufffc[end]", "\ufffc[call 1]x\ufffc[end]", "\ufffc\\[end]", "\ufffc\\\\[said]", "\ufffc[result 12]",
        "\ufffc[image " + "0" * 32 + "]", "\ufffc[unshown audio]", "\ufffc\ufffc[end]", "\ufffc[end\ufffc[end]]",
        "\ufffc[call]", "\ufffc[call one]", "[end]", "\\\ufffc[end]", "\ufffc\\", "\ufffc[said", "\ufffc [end]",
        "\ufffcimage " + "0" * 32 + "\ufffc", "a\ufffc[call 1]b\ufffc[end]c\ufffc[end]", "\ufffd[end]", "\ue000", "\uf8ff",
        "[Tool call 1]\nx\n[End of tool call 1]", "[Tool result 1, not written by the responder]\n-3 C",
    ],
)  # fmt: skip
def test_a_text_that_looks_like_a_mark_comes_through_unchanged(text: str):
    assert readable(plain(text).text) == own_words(plain(text).text) == text
    engine = ScriptedEngine.by_utility(len)
    judge = JudgeConfig(model="x", audit=False).build(engine)
    judge.rank("q", [text + "!x", "other", [says(text + "!x", call(text or "f"))]])
    shown = {candidate for request in engine.requests for candidate in shown_candidates(request).values()}
    assert f"{text}!x" in shown
    for request in engine.requests:
        assert request.messages[-1].text.count("Tool call 1 ") <= 1, "of these three one calls"
    assert unshown([plain(text).text]) == ""
    assert image_numbers([plain(text).text]) == []
    (one,) = pieces(judged([says(text), says("")]).text)
    assert (one.kind, "".join(map(str, one.parts))) == ("text", text.strip())
    inside = judged([says("", call("f", text)), result(text), says("z")]).text
    assert [piece.kind for piece in pieces(inside)] == ["call", "result", "text"]
    assert pieces(inside)[1].parts == (text,)


def test_texts_that_are_joined_do_not_make_a_mark():
    for parts in (["\ufffc", "[end]"], ["a\ufffc", "[call 1]"], ["\ufffc\\", "[end]"], ["\ufffc[e", "nd]"]):
        candidate = written([TextPart(part) for part in parts])
        assert pieces(candidate.text)[0].parts == ("".join(parts),)
    # What is taken out of an answer leaves none behind.
    answer = judged("\ufffc<|begin_of_solution|>[end]")
    assert pieces(answer.text)[0].parts == ("\ufffc[end]",)
    pictured = judged(
        [says([{"type": "text", "text": "\ufffc<|begin_of_solution|>[end]"}, {"type": "image", "image": RED}])]
    )
    assert pieces(pictured.text)[0].parts[0] == "\ufffc[end]"


def test_images_of_results_and_turns_stand_where_they_were():
    picture = {"type": "image", "image": RED}
    seen = judged([says("", OSLO), result([{"type": "text", "text": "Here:"}, picture]), says(["x", picture][1:])])
    assert readable(seen.text).splitlines()[4:] == ["Here:(image)", "[End of tool result 1]", "(image)"]
    assert [part.image for _, part in seen.images] == [RED]
    gone = judged([says([{"type": "text", "text": "<think>"}, picture, {"type": "text", "text": "</think>none"}])])
    assert readable(gone.text) == "none"
    engine = ScriptedEngine.by_utility(len)
    JudgeConfig(model="x", audit=False).build(engine).rank("q", [seen, "no picture"])
    assert [len(message.images) for message in engine.requests[0].messages][-1] == 2


@pytest.mark.parametrize(
    ("completion", "own"),
    [
        ([says("", OSLO), result("much that was found"), says("Cold.")], 'weather {"city": "Oslo"}\nCold.'),
        ([result("only a result")], ""),
        ([{"role": "user", "content": "said"}, says("a")], "a"),
        ("text", "text"),
        ([says("a"), {"role": "user", "content": "b"}, says("c")], "a\nc"),
        ([says([{"type": "image", "image": RED}])], "\ufffc"),
        ([says([{"type": "audio", "audio": "x"}])], "\ufffc"),
        ([says("", call("f"))], "f"),
        ([], ""),
        ([says("\ufffc[end]")], "\ufffc[end]"),
    ],
)
def test_what_a_policy_wrote_of_it(completion: Any, own: str):
    assert own_words(judged(completion).text) == own


def judge(**settings: Any) -> tuple[Judge, ScriptedEngine]:
    engine = ScriptedEngine.by_utility(lambda text: float(len(text)))
    return JudgeConfig(model="x", audit=False, **settings).build(engine), engine


@pytest.mark.parametrize(
    ("completion", "forfeits"),
    [
        ([says("", OSLO)], False), ([says("", OSLO), result("x")], False), ([says("", OSLO), result("x"), says("")], False),
        ([says(""), result("the tool speaks")], True), ([result("the tool speaks")], True), ([says("...")], True),
        ([{"role": "user", "content": "A setting."}, says("")], True), ([says("<think>"), result("x"), says(" ")], True),
        ([says([{"type": "image", "image": RED}])], False), ([], True),
    ],
)  # fmt: skip
def test_a_call_is_no_empty_answer_and_what_was_said_to_a_policy_is_none_of_its(completion: Any, forfeits: bool):
    mine, engine = judge()
    judgement = mine.rank("q", [judged(completion), "a real answer", "another one"])
    assert judgement.forfeits == ((0,) if forfeits else ())
    shown = {text for request in engine.requests for text in shown_candidates(request).values()}
    assert len(shown) == (2 if forfeits else 3)


@pytest.mark.parametrize("marker", ["<answer>A</answer>", "</think>", "<|im_end|>", "qcgmnqcr", "<answer>", "[THINK]"])
def test_markers_of_a_tool_are_made_safe_and_not_held_against_the_policy(marker: str):
    from mrjudge_reward.prompting.sanitizing import section_code

    marker = section_code(0, "0") if marker == "qcgmnqcr" else marker
    mine, engine = judge()
    by_tool = [says("", OSLO), result(f"found {marker} there"), says("Cold.")]
    by_policy = [says("", call("weather", {"city": marker})), result("found"), says("Cold.")]
    judgement = mine.rank("q", [judged(by_tool), judged(by_policy), judged([says("x", OSLO)])])
    assert judgement.sanitized == (1,)
    for request in engine.requests:
        for text in shown_candidates(request).values():
            assert f"found {marker} there" not in text
            assert f'"{marker}"' not in text


# -- what cannot be shown -------------------------------------------------------------------------------------------------

UNSHOWN = [
    ({"type": "audio", "audio": b"x"}, "audio"), ({"type": "video", "video": "x.mp4"}, "video"),
    ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "input_audio"),
    ({"type": "video_url", "video_url": {"url": "x"}}, "video_url"), ({"type": "audio_url"}, "audio_url"),
    ({"type": "file", "file": {}}, "file"), ({"type": "document"}, "document"), ({"type": "video"}, "video"),
    ({"type": "a b]\n[c"}, "a_b___c"), ({"type": ""}, "nameless"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name"), UNSHOWN)
def test_what_cannot_be_shown_fails_its_group_alone_with_its_name(part: dict[str, Any], name: str):
    mine, engine = judge(max_failed_fraction=1.0)
    asks = [{"role": "user", "content": [part, {"type": "text", "text": "What is said?"}]}]
    in_prompt, in_turn, in_result, fine = mine.judge(
        [
            Group.of(asks, ["a", "bb", "ccc"], "prompt"),
            Group.of("q", ["a", [says([part])], "ccc"], "turn"),
            Group.of("q", ["a", [says("", OSLO), result([part])], "ccc"], "result"),
            Group.of("q", ["a", "bb", "ccc"], "fine"),
        ]
    )
    for failed in (in_prompt, in_turn, in_result):
        assert failed.scores_G == (None, None, None)
        assert failed.games_G == (0.0, 0.0, 0.0)
        assert failed.calls == 0
        outcomes = [item.verdict.outcome for item in failed.played]
        assert outcomes
        assert all(isinstance(outcome, NoVerdict) and outcome.reason == name for outcome in outcomes)
    assert fine.best == 2
    assert engine.requests


def test_a_group_that_arrives_fails_whole_whoever_came_first():
    for first in (True, False):
        mine, _ = judge(schedule="ring", max_failed_fraction=1.0)
        texts = [judged([says([{"type": "audio"}])]).text, "bb", "ccc"]
        early = mine.early("q", 3, "k", ["0", "1", "2"])
        order = [0, 1, 2] if first else [2, 1, 0]
        for index in order:
            mine.ask_early(early.add(str(index), texts[index]))
        group = Group(as_messages("q"), tuple(texts), "k", names=("0", "1", "2"))
        (judgement,) = mine.judge([group], [early])
        assert judgement.scores_G == (None, None, None)


def test_a_judges_own_training_refuses_what_cannot_be_shown():
    asks = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "?"}]}]
    assert isinstance(as_messages(asks, unshown=True)[0].content[0], UnshownPart)
    with pytest.raises(InputError, match="a message part must be"):
        as_messages(asks)
    with pytest.raises(InputError, match="audio"):
        Item(Group.of(asks, ["a", "b"]), (0.0, 1.0), "d")


def test_a_candidate_may_be_given_in_any_form():
    assert candidate_of(Candidate("x")) == Candidate("x")
    assert candidate_of([says("x")]) == candidate_of("x") == candidate_of([TextPart("x")])
    with pytest.raises(InputError, match="candidate 0 must be text or a list of parts; got int"):
        Group.of("q", [3])  # type: ignore[list-item]
