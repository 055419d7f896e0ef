"""Layouts of public preference sets, made in their shape: each row loads right, or is refused with its field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.messages import ImagePart, as_messages, final_answer
from mrjudge_reward.training.items import from_preference
from mrjudge_reward.training.layouts import compared

Row = dict[str, Any]


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def bot(text: Any, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def part(text: str) -> list[Row]:
    return [{"type": "text", "text": text, "image": None}]


def call(name: str, arguments: Any) -> Row:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


# -- twenty hard rows in each layout ----------------------------------------------------------------------------------

TEXTS = [
    ("Name a fruit.", "Apple.", "Granite."),
    ("Break a line.", "one\u2028two\u2029three\x85four", "one two"),  # separators that are part of the text
    ("What is 2 + 2?", "<think>Two and two.</think>4", "5"),  # reasoning is dropped
    ("What is 3 + 3?", "[THINK]Hm.[/THINK]\n\n6", "<think>x</think>\n7"),
    ("Which letter?", "A", "B"),  # one letter each
    ("Which number?", "0", "1"),
    ("Write JSON.", '{"chosen": "x", "rejected": "y"}', '["a"]'),
    ("Write HTML with <image> in it.", "<p>one</p>", "<p>two</p>"),
    ("Écris en français.", "Voilà, ça va.", "Hé\u0301las\u200b."),
    ("اكتب", "مرحبا", "وداعا"),
    ("Repeat my question.", "Repeat my question.", "No."),  # an answer may be the question
    ("  Spaces around.  ", "Kept inside:  two.", "Kept  inside."),
    ("Code?", "```python\nprint('<think>')\n```", "print(1)"),  # a mark that is shown as code
    ("Line one.\nLine two.", "a\n\n\nb", "a\r\nb"),
    ("Use the word Human: in a line.", "He said: Human: hello", "Assistant: hello"),
    ("Long?", "word " * 3000 + "end", "word " * 3000 + "end."),
    ("Emoji?", "👩‍👩‍👧‍👦", "👩‍👩‍👧"),
    ("A half pair?", "x\ud83dy", "x\ude00y"),
    ("Null?", "null", "None"),
    ("Tie?", "tie", "A=B"),
]


def speakers(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if n % 2 else 'Human'}: {text}" for n, text in enumerate(turns))


def aspects(*ratings: str) -> Row:
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {name: {"Rating": said, "Rationale": "why"} for name, said in zip(names, ratings, strict=True)}


def ultrafeedback(q: str, better: str, worse: str) -> Row:
    def one(text: str, ratings: tuple[str, ...], fine: float, overall: float) -> Row:
        return {"annotations": aspects(*ratings), "custom_system_prompt": "Be kind.", "critique": "c", "model": "m",
                "fine-grained_score": fine, "overall_score": overall, "response": text}  # fmt: skip

    # The critique's score is known to be wrong in this set: 10 for what was a 1.
    answers = [one(worse, ("2", "N/A", "2", "2"), 2.0, 10.0), one(better, ("5", "4", "5", "5"), 4.75, 8.5)]
    return {"source": "s", "instruction": q, "models": ["m", "n"], "completions": answers}


def vlfeedback(q: str, better: str, worse: str) -> Row:
    notes = [{"Helpfulness": {"Rating": n, "Rationale": ""}, "Visual Faithfulness": {"Rating": n, "Rationale": ""}}
             for n in ("1", "4")]  # fmt: skip
    lists = {"annotations": notes, "model": ["m", "n"], "response": [worse, better]}  # as `datasets` keeps a sequence
    return {"id": "1", "prompt": q, "models": ["m", "n"], "completions": lists}


LAYOUTS: dict[str, Callable[[str, str, str], Row]] = {
    "TRL, texts": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "TRL, messages": lambda q, a, b: {"prompt": [user(q)], "chosen": [bot(a)], "rejected": [bot(b)]},
    "TRL, implicit prompt": lambda q, a, b: {"chosen": [user(q), bot(a)], "rejected": [user(q), bot(b)]},
    "TRL, prompt repeated in both": lambda q, a, b: {
        "prompt": q, "chosen": [user(q), bot(a)], "rejected": [user(q), bot(b)]},
    "TRL, messages repeated in both": lambda q, a, b: {
        "prompt": [user(q)], "chosen": [user(q), bot(a)], "rejected": [user(q), bot(b)]},
    "parts and nulls of a column": lambda q, a, b: {
        "prompt": None, "chosen": [user(part(q)), bot(part(a), tool_calls=None)],
        "rejected": [user(part(q)), bot(part(b), tool_calls=None)]},
    "ShareGPT": lambda q, a, b: {
        "conversations": [{"from": "human", "value": q}], "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": b}},
    "UltraInteract": lambda q, a, b: {
        "task": "Math_CoT", "dataset": "d", "trajectory": [{"from": "user", "value": q}], "chosen": a, "rejected": b,
        "id": "1", "parent_id": "0"},
    "UltraFeedback": ultrafeedback,
    "UltraFeedback, HuggingFaceH4": lambda q, a, b: {
        "prompt": q, "prompt_id": "h", "chosen": [user(q), bot(a)], "rejected": [user(q), bot(b)],
        "messages": [user(q), bot(a)], "score_chosen": 8.5, "score_rejected": 6.0},
    "UltraFeedback, argilla": lambda q, a, b: {
        "source": "s", "prompt": q, "chosen": [user(q), bot(a)], "chosen-rating": 4.5, "chosen-model": "m",
        "rejected": [user(q), bot(b)], "rejected-rating": 3.0, "rejected-model": "n"},
    "UltraFeedback, argilla's first": lambda q, a, b: {
        "instruction": q, "chosen_response": a, "rejected_response": b, "chosen_avg_rating": 4.0,
        "rejected_avg_rating": 2.5},
    "Skywork": lambda q, a, b: {"chosen": [user(q), bot(a)], "rejected": [user(q), bot(b)], "source": "magpie"},
    "Tulu, several turns": lambda q, a, b: {
        "id": "1", "source": "s", "prompt": q, "chosen": [user("Hi."), bot("Hello."), user(q), bot(a)],
        "rejected": [user("Hi."), bot("Hello."), user(q), bot(b)]},
    "Nectar": lambda q, a, b: {
        "prompt": f"\n\nHuman: {q}\n\nAssistant: ", "turns": 1, "num_responses": 2, "source": ["s"], "good_natured": True,
        "answers": [{"answer": b, "model": "m", "rank": 2.0}, {"answer": a, "model": "n", "rank": 1.0}]},
    "HelpSteer2, preferences": lambda q, a, b: {
        "split": "train", "prompt": q, "response_1": b, "response_2": a, "preference_strength": 2,
        "preference_statement": "2 is better"},
    "HelpSteer3": lambda q, a, b: {
        "domain": "general", "language": "english", "context": [user(q)], "response1": a, "response2": b,
        "overall_preference": -1, "individual_preference": [{"score": 3, "reasoning": "r"}]},
    "PKU-SafeRLHF": lambda q, a, b: {
        "prompt": q, "response_0": b, "response_1": a, "is_response_0_safe": True, "is_response_1_safe": True,
        "better_response_id": 1, "safer_response_id": 0},
    "arena, conversations": lambda q, a, b: {
        "question_id": "1", "model_a": "m", "model_b": "n", "winner": "model_b", "turn": 1,
        "conversation_a": [user(q), bot(b)], "conversation_b": [user(q), bot(a)]},
    "arena, one-hot": lambda q, a, b: {
        "id": 1, "model_a": "m", "model_b": "n", "prompt": json.dumps([q]), "response_a": json.dumps([a]),
        "response_b": json.dumps([b]), "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    "JudgeBench": lambda q, a, b: {
        "pair_id": "1", "source": "s", "question": q, "response_A": b, "response_B": a, "label": "B>A"},
    "RLAIF-V": lambda q, a, b: {
        "ds_name": "d", "image": {"bytes": b"png", "path": "1.jpg"}, "question": q, "chosen": a, "rejected": b,
        "image_path": "1.jpg"},
    "RLAIF-V for TRL": lambda q, a, b: {
        "images": [{"bytes": b"png", "path": None}],
        "prompt": [user([{"type": "image", "text": None}, {"type": "text", "text": q}])],
        "chosen": [bot([{"type": "text", "text": a}])], "rejected": [bot([{"type": "text", "text": b}])]},
    "RLHF-V": lambda q, a, b: {
        "ds_name": "d", "image": {"bytes": b"png", "path": None},
        "text": json.dumps({"question": q, "chosen": a, "rejected": b})},
    "MM-RLHF, LLaVA's form": lambda q, a, b: {
        "id": "1", "image": "a.png", "conversations": [{"from": "human", "value": q}], "chosen": a, "rejected": b},
    "VLFeedback": lambda q, a, b: vlfeedback(q, a, b) | {"img_path": "a.png"},
    "VL-RewardBench": lambda q, a, b: {"query": q, "response": [b, a], "image": b"png", "human_ranking": [1, 0]},
    "synthesized items": lambda q, a, b: {
        "key": "k", "prompt": [user(q)], "candidates": [b, a], "gold": [0.0, 1.0], "families": ["f"], "domain": "d"},
}  # fmt: skip
"""Layout → the row that says that the first of two answers is better."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_twenty_rows_of_each_layout_load_with_the_better_answer_best(name: str):
    for question, better, worse in TEXTS:
        row = LAYOUTS[name](question, better, worse)
        before = repr(row)
        item = from_preference(row, name)
        texts, gold = item.group.candidates, item.gold_G
        assert texts[gold.index(max(gold))] == final_answer(better), (name, question)
        assert texts[gold.index(min(gold))] == final_answer(worse), (name, question)
        asked = item.group.prompt[-1]
        if asked.images:  # a mark in the text is the image's place
            assert asked.text.replace("<image>", "").split() == question.replace("<image>", "").split(), (
                name,
                question,
            )
        else:
            assert asked.text.strip() == question.strip(), (name, question)
        assert repr(row) == before, "the row is not touched"
    assert len(TEXTS) == 20


@pytest.mark.parametrize("turns", [(), ("Hi.", "Hello."), ("Hi.", "Hello.", "How are you?", "Well.\n\nAnd you?")])
def test_texts_with_speakers_are_conversations(turns: tuple[str, ...]):
    for question, better, worse in TEXTS:
        row = {name: speakers(*turns, question, text) for name, text in (("chosen", better), ("rejected", worse))}
        item = from_preference(row)
        assert item.group.candidates == (final_answer(better), final_answer(worse))
        assert [turn.text for turn in item.group.prompt] == [*turns, question.strip()]
        assert [turn.role for turn in item.group.prompt][-1] == "user"
        beside = {
            "prompt": speakers(*turns, question) + "\n\nAssistant:",
            "chosen": f" {better}",
            "rejected": f" {worse}",
        }
        assert from_preference(beside).group == item.group, "the prompt apart, as Dahoas/full-hh-rlhf has it"
        assert from_preference(row | {"prompt": beside["prompt"]}).group == item.group


def test_helpsteer2_marks_its_turns_by_a_token():
    row = {"prompt": "Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a fruit.",
           "response_1": "Apple.", "response_2": "Granite.", "preference_strength": -3}  # fmt: skip
    item = from_preference(row)
    assert [(turn.role, turn.text) for turn in item.group.prompt] == [
        ("user", "Hi."), ("assistant", "Hello."), ("user", "Name a fruit.")]  # fmt: skip
    assert item.gold_G == (1.0, 0.0)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "gold"),
    [
        ([1.0, 2.0, 3.0], (1.0, 0.5, 0.0)),
        ([0, 1, 2], (1.0, 0.5, 0.0)),
        ([3, 1, 2], (0.0, 1.0, 0.5)),
        ([2, 1, 2], (0.0, 1.0, 0.0)),  # a shared place
        ([7, 1, 4], (0.0, 1.0, 0.5)),  # of seven, with gaps
    ],
)
def test_ranks_begin_at_0_or_at_1_and_the_least_is_the_best(ranks: list[float], gold: tuple[float, ...]):
    row = {"prompt": "q", "answers": [{"answer": text, "rank": rank} for text, rank in zip("xyz", ranks, strict=True)]}
    assert from_preference(row).gold_G == gold


@pytest.mark.parametrize(
    ("entries", "gold", "scale"),
    [
        ([{"fine-grained_score": 4.5, "overall_score": 1.0}, {"fine-grained_score": 2.0, "overall_score": 10.0}],
         (4.5, 2.0), (1.0, 5.0)),
        ([{"fine-grained_score": None, "annotations": aspects("5", "N/A", "4", "3")},
          {"annotations": aspects("1", "2", "N/A", "3")}], (4.0, 2.0), (1.0, 5.0)),
        ([{"overall_score": 7.5}, {"overall_score": 8}], (7.5, 8.0), (1.0, 10.0)),
        ([{"fine-grained_score": math.nan, "overall_score": 7.5}, {"fine-grained_score": 2.0, "overall_score": 8}],
         (7.5, 8.0), (1.0, 10.0)),
        ([{"overall_score": 7.5, "annotations": {}}, {"overall_score": 8, "annotations": aspects(*4 * ["N/A"])}],
         (7.5, 8.0), (1.0, 10.0)),
    ],
)  # fmt: skip
def test_completions_are_as_good_as_the_ratings_that_all_of_them_have(entries: list[Row], gold: Any, scale: Any):
    row = {
        "instruction": "q",
        "completions": [one | {"response": text} for one, text in zip(entries, "xy", strict=True)],
    }
    item = from_preference(row)
    assert (item.gold_G, item.scale) == (gold, scale)


# -- tools ------------------------------------------------------------------------------------------------------------


def test_a_call_of_a_tool_is_an_answer_and_part_of_a_prompt():
    asked = user("Weather in Oslo?")
    weather = bot("", tool_calls=[call("weather", {"city": "Oslo", "unit": None})])
    result = {"role": "tool", "name": "weather", "content": "-3 C"}
    item = from_preference({"prompt": [asked], "chosen": [weather], "rejected": [bot("I cannot know.")]})
    assert item.group.candidates == ('[tool call] weather {"city": "Oslo"}', "I cannot know.")
    item = from_preference(
        {"chosen": [asked, weather, result, bot("Cold.")], "rejected": [asked, weather, result, bot("Hot.")]}
    )
    assert [turn.role for turn in item.group.prompt] == ["user", "assistant", "tool"]
    assert item.group.prompt[1].text == '[tool call] weather {"city": "Oslo"}'
    assert item.group.candidates == ("Cold.", "Hot.")
    item = from_preference({"prompt": [asked], "chosen": [weather, result, bot("Cold.")], "rejected": [bot("Cold.")]})
    assert item.group.candidates[0] == 'assistant: [tool call] weather {"city": "Oslo"}\n\ntool: -3 C\n\nCold.'


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (bot(None, tool_calls=[call("f", '{"a": 1}')]), '[tool call] f {"a": 1}'),  # OpenAI: arguments are a text
        (bot("I look.", tool_calls=[call("f", {}), call("g", {"é": "雪"})]),
         'I look.\n[tool call] f {}\n[tool call] g {"é": "雪"}'),
        (bot("", tool_calls=[{"name": "f", "arguments": {"a": [1]}}]), '[tool call] f {"a": [1]}'),  # without an envelope
        (bot("", tool_calls=[call("f", None)]), "[tool call] f"),
        (bot("", tool_calls=[{"custom": {"a": 1}}]), '[tool call] {"custom": {"a": 1}}'),  # of another shape: as it stands
        (bot("", tool_calls=["f(1)"]), "[tool call] f(1)"),
        (bot("Hello.", tool_calls=[]), "Hello."),
        (bot("Hello.", tool_calls=None), "Hello."),
    ],
)  # fmt: skip
def test_calls_are_said_with_their_names_and_arguments(turn: Row, text: str):
    (message,) = as_messages([turn])
    assert message.text == text


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "images", "parts"),
    [
        ("<image>\nWhat is it?", [b"1"], [b"1", "What is it?"]),
        ("What is it?\n<image>", [b"1"], ["What is it?", b"1"]),
        ("What is it?", [b"1", b"2"], [b"1", b"2", "What is it?"]),  # nowhere: before the text
        ("<image> and <image>: which?", [b"1", b"2"], [b"1", " and ", b"2", ": which?"]),
        ("<image>\nWhat happens?", [b"1", b"2", b"3"], [b"1", b"2", b"3", "What happens?"]),  # frames at one mark
        ("Write <image> in HTML.", [], ["Write <image> in HTML."]),  # a text alone
    ],
)
def test_images_stand_where_the_text_says(prompt: str, images: list[bytes], parts: list[Any]):
    item = from_preference({"prompt": prompt, "images": images, "chosen": "a", "rejected": "b"})
    shown = [part.image if isinstance(part, ImagePart) else part.text for part in item.group.prompt[0].content]
    assert shown == parts


# -- what is refused --------------------------------------------------------------------------------------------------

PAIR: Row = {"prompt": "q", "chosen": "a", "rejected": "b"}
TWO: Row = {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0}
STEER: Row = {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": 1}
ARENA: Row = {"conversation_a": [user("q"), bot("a")], "conversation_b": [user("q"), bot("b")], "winner": "model_a"}
ONE_HOT: Row = {
    "prompt": '["q"]',
    "response_a": '["a"]',
    "response_b": '["b"]',
    "winner_model_a": 1,
    "winner_model_b": 0,
}
NECTAR: Row = {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}
ULTRA: Row = {
    "instruction": "q",
    "completions": [{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": 5}],
}
RATED = {"response": "a", "overall_score": 3}
ITEM: Row = {"prompt": "q", "candidates": ["a", "b"], "gold": [1, 0]}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 4}, "it has prompt, response, helpfulness"),
        ({"prompt": "q", "completion": "a", "label": True}, "a preference needs chosen and rejected, or"),
        (PAIR | {"chosen": "<think>let me"}, "chosen: the answer is empty after its reasoning, which may be cut off"),
        (PAIR | {"rejected": " \n"}, "rejected: the answer is empty"),
        (PAIR | {"rejected": "<think>a</think>"}, "rejected: the answer is empty after its reasoning"),
        (PAIR | {"chosen": [bot(None)]}, "chosen: the answer is empty"),
        (PAIR | {"chosen": []}, "chosen: must be a text or one assistant message"),
        (PAIR | {"chosen": ["a", "b", "c"]}, "chosen: a chat message needs 'role'"),
        (PAIR | {"chosen": 0}, "chosen: must be text or messages; got 0"),
        (PAIR | {"chosen": [bot([{"type": "audio"}])]}, "chosen: a message part must be"),
        (PAIR | {"chosen": [bot("a"), user("more"), bot("c")]}, "chosen: .*got messages of assistant, user, assistant"),
        (PAIR | {"chosen": [user("q"), bot("a")]}, "of chosen and rejected only some begin with the prompt"),
        (PAIR | {"prompt": "  "}, "prompt: it is empty"),
        (PAIR | {"prompt": 3}, "prompt: must be text or messages; got 3"),
        (PAIR | {"images": [3]}, "an image must be a PIL image"),
        (PAIR | {"chosen": "<think>1</think>a", "rejected": "<think>2</think>a"}, "same answer"),
        ({}, "it has nothing"),
        (PAIR | {"prompt": {"a": 1}}, "prompt: a chat message needs"),
        (PAIR | {"rejected": None}, "rejected: missing"),
        (PAIR | {"rejected": "a"}, "chosen and rejected are the same answer"),
        (PAIR | {"score_chosen": 5.0, "score_rejected": 5.0}, "score_chosen 5 and score_rejected 5 say that both are as"),
        (PAIR | {"chosen-rating": 2, "rejected-rating": 4}, "chosen-rating 2 and rejected-rating 4 .* rejected is the bett"),
        (PAIR | {"score_chosen": "high", "score_rejected": 5.0}, "score_chosen: must be a number; got 'high'"),
        (PAIR | {"video": "a.mp4"}, "video: a judge is shown"),
        ({"chosen": "a", "rejected": "b"}, "without a prompt, chosen and rejected must be conversations"),
        ({"chosen": [user("q"), bot("a")], "rejected": [user("r"), bot("b")]}, "no prompt in common"),
        ({"prompt": "other", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]}, "prompt: it is not what"),
        ({"chosen": speakers("q", "a", "r", "c"), "rejected": speakers("q", "b", "r", "d")}, "chosen: must be a text or"),
        ({"chosen": speakers("q", "a"), "rejected": speakers("q", "")}, "rejected: the answer is empty"),
        ({"chosen": speakers("q", "a", "r"), "rejected": speakers("q", "a", "s")}, "chosen: .*got messages of user"),
        ({"image": b"x", "text": '{"question": "q", "chosen": "a"'}, "text: not JSON"),
        ({"image": b"x", "text": '{"question": "q", "chosen": "a"}'}, "rejected: missing"),
        (STEER | {"overall_preference": 0}, "overall_preference: 0 says that both are as good"),
        (STEER | {"overall_preference": 4}, "overall_preference: must be -3 to 3; got 4"),
        (STEER | {"overall_preference": None}, "response1 and response2 are there, and nothing says which is better"),
        (STEER | {"overall_preference": True}, "overall_preference: must be a number; got True"),
        (STEER | {"overall_preference": float("nan")}, "response1 and response2 are there, and nothing says"),
        (STEER | {"response2": None}, "response2: missing"),
        (STEER | {"response2": ""}, "response2: the answer is empty"),
        (TWO | {"better_response_id": 2}, "better_response_id: must be 0 or 1; got 2"),
        (TWO | {"better_response_id": -1}, "better_response_id: must be 0 or 1; got -1"),
        (ARENA | {"winner": "tie"}, "winner: 'tie' says that none is better"),
        (ARENA | {"winner": "tie (bothbad)"}, "winner: 'tie .bothbad.' says that none is better"),
        (ARENA | {"winner": "gpt-4"}, "winner: must be model_a, model_b"),
        (ARENA | {"winner": 1}, "winner: must be model_a, model_b"),
        (ARENA | {"conversation_b": [user("q"), bot("b"), user("r"), bot("c")]}, "conversation_b: must be a text or one"),
        (ONE_HOT | {"winner_model_a": 0}, "winner_model_a and winner_model_b name no better one"),
        (ONE_HOT | {"response_a": '["a", "c"]'}, "response_a: must be one turn; got 2"),
        (ONE_HOT | {"response_b": "[null]"}, "response_b: the answer is empty"),
        (ONE_HOT | {"response_b": "[b]"}, "response_b: not JSON"),
        (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]}, r"answers\[1\].rank: must be a number"),
        (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}, r"all answers .* are as good"),
        (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "a", "rank": 2}]}, r"answers\[0\].answer and .*same"),
        (NECTAR | {"answers": [{"answer": "a", "rank": 1}, {"answer": "", "rank": 2}]}, r"answers\[1\].answer: the ans"),
        (NECTAR | {"answers": ["a", "b"]}, "answers: must be a list of objects"),
        (NECTAR | {"answers": {"answer": ["a", "b"], "rank": [1]}}, "answers: must be a list of objects"),
        (ULTRA | {"completions": [RATED, {"response": "b"}]}, "completions: not every"),
        (ULTRA | {"completions": [RATED, {"overall_score": 5}]}, r"completions\[1\].response"),
        (ULTRA | {"completions": [{"response": "a", "overall_score": 30}, {"response": "b", "overall_score": 1}]},
         r"completions\[0\].response: its worth lies outside 1..10"),
        (ITEM | {"gold": [1]}, "1 gold values for 2 answers"),
        (ITEM | {"gold": [1, 2]}, r"candidates\[1\]: its worth lies outside 0..1"),
        (ITEM | {"candidates": "ab"}, "candidates: must be a list of texts"),
        (ITEM | {"gold": 1}, "gold: must be a list of numbers"),
        ({"query": "q", "response": ["a", "b"], "human_ranking": [0, 0]}, "all answers .* are as good"),
        ({"query": "q", "response": "ab", "human_ranking": [0, 1]}, "response: must be a list of texts; got 'ab'"),
    ],
)  # fmt: skip
def test_what_says_no_preference_is_refused_with_its_field(row: Row, fault: str):
    with pytest.raises(InputError, match=fault):
        from_preference(row)


@pytest.mark.parametrize("row", [PAIR, TWO, STEER, ARENA, ONE_HOT, NECTAR, ULTRA, ITEM])
def test_the_rows_that_the_refused_ones_were_made_of_are_taken(row: Row):
    assert set(compared(row).answers_G) == {"a", "b"}


# -- conversations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        (PAIR | {"system": "Be kind."}, ["system", "user"]),  # Intel/orca_dpo_pairs
        (PAIR | {"system": ""}, ["user"]),
        ({"prompt": [{"role": "system", "content": "s"}, user("q")], "chosen": [user("q"), bot("a")],
          "rejected": [user("q"), bot("b")]}, ["system", "user"]),  # the longer of the two prompts
        ({"prompt": "q", "chosen": [{"role": "system", "content": "s"}, user("q"), bot("a")],
          "rejected": [{"role": "system", "content": "s"}, user("q"), bot("b")]}, ["system", "user"]),
        ({"prompt": "first", "chosen": [user("first"), bot("x"), user("q"), bot("a")],
          "rejected": [user("first"), bot("x"), user("q"), bot("b")]}, ["user", "assistant", "user"]),
        ({"prompt": "<|user|>\nq\n<|assistant|>", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
         ["user"]),  # rendered by a template
        ({"instruction": "Translate.", "input": "q", "chosen": "a", "rejected": "b"}, ["user"]),  # Alpaca
    ],
)  # fmt: skip
def test_a_prompt_is_whole_wherever_its_turns_stand(row: Row, roles: list[str]):
    item = from_preference(row)
    assert [turn.role for turn in item.group.prompt] == roles
    assert item.group.prompt[-1].text.endswith("q")
    assert item.group.candidates == ("a", "b")


def test_an_answer_that_is_a_dialogue_stays_one():
    dialogue = "Human: Hi.\n\nAssistant: Hello."
    item = from_preference({"prompt": "Write a dialogue.", "chosen": dialogue, "rejected": "No."})
    assert item.group.candidates == (dialogue, "No.")
