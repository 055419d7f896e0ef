"""Marks of reasoning as special tokens, as a chat template opens them, and as a prefix of what was thought."""

from __future__ import annotations

import copy
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from mrjudge_reward.engines.local.chat_template import ChatTemplate
from mrjudge_reward.integrations.trl.rows import completion_texts
from mrjudge_reward.messages import as_messages, final_answer
from mrjudge_reward.prompting.formats import Choice, PairScores
from mrjudge_reward.prompting.sanitizing import neutralise
from mrjudge_reward.reasoning import (
    closing_of,
    decode_marked,
    hidden_tokens,
    opened_by_template,
    split_reasoning,
    thought_in,
    without_hidden,
)
from mrjudge_reward.types import Grades, NoVerdict, Preference, Reply, Request

SPECIAL = [
    ("[THINK]", "[/THINK]"),
    ("<think>", "</think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
]
PIECES = ["<|end|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>"], ["<|open|>", "<|close|>", "<|sep|>"]


def with_special(tokenizer: Any, *marks: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    tokens = [token for pieces in PIECES for token in pieces if any(token in mark for mark in marks)] or list(marks)
    changed.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return changed


@pytest.mark.parametrize(("opened", "closed"), SPECIAL)
def test_marks_that_are_special_tokens_survive_decoding_and_others_do_not(smol_tokenizer: Any, opened, closed):
    tokenizer = with_special(smol_tokenizer, opened, closed)
    text = f"{opened}Perhaps <answer>A</answer>{closed}<answer>B</answer>"
    ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * 2
    assert Choice().parse(tokenizer.decode(ids, skip_special_tokens=True), 2) == Choice().parse("<answer>B</answer>", 2)
    assert decode_marked(tokenizer, ids) == text
    assert without_hidden(tokenizer.decode(ids, skip_special_tokens=False), hidden_tokens(tokenizer)) == text
    cut = tokenizer.encode(f"{opened}Perhaps <answer>A</answer>", add_special_tokens=False)
    assert Choice().parse(decode_marked(tokenizer, cut), 2) == NoVerdict("unclosed thinking")


def test_where_no_mark_is_a_special_token_decoding_is_as_ever(smol_tokenizer: Any):
    assert hidden_tokens(smol_tokenizer) == {}
    ids = [*smol_tokenizer.encode("Hello", add_special_tokens=False), smol_tokenizer.eos_token_id]
    assert decode_marked(smol_tokenizer, ids) == "Hello"
    assert hidden_tokens(object()) == hidden_tokens(None) == {}


def test_trls_texts_get_back_the_marks_that_its_decoding_skipped(smol_tokenizer: Any):
    tokenizer = with_special(smol_tokenizer, "[THINK]", "[/THINK]")
    trainer = SimpleNamespace(processing_class=tokenizer)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in ("[THINK]I am good.[/THINK]Hello", "Bye")]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert texts == ["I am good.Hello", "Bye"]
    assert completion_texts(texts, ids, trainer) == ["[THINK]I am good.[/THINK]Hello", "Bye"]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert (
        completion_texts(chats, ids, SimpleNamespace(processing_class=SimpleNamespace(tokenizer=tokenizer)))[1] == "Bye"
    )
    assert completion_texts(["parsed", "Bye"], ids, trainer) == ["parsed", "Bye"], "what TRL parsed itself stands"
    assert completion_texts(texts, None, trainer) == completion_texts(texts, ids, None) == texts


@pytest.mark.parametrize(
    ("prompt", "opened", "closed"),
    [
        ("user\nHi<assistant><think>\n", "<think>", "</think>"),
        ("[/INST][THINK]", "[THINK]", "[/THINK]"),
        ("<|CHATBOT|><|START_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("assistant ◁think▷\n", "◁think▷", "◁/think▷"),
        ("<seed:think>", "<seed:think>", "</seed:think>"),
        ("<|start|>assistant", "", ""),
        ("<think>\n\n</think>\n\n", "", ""),
        ("Put it in <think> tags.\nassistant", "", ""),
    ],
)
def test_a_template_that_opens_reasoning_is_seen_and_answered_in_its_own_marks(prompt, opened, closed):
    assert opened_by_template(prompt) == opened
    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=lambda turns, **_: str(turns) + prompt)
    chat = ChatTemplate(tokenizer, "a judge", {})
    request = Request(as_messages("Which?"))
    reply = Reply("A, perhaps <answer>A</answer>")
    assert chat.whole_reply(request, reply).text == opened + reply.text
    if opened:
        assert closing_of(opened) == closed
        assert Choice().parse(chat.whole_reply(request, reply).text, 2) == NoVerdict("unclosed thinking")
        read = chat.text(Request(request.messages, prefill="<answer>"))
        assert read.endswith(f"{prompt}\n{closed}\n\n<answer>")
        thought = chat.text(Request(request.messages, prefill="<think>\nso A\n</think>\n\n<answer>"))
        assert thought.endswith(f"{prompt}so A\n{closed}\n\n<answer>")


@pytest.mark.parametrize(
    "written", ["why", "<think>why", " <THINK>\nwhy\n</think> A", "[THINK]why[/THINK]A", "why</think>A", "why[/THINK]A"]
)
def test_a_thought_is_what_stands_before_its_end(written):
    assert thought_in(written) == "why"


def test_a_mark_of_another_family_is_part_of_a_thought():
    assert thought_in("<think>is [/THINK] a mark?</think>A") == "is [/THINK] a mark?"


@pytest.mark.parametrize("text", ["<think>" * 10**5, "</think>" * 10**5, "<" * 10**6, "`<think>`" * 10**5, "`" * 10**6])
def test_marks_in_great_numbers_are_read_once(text):
    for code in (False, True):
        split_reasoning(text, code=code)


CODE = [
    "export async function plan(): Promise<Thought> {\n  return steps[0];\n}",
    "std::vector<Reflection> all;\nfor (auto& r : all) r.run();",
    "std::vector<Think> all;",
    "mask = rows[think]\nprint(mask)",
    "x = table[0][think] + f(y)[think]",
    "let all = found.collect::<Reasoning>();",
    "Map<String, List<Thought>> notes;",
    "impl Box<Think> for my_<Thought> {}",
    "Option<Scratchpad> pad = Vec3<Thinking>(1);",
    "class Plan(Generic<Thoughts>): ...",
]
MARKED = [
    "<think>{}</think>", "so\n<think>{}</think>", "Well, <Think>{}</Think>", "好的<think>{}</think>", "so.<think>{}</think>",
    "</think><think>{}</think>", "[/INST]<think>{}</think>", "(aside)<Thought>{}</Thought>", "Hm[THINK]{}[/THINK]",
    "Hm<THINK>{}</THINK>", "Hm <reasoning>{}</reasoning>", "so: [think]{}[/think]", "é<thinking>{}</thinking>",
    "Hm<seed:think>{}</seed:think>",
]  # fmt: skip


@pytest.mark.parametrize("code", CODE)
def test_types_and_subscripts_in_code_are_no_marks(code):
    assert final_answer(code) == split_reasoning(code)[0] == code
    assert neutralise(code) == code
    assert Choice().parse(f"B has {code}\n<answer>A</answer>", 2) == Preference((1.0, 0.0))
    assert Choice().parse(f"<think>hm</think><answer>A</answer>, as it has {code}", 2) == Preference((1.0, 0.0))


@pytest.mark.parametrize("marked", MARKED)
def test_marks_that_no_name_stands_right_before_are_marks(marked):
    opened = marked.partition("{}")[0]
    assert final_answer(marked.format("<answer>B</answer>") + "Hello") == "Hello"
    assert split_reasoning(opened + "<answer>B</answer>")[1], "left open"
    assert Choice().parse(f"{opened}<answer>B</answer>", 2) == NoVerdict("unclosed thinking")
    assert neutralise(opened) != opened


def test_a_type_in_code_opens_no_answer_and_a_tag_in_capitals_does():
    for said in ("Array<Answer> is right. <answer>B</answer>", "<answer>B</answer> has Promise<Answer>, A has none."):
        assert Choice().parse(said, 2) == Preference((0.0, 1.0))
        assert Choice(answer_open="<ANSWER>", answer_close="</ANSWER>").parse(said, 2) == Preference((0.0, 1.0))
    assert PairScores().parse("f::<Answer>() <ANSWER>3</ANSWER><Answer>8</Answer>", 2) == Grades.sampled([3.0, 8.0])
    assert (
        Choice().parse("So<answer>B</answer>", 2) == Choice().parse("So<ANSWER>B</ANSWER>", 2) == Preference((0.0, 1.0))
    )


BEFORE = [
    "", " ", "\n", "x", "X", "_", "7", ")", "]", "::", ":", ".", "é", "好", "ж", "x\u200b", "\u200bx\u2060", "Ｘ", "７",
    "：：", "x\u00ad", "ª", "<", "x<", "(", "`", "Promise", "x\ufe0f", "｝", "］",
]  # fmt: skip
TAGS = ["think", "thinking", "Thought", "REASONING", "Answer", "ANSWER", "answer", "Scratchpad", "seed:think"]
FORMS = ["<{}>", "[{}]", "</{}>", "[/{}]", "<{} >", "＜{}＞", "［{}］", "<\u200b{}>", "◁{}▷"]


@pytest.mark.parametrize("before", BEFORE, ids=ascii)
def test_what_outside_text_keeps_is_no_mark_for_any_parsing(before):
    for tag, form, after in product(TAGS, FORMS, ["", "A", "<answer>A"]):
        safe = neutralise(f"{before}{form.format(tag)}{after}")
        for seen in (safe, safe.replace("\u200b", "")):
            assert split_reasoning(seen) == (seen, False)
            for said in (f"<answer>B</answer> {seen}", f"{seen} <answer>B</answer>"):
                assert Choice().parse(said, 2) == Preference((0.0, 1.0)), ascii(said)
