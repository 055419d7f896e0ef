"""Whether reasoning supports a verdict: what of a reply is reasoning, what a verdict favours, what a reader says."""

from __future__ import annotations

from typing import Any

import pytest

from mrjudge_reward.prompting.formats import Choice, PairScores, Ranking, Score
from mrjudge_reward.scoring.tally import favoured
from mrjudge_reward.training.consistency import filled, question_on, read_answer, reasoning_of, supports
from mrjudge_reward.training.items import from_choice, from_ratings
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import Grades, NoVerdict, Outcome, Preference, RankOrder, Tie

ITEM = from_choice("Which?", ["good", "bad", "worse"], gold=0)
PAIR = Problem(ITEM, (0, 1), Choice(labels=("A", "B")))

ANALYSIS = "<|channel|>analysis<|message|>"
COMMENTARY = "<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"


def of(form: Any, slots: int = 2) -> Problem:
    return Problem(ITEM, tuple(range(slots)), form)


@pytest.mark.parametrize(
    ("form", "text", "reasoning"),
    [
        (Choice(), "<think>A is right.</think><answer>A</answer>", "A is right."),
        (Choice(), "<think>A is right.</think>\n\nSo: <answer> A </answer>", "A is right.\n\nSo:"),
        (Choice(), "A is right. <answer>A</answer>", "A is right."),  # without marks
        (Choice(), "A is right.</think><answer>A</answer>", "A is right."),  # opened by the template
        (Choice(), "[THINK]A is right.[/THINK]<answer>A</answer>", "A is right."),
        (Choice(), "<answer>A</answer>", ""),
        (Choice(), "<think></think><answer>A</answer>", ""),
        (Choice(), "<think> \n </think><answer>A</answer>", ""),
        (Choice(), "<think>A is right.", ""),  # no verdict
        (Choice(), "A is right.", ""),
        (Choice(), "B? <answer>B</answer> No, A. <answer>A</answer>", "B? <answer>B</answer> No, A."),  # the last one counts
        (Choice(), "<think>I write <answer>B</answer>?</think>A. <answer>A</answer>", "I write <answer>B</answer>?\n\nA."),
        (Choice(), "<think>A.</think><answer>A</answer> because it is kind", "A."),  # what follows is no reasoning for it
        (PairScores(), "<think>A: 8.</think><answer>8</answer><answer>3</answer>", "A: 8."),
        (PairScores(), "Both. <answer>8</answer> and <answer>3</answer>", "Both."),
        (PairScores(), "<think>A.</think><answer>A</answer>", "A."),  # a label instead of grades
        (Ranking(), "<think>A, then B.</think><answer>A > B</answer>", "A, then B."),
        (Choice(answer_open="Best:", answer_close=""), "<think>A.</think>Best: A", "A."),
        # Several blocks, and text between them.
        (Choice(), "<think>B?</think> Hm. <think>No, A.</think><answer>A</answer>", "B?\n\nHm.\n\nNo, A."),
        (Choice(), "<think>plan</think>It is A.<think></think><answer>A</answer>", "plan\n\nIt is A."),
        (Choice(), "Well. [THINK]A.[/THINK]So <answer>A</answer>", "Well.\n\nA.\n\nSo"),
        (Choice(), "<think>plan <reasoning>A</think>B</reasoning><answer>A</answer>", "plan <reasoning>A\n\nB"),
        (Choice(), "<think>One wrote `</think>`; A.</think><answer>A</answer>", "One wrote `</think>`; A."),
        (Choice(), "[THINK]It says </think> itself. A.[/THINK]<answer>A</answer>", "It says </think> itself. A."),
        (Choice(), "<|begin_of_thought|>A.<|end_of_thought|><|begin_of_solution|>Yes: <answer>A</answer>", "A.\n\nYes:"),
        (Choice(), "<|channel>thought\nA.<channel|><answer>A</answer>", "A."),  # Gemma
        (Choice(), f"{ANALYSIS}A.{FINAL}<answer>A</answer>", "A."),  # gpt-oss
        (Choice(), f"{ANALYSIS}A.{FINAL}Since A: <answer>A</answer><|return|>", "A.\n\nSince A:"),
        (Choice(), f"{ANALYSIS}B?<|end|>{COMMENTARY}No, A.{FINAL}<answer>A</answer>", "B?\n\nNo, A."),
        (Choice(), f"{ANALYSIS}It wrote <|channel|> there. A.{FINAL}<answer>A</answer>", "It wrote\n\nthere. A."),
        (Choice(), f"<think>It wrote {ANALYSIS} there.</think><answer>A</answer>", f"It wrote {ANALYSIS} there."),
        (Choice(), "analysisResponse A it is.assistantfinal<answer>A</answer>", "Response A it is."),
        (Choice(), "analysisB?assistantcommentaryNo, A.assistantfinal<answer>A</answer>", "B?\n\nNo, A."),
        (Choice(), "assistantanalysisA.assistantfinalSo: <answer>A</answer>", "A.\n\nSo:"),
    ],
)  # fmt: skip
def test_what_stands_before_the_verdict_is_its_reasoning(form: Any, text: str, reasoning: str):
    assert reasoning_of(of(form), text) == reasoning


@pytest.mark.parametrize(
    ("outcome", "slots"),
    [
        (Preference((0.0, 1.0)), {1}),
        (Preference((0.5, 0.5)), set()),
        (Preference((0.4, 0.4, 0.2)), {0, 1}),
        (Grades.sampled([3.0, 8.0]), {1}),
        (Grades.sampled([8.0, 8.0]), set()),
        (Grades.sampled([8.0, 8.0, 1.0]), {0, 1}),
        (RankOrder(((2,), (0,), (1,))), {2}),
        (RankOrder(((0, 1), (2,))), {0, 1}),
        (RankOrder(((0, 1, 2),)), set()),
        (Tie(), set()),
        (NoVerdict("truncated"), set()),
    ],
)
def test_a_verdict_favours_the_best_unless_all_are_as_good(outcome: Outcome, slots: set[int]):
    assert favoured(outcome) == slots


@pytest.mark.parametrize(
    ("form", "slots", "labels"),
    [
        (Choice(labels=("A", "B")), 2, ["A", "B", "none"]),
        (Choice(), 3, ["A", "B", "C", "none"]),
        (Ranking(labels=("1", "2", "3")), 2, ["1", "2", "none"]),
        (PairScores(), 2, ["A", "B", "none"]),
        (Choice(labels=(" A", " B")), 2, ["A", "B", "none"]),
    ],
)
def test_a_reader_is_asked_for_one_of_the_labels_that_the_judge_was_shown(form: Any, slots: int, labels: list[str]):
    question = question_on(of(form, slots))
    assert question is not None
    assert [label for label, _ in question.grades] == labels


def test_there_is_nothing_to_favour_in_one_response():
    item = from_ratings("Write.", ["Lovely."], [3.0], scale=(0.0, 5.0))
    assert question_on(Problem(item, (0,), Score())) is None


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (["<answer>A</answer>"], 0),
        (["<answer> b </answer>"], 1),
        (["<think>It says A, then takes it back.</think><answer>None.</answer>"], 2),
        (["<answer>Response A</answer>"], 0),
        (["<answer>**B**.</answer>"], 1),
        (["<answer>A or B</answer>"], None),
        (["<answer>not A</answer>"], None),
        (["<answer>C</answer>"], None),
        (["A"], None),
        ([""], None),
        ([], None),
        (["<answer>A</answer>", "<answer>A</answer>", "<answer>B</answer>"], 0),  # votes
        (["<answer>A</answer>", "<answer>B</answer>"], None),
        (["<answer>A</answer>", "I cannot say."], 0),  # a vote that failed is none
    ],
)
def test_a_readers_answer_is_a_label_or_none_or_nothing_at_all(said: list[str], answer: int | None):
    question = question_on(PAIR)
    assert question is not None
    assert read_answer([question.parse(text, 1) for text in said], 2) == answer


def test_probabilities_of_labels_are_an_answer_too():
    question = question_on(PAIR)
    assert question is not None
    assert read_answer([question.from_logprobs([-3.0, -0.1, -4.0], 1)], 2) == 1


@pytest.mark.parametrize(
    ("verdict", "answer", "value"),
    [
        (Preference((1.0, 0.0)), 0, 1.0),
        (Preference((1.0, 0.0)), 1, -1.0),
        (Preference((1.0, 0.0)), 2, -1.0),  # no clear choice, as R1-Reward's rules have it
        (Preference((1.0, 0.0)), None, None),  # the reader failed: nothing is known
        (Tie(), 2, 1.0),
        (Tie(), 0, -1.0),
        (Tie(), None, None),
        (Grades.sampled([2.0, 7.0]), 1, 1.0),
        (Grades.sampled([7.0, 7.0]), 2, 1.0),
        (Grades.sampled([7.0, 7.0]), 0, -1.0),
        (RankOrder(((1,), (0,))), 1, 1.0),
        (RankOrder(((1,), (0,))), 0, -1.0),
    ],
)
def test_reasoning_supports_a_verdict_that_favours_the_same(verdict: Outcome, answer: int | None, value: float | None):
    assert supports(verdict, answer, 2) == value


@pytest.mark.parametrize(("answer", "value"), [(0, 1.0), (1, 1.0), (2, -1.0), (3, 1.0)])
def test_of_several_best_each_is_favoured_and_so_is_none_of_them(answer: int, value: float):
    assert supports(RankOrder(((0, 1), (2,))), answer, 3) == value


def test_what_a_reader_did_not_say_is_the_mean_of_the_other_replies_to_the_prompt():
    assert filled([(0, 1.0), (0, None), (0, -1.0), (0, 1.0), (1, None), (2, -1.0)]) == pytest.approx(
        {0: 1 / 3, 1: 0.0, 2: -1.0}
    )
    assert filled([]) == {}
