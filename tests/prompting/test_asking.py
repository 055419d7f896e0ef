"""What a wording may hold, and whether it asks in a form that the parser reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.engines.structured import marked, pattern
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import Judge
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.prompting.rendering import ALONE, load_template
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.reranker import Reranker
from mrjudge_reward.types import Comparison, Group, NoVerdict, Request

GUARD = Sanitizer(lambda text: len(text) // 4 + 1, 10_000)
WORDING = """=== system ===
SYSTEM
=== user ===
{question}
USER{responses}
Best: {labels}? {form}
=== response ===
[R {label}]
{text}
[End of R {label}]
"""


@pytest.fixture
def wording(tmp_path: Path):
    """Writes a wording and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.txt"  # wordings are read once
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def chat(form: Format, count: int = 2, **of_group: str) -> str:
    texts = tuple(f"answer {number}" for number in range(count))
    return "\n".join(message.text for message in form.render(Group.of("WHY?", texts, "k", **of_group), texts, GUARD))


# -- placeholders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "braces",
    ["{prompt}", "{Question}", "{response}", "{answer}", "{ответ}", "{text}", "{label}", "{task_id}", "{k2}", "{{x}}"],
)  # fmt: skip
@pytest.mark.parametrize("section", ["SYSTEM", "USER"])
def test_a_word_in_braces_that_is_not_filled_is_refused(wording, braces: str, section: str):
    path = wording(WORDING.replace(section, braces))
    with pytest.raises(ConfigError, match="is not filled") as caught:
        Choice(template=path)
    assert path in str(caught.value)
    assert braces.strip("{}") in str(caught.value)
    assert ("system" if section == "SYSTEM" else "user") in str(caught.value)


@pytest.mark.parametrize("braces", [
    '{"a": 1}', "{}", "{ prompt }", "{0}", r"\boxed{A}", r"\text{label one}", "{a b}", '{"score": {"x": 2}}', "{1, 2}",
    "{a-b}", "{'key'}", "{a: b}", r"\frac{a}{b} is \text{fine}",
])  # fmt: skip
def test_other_braces_are_text(wording, braces: str):
    if braces.startswith(r"\frac"):
        braces = r"\frac{a} is \text{fine}"
    assert braces in chat(Choice(template=wording(WORDING.replace("USER", braces))))


def test_a_wording_without_the_question_is_refused_unless_it_says_that_it_shows_responses_alone(wording):
    path = wording(WORDING.replace("{question}\n", ""))
    for form in (Choice, Ranking, PairScores, Score):
        with pytest.raises(ConfigError, match=r"lacks \{question\} in section user") as caught:
            form(template=path)
        assert ALONE in str(caught.value)
    form = Choice(template=wording(f"# mine\n{ALONE}\n" + WORDING.replace("{question}\n", "")))
    assert "WHY?" not in chat(form)
    assert load_template("sentiment").alone
    assert not load_template("glance").alone


def test_responses_stand_once(wording):
    with pytest.raises(ConfigError, match=r"\{responses\} once"):
        Choice(template=wording(WORDING.replace("USER", "{responses}")))


BLOCK = "=== rubric ===\n[Criteria]\n{text}\n[End of criteria]\n"


def test_a_block_without_its_place_and_a_place_without_its_block_are_refused(wording):
    with pytest.raises(ConfigError, match="section rubric that is not placed"):
        Choice(template=wording(WORDING + BLOCK))
    with pytest.raises(ConfigError, match=r"\{rubric\} without a section rubric"):
        Choice(template=wording(WORDING.replace("USER", "{rubric}")))
    shown = chat(Choice(template=wording(WORDING.replace("USER", "{rubric}") + BLOCK)), rubric="MIND")
    assert re.search(r"^\[Criteria \w{8}\]\nMIND\n", shown, re.MULTILINE)


@pytest.mark.parametrize("name", ["reference", "rubric"])
@pytest.mark.parametrize("ask", ["judge", "rank", "early", "compare", "render", "reranker"])
def test_what_a_group_brings_and_the_wording_has_no_place_for_is_refused_before_anything_is_asked(wording, name, ask):
    engine = ScriptedEngine(lambda _: "<answer>A</answer>")
    judge = Judge(engine, Choice(template=wording(WORDING)))
    other, group = Group.of("q", ["a", "b"], "other"), Group.of("q", ["a", "b"], "k", **{name: "MIND"})
    asks: dict[str, Callable[[], Any]] = {
        "judge": lambda: judge.judge([other, group]),
        "rank": lambda: judge.rank("q", ["a", "b"], "k", **{name: "MIND"}),
        "early": lambda: judge.early("q", 2, "k", ["one", "two"], **{name: "MIND"}),
        "compare": lambda: judge.compare([(other, Comparison((0, 1))), (group, Comparison((1, 0)))]),
        "render": lambda: judge.render(group, (0, 1)),
        "reranker": lambda: Reranker(judge).best_of_n("q", ["a", "b"], "k", **{name: "MIND"}),
    }
    with pytest.raises(InputError, match=f"group 'k' has a {name} that the judge would not see.*section {name}"):
        asks[ask]()
    assert engine.requests == []


def test_a_wording_that_shows_responses_alone_leaves_the_rest_out():
    assert "MIND" not in chat(SENTIMENT, 1, rubric="MIND")


def test_rank_shows_a_reference_and_a_rubric():
    engine = ScriptedEngine.by_utility(len)
    judge = Judge(engine)
    judge.rank("q", ["a", "bb"], reference="KNOWN", rubric="MIND")
    Reranker(judge).rank("q", ["a", "bb"], reference="KNOWN", rubric="MIND")
    assert all("KNOWN" in request.messages[-1].text for request in engine.requests)
    assert all("MIND" in request.messages[-1].text for request in engine.requests)


# -- the form is asked for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "count", "last"),
    [
        (Choice(), 2, "<answer> A </answer> or <answer> B </answer>"),
        (Choice(), 3, "<answer> A </answer>, <answer> B </answer> or <answer> C </answer>"),
        (Choice(tie_label="T"), 2, "<answer> A </answer>, <answer> B </answer> or <answer> T </answer>"),
        (Choice(labels=("1", "2")), 2, "<answer> 1 </answer> or <answer> 2 </answer>"),
        (Choice(labels=(" A", " B")), 2, "<answer> A </answer> or <answer> B </answer>"),
        (Choice(answer_open="[[", answer_close="]]"), 2, "[[ A ]] or [[ B ]]"),
        (Choice(answer_open="Best: ", answer_close=""), 2, "Best: A or Best: B"),
        (Choice(answer_open="\\boxed{", answer_close="}"), 2, "\\boxed{ A } or \\boxed{ B }"),
        (Ranking(), 2, "<answer> A > B </answer> or <answer> B > A </answer>"),
        (Ranking(), 4, "<answer> A > B > C > D </answer> or <answer> D > C > B > A </answer>"),
        (PairScores(), 2, "<answer> 1 </answer><answer> 10 </answer> or <answer> 10 </answer><answer> 1 </answer>"),
        (PairScores(grades=(("a", 1.0), ("b", 2.0), ("c", 3.0))), 3,
         "<answer> a </answer><answer> b </answer><answer> c </answer> or "
         "<answer> c </answer><answer> b </answer><answer> a </answer>"),
        (Score(), 1,
         "<answer> 1 </answer>, <answer> 2 </answer>, <answer> 3 </answer>, <answer> 4 </answer> or <answer> 5 </answer>"),
        (Score(grades=(("bad", 0.0), ("good", 1.0))), 1, "<answer> bad </answer> or <answer> good </answer>"),
        (Score(grades=tuple((str(n), float(n)) for n in range(101))), 1,
         "<answer> 0 </answer>, <answer> 1 </answer>, ... or <answer> 100 </answer>"),
    ],
)  # fmt: skip
def test_the_last_line_shows_the_verdicts_as_they_are_written(form: Format, count: int, last: str):
    line = chat(form, count).splitlines()[-1]
    assert last in line
    outcome = form.parse(line.split(" or ")[0], count)
    assert form.answer_close == "" or not isinstance(outcome, NoVerdict) or "," in last.split(" or ")[0]


@pytest.mark.parametrize("form", [Choice(), Ranking(), PairScores()])
@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_no_label_is_shown_more_often_than_another(form: Format, count: int):
    line = chat(form, count).splitlines()[-1]
    labels = re.findall(r"\b[A-P]\b", " ".join(re.findall(r"<answer> (.*?) </answer>", line)))
    assert len({labels.count(label) for label in labels}) <= 1


def test_the_scripted_judge_finds_what_is_shown():
    for form, count in ((Choice(), 3), (Ranking(), 2), (PairScores(), 4), (Score(), 1)):
        texts = tuple(f"answer {number}" for number in range(count))
        request = Request(form.render(Group.of("q", texts), texts, GUARD))
        assert tuple(shown_candidates(request).values()) == texts


# -- what is listed is read -------------------------------------------------------------------------------------------------

FORMS = [
    (Choice(), 2), (Choice(), 16), (Choice(tie_label="neither (tie)"), 3), (Choice(labels=("+", "*", ".a")), 3),
    (Choice(answer_open="\\boxed{", answer_close="}"), 4), (Choice(answer_open="Best: ", answer_close=""), 2),
    (Choice(answer_open="[[", answer_close="]]", labels=("^", "$", "|")), 2), (Ranking(), 2), (Ranking(), 3), (Ranking(), 5),
    (Ranking(labels=("1.", "2.", "(3)")), 3), (PairScores(), 2), (PairScores(), 3),
    (PairScores(answer_open="Score: ", answer_close=""), 2), (Score(), 1), (Score(grades=(("-1", -1.0), ("+1", 1.0))), 1),
    (Score(answer_open="Grade ", answer_close="."), 1),
]  # fmt: skip


@pytest.mark.parametrize(("form", "slots"), FORMS)
def test_whatever_the_pattern_admits_the_parser_reads_and_no_two_say_the_same(form: Format, slots: int):
    held = form.form(slots)
    assert held is not None
    expression = re.compile(pattern(held))
    seen = set()
    for answers in list(product(held.answers, repeat=held.count))[:1500]:
        verdict = ("" if held.closing else "\n").join(f"{held.opening}{one}{held.closing}" for one in answers)
        for reasoning in ("", "<think>why <answer>x</answer> </think>\n", "<think>\na</think> b\n</think>\n\n"):
            assert expression.fullmatch(reasoning + verdict), (reasoning, verdict)
            outcome = form.parse(reasoning + verdict, slots)
            assert not isinstance(outcome, NoVerdict), (reasoning + verdict, outcome)
        seen.add(outcome)
    assert len(seen) == min(1500, len(held.answers) ** held.count)


@pytest.mark.parametrize("text", [
    "A", "<answer>A", "<answer>a</answer>", "<answer>C</answer>", "<answer>A</answer>.", "<answer>  A</answer>",
    "I say <answer>A</answer>", "<think>no end <answer>A</answer>", "<answer>A or B</answer>", "<answer></answer>", "",
    "<answer>A</answer><answer>B</answer>",
])  # fmt: skip
def test_the_pattern_admits_nothing_else(text: str):
    held = Choice().form(2)
    assert re.fullmatch(pattern(held), text) is None


def test_every_order_with_and_without_equals_is_listed_once():
    for slots, count in ((2, 3), (3, 13), (4, 75), (5, 541)):
        held = Ranking().form(slots)
        assert held is not None
        assert len(set(held.answers)) == len(held.answers) == count
    assert all(" > ".join(order) in held.answers for order in permutations("ABCDE"))
    assert Ranking().form(6) is None


@pytest.mark.parametrize(("form", "slots"), FORMS)
def test_a_reply_in_json_says_the_same_as_one_in_marks(form: Format, slots: int):
    held = form.form(slots)
    assert held is not None
    answers = [held.answers[-1]] * held.count
    reply = json.dumps(
        {"reasoning": "a </think> {b} <answer>A</answer> {", "answer": answers if held.count > 1 else answers[0]}
    )
    written = ("" if held.closing else "\n").join(f"{held.opening}{one}{held.closing}" for one in answers)
    for before in ("", "<think>set apart</think>"):
        assert form.parse(marked(before + reply, held), slots) == form.parse(written, slots)


@pytest.mark.parametrize(
    "text",
    ["", "null", "{", "[]", "3", '{"answer": 3}', '{"answer": [3]}', '{"reasoning": ""}', "<answer>A</answer>", '"A"'],
)
def test_what_is_no_such_reply_stays_as_it_is(text: str):
    held = Choice().form(2)
    assert marked(text, held) == text
