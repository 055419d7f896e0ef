"""Whose a grade is: by the label that heads it, by its place where none is headed, nobody's where that is not clear."""

from __future__ import annotations

import time

import pytest

from mrjudge_reward import JudgeConfig, PairScores, ScriptedEngine
from mrjudge_reward.engines.scripted import shown_candidates
from mrjudge_reward.prompting.headings import owners
from mrjudge_reward.types import Grades, NoVerdict

BEST, WORST = "<answer> 9 </answer>", "<answer>2</answer>"

HEADED = [  # the better one is B, and comes first
    "**Response B**: {}\n**Response A**: {}",
    "**Response B:** {}\n\n**Response A:** {}",
    "Response B: {}, Response A: {}",
    "B: {}\nA: {}",
    "### Response B\n{}\n\n### Response A\n{}",
    "### Response B\nIt cites its source.\n\n{}\n\n### Response A\nIt guesses.\n\n{}",
    "Response B: It cites. Score: {}\nResponse A: It guesses. Score: {}",
    "- **Response B** (clear): {}\n- **Response A** (wrong): {}",
    "1. Response B: {}\n2. Response A: {}",
    "Response B gets {} and Response A gets {}.",
    "The score of response b is {}. The score of response a is {}.",
    "Scores for each.\nScore for Response B: {}\nScore for Response A: {}",
    "Response B's score: {}\nResponse A's score: {}",
    "| Response B | {} |\n| Response A | {} |",
    "**Response B: {}**\n**Response A: {}**",
    "Response B: **{}**\nResponse A: **{}**",
    "(B) {}\n(A) {}",
    "B. {}\nA. {}",
    '{{"B": "{}", "A": "{}"}}',
    "Response B — {}\nResponse A — {}",
    "<B>{}</B>\n<A>{}</A>",
    "{} (Response B)\n{} (Response A)",
    "{} for B, {} for A.",
    "Response A is worse than Response B. Response B: {} Response A: {}",
    "回答B：{}，回答A：{}",
]
IN_ORDER = [  # the better one is A, or nothing says whose the first is
    "{}{}",
    "Response A: {}\nResponse B: {}",
    "{} (A)\n{} (B)",
    "{} (A) {} (B)",
    "Response A is better than Response B. {}{}",
    "Response A is clearly better.\n{}\n{}",
    "It is better than Response B.\n{}\n{}",
    "Response A: good.\nResponse B: bad.\n{}{}",
    "Scores for Response A and Response B: {}, {}",
    "Scores (A, B): {} {}",
    "A/B: {}/{}",
    "### Response A\nfine\n### Response B\nweak\n### Scores\n{}\n{}",
    "{} because A cites. {} because B does not.",
    "{} B is worse, so: {} A is best",
    "{}\n{}\n\nResponse B is worse than Response A.",
    "1. {}\n2. {}",
    "A good one: {} and a poor one: {}",
]
UNCLEAR = [
    "Response B: {}\n{}",
    "{}\nResponse A: {}",
    "Response A: {}\nResponse A: {}",
    "B: {}, C: {}",
    "Response A: {}\nThe other: {}",
    "Response B: fine. {}\nResponse B: worse. {}",
]


@pytest.mark.parametrize("said", HEADED)
def test_grades_that_are_headed_by_a_label_are_that_candidates(said: str):
    assert PairScores().parse(f"<think>A: 9</think>{said.format(BEST, WORST)}", 2) == Grades.sampled([2.0, 9.0])


@pytest.mark.parametrize("said", IN_ORDER)
def test_grades_that_no_label_heads_are_in_the_order_shown(said: str):
    assert PairScores().parse(said.format(BEST, WORST), 2) == Grades.sampled([9.0, 2.0])


@pytest.mark.parametrize("said", UNCLEAR)
def test_grades_of_which_some_alone_are_headed_are_no_verdict(said: str):
    outcome = PairScores().parse(said.format(BEST, WORST), 2)
    assert isinstance(outcome, NoVerdict)
    assert outcome.reason == "unclear order"
    assert "headings name" in outcome.detail


@pytest.mark.parametrize(
    ("labels", "said", "grades"),
    [
        ("ABC", "C: <answer>1</answer>\nA: <answer>5</answer>\nB: <answer>9</answer>", [5.0, 9.0, 1.0]),
        ("123", "2. <answer>1</answer>\n3. <answer>5</answer>\n1. <answer>9</answer>", [9.0, 1.0, 5.0]),
        ("123", "Response 2: <answer>1</answer>\n3: <answer>5</answer>\n(1) <answer>9</answer>", [9.0, 1.0, 5.0]),
        ("IJK", "I give J: <answer>1</answer>\nK: <answer>5</answer>\nI: <answer>9</answer>", None),
        (("No 1", "No 2", "No 10"), "No 10: <answer>1</answer>\nNo 2: <answer>5</answer>\nNo 1: <answer>9</answer>",
         [9.0, 5.0, 1.0]),
        (("a", "A", "b"), "A: <answer>1</answer>\na: <answer>5</answer>\nb: <answer>9</answer>", [5.0, 1.0, 9.0]),
    ],
)  # fmt: skip
def test_labels_of_any_kind_head_grades(labels: tuple[str, ...], said: str, grades: list[float] | None):
    outcome = PairScores(labels=tuple(labels)).parse(said, 3)
    assert isinstance(outcome, NoVerdict) if grades is None else outcome == Grades.sampled(grades)


def test_grades_to_the_end_of_a_line_may_be_headed_on_the_line_before():
    lines = PairScores(answer_open="Score:", answer_close="")
    assert lines.parse("Response B\nScore: 9\nResponse A\nScore: 2", 2) == Grades.sampled([2.0, 9.0])
    assert lines.parse("Score: 9\nScore: 2\n", 2) == Grades.sampled([9.0, 2.0])


def test_a_judge_that_names_the_best_first_ranks_by_what_it_names():
    worth = {"Paris is the capital of France.": 9, "I do not know.": 2}

    def best_first(request):
        shown = sorted(shown_candidates(request).items(), key=lambda item: -worth[item[1]])
        return "\n".join(f"**Response {label.strip()}**: <answer> {worth[text]} </answer>" for label, text in shown)

    judge = JudgeConfig(model="m", format="pair_scores", verdict="generate").build(ScriptedEngine(best_first))
    judgement = judge.rank("Capital of France?", list(worth))
    assert (judgement.best, judgement.grades_G) == (0, (9.0, 2.0))


@pytest.mark.parametrize("piece", ["*", "* ", " ", "B", "B ", "B:", "(B", "Response ", "\n", "B\n", '"', "1. ", "B ("])
def test_headings_in_long_texts_are_looked_for_once(piece: str):
    gap = piece * (10**6 // len(piece))
    began = time.thread_time()
    owners([gap, gap, gap], ("A", "B"))
    assert time.thread_time() - began < 2.0
