"""The study of rubrics, with a scripted judge that knows which answer is longer, on tiny files in the sets' shapes."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.training.items import from_choice
from mrjudge_reward.types import Request
from recipes.common.config import read_config
from recipes.common.intervals import table
from recipes.data.referenced import referenced_pairs
from recipes.studies.rubrics import RubricStudy, credit, judges_of, measures, run, shared_words
from tests.support import ROOT

CONFIG = str(ROOT / "recipes" / "studies" / "rubrics.yaml")
QUESTIONS = 5


def truthful_file(folder: Path, **changed: str) -> str:
    """Right answers are the longer ones, but for the last."""
    rows = [
        {
            "Question": f"Why {number}?",
            "Best Answer": f"because of {number}",
            "Correct Answers": f"because of {number}; it is because of {number}; I have no comment",
            "Incorrect Answers": f"no {number}"
            if number < QUESTIONS - 1
            else "it is for no reason that anybody knows of",
            **changed,
        }
        for number in range(QUESTIONS)
    ]
    path = folder / "truthful.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def solutions_file(folder: Path) -> str:
    rows = [
        {
            "question": f"What is {number} and 1?",
            "ground_truth": f"It is {number}+1=<<{number}+1={number + 1}>>{number + 1}.\nA: {number + 1}",
            "6b": {"is_correct": number != 2, "solution": f"<<{number}+1={number + 1}>>{number + 1}\nA: {number + 1}"},
            "175b": {"is_correct": False, "solution": f"A: {number + 7}"},
        }
        for number in range(QUESTIONS)
    ]  # fmt: skip
    path = folder / "solutions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def study(folder: Path, **changed: Any) -> RubricStudy:
    values: dict[str, Any] = {
        "judge": {"model": "scripted", "verdict": "logprobs"},
        "ways": {
            "plain": {"format": "choice"},
            "reference": {"format": "choice"},
            "implicit": {"criteria": "implicit", "format": "choice"},
            "comparative": {"criteria": "comparative"},
            "written": {"criteria": "comparative", "criteria_per_call": 2, "verdict": "generate", "retries": 0},
            "absolute": {"criteria": "absolute"},
        },
        "bare": ["plain"],
        "sets": {
            "truthful_qa": {
                "path": truthful_file(folder),
                "count": QUESTIONS,
                "rubric": ["Agrees with the reference.", "Says no more."],
            }
        },
        "chunk": 2,
        "resamples": 50,
    }
    return RubricStudy(**{**values, **changed})


def judge(position_bias: float = 0.0) -> ScriptedEngine:
    return ScriptedEngine.by_utility(lambda text: len(text) / 4, position_bias)


def by_way(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["way"]: row for row in report["rows"]}


def test_every_way_judges_the_same_pairs_and_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    engine = judge()
    report = run(study(tmp_path), tmp_path / "run", engine)
    rows = by_way(report)
    assert list(rows) == ["plain", "reference", "implicit", "comparative", "written", "absolute", "shared words"]
    for way in ("plain", "reference", "implicit", "comparative", "absolute"):
        row = rows[way]
        assert (row["pairs"], row["failed"], row["why"], row["unknown"], row["tied"]) == (5, 0, None, 0, 0)
        assert row["mass"] == pytest.approx(1)
        assert row["right"][0] == 0.8, "the longer answer is right but once"
    assert [rows[way]["calls"] for way in rows if way != "shared words"] == [2, 2, 2, 4, 2, 4]
    assert rows["comparative"]["one"][0] == rows["comparative"]["both"][0] == 0.8
    assert rows["absolute"]["one"] is None, "no order where each is graded alone"
    assert rows["plain"]["difference"] is None
    assert rows["comparative"]["difference"] == (0, 0, 0)
    assert (rows["written"]["failed"], rows["written"]["unknown"], rows["written"]["mass"]) == (1, 1, None)
    assert rows["written"]["difference"][0] == pytest.approx(0.5 - 0.8)
    assert rows["written"]["why"] == "missing criterion 20", (
        "it answers without a name where two criteria are asked about"
    )
    assert rows["shared words"]["right"][0] == 1
    assert "| truthful_qa | comparative | 5 | 4.000 | 0.000 |" in "\n".join(table(report["rows"]))

    kept = (tmp_path / "run" / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 3 * 6, "three chunks, each in six ways"
    (tmp_path / "run" / "progress.jsonl").write_text("\n".join(kept[:9]) + "\n" + kept[9][:20], encoding="utf-8")
    again = judge()
    assert {way: row["right"] for way, row in by_way(run(study(tmp_path), tmp_path / "run", again)).items()} == {
        way: row["right"] for way, row in rows.items()
    }
    assert 0 < len(again.requests) < len(engine.requests)
    json.dumps(report)


def test_the_reference_and_the_rubric_are_shown_where_they_are_to_be(tmp_path: Path) -> None:
    engine = judge()
    run(study(tmp_path, chunk=QUESTIONS), tmp_path / "run", engine)
    shown = ["\n".join(message.text for message in request.messages) for request in engine.requests]
    first = 2 * QUESTIONS
    assert not any("[Reference answer" in text or "Agrees with" in text for text in shown[:first])
    assert all("[Reference answer" in text for text in shown[first:])
    assert not any("Agrees with" in text for text in shown[first : 2 * first])
    assert all("Agrees with" in text and "Says no more" in text for text in shown[2 * first : 3 * first])
    assert all(("Agrees with" in text) != ("Says no more" in text) for text in shown[3 * first : 5 * first])


def test_a_slot_that_is_favoured_shows_in_both_orders_and_not_in_what_is_decided(tmp_path: Path) -> None:
    rows = by_way(run(study(tmp_path), tmp_path / "run", judge(position_bias=8.0)))
    for way in ("plain", "comparative"):
        assert (rows[way]["one"][0], rows[way]["both"][0]) == (0.5, 0)
    assert rows["plain"]["right"][0] == 0.8
    assert rows["absolute"]["right"][0] == 0.8, "alone there is one slot"


def test_one_criterion_that_fails_leaves_the_verdict_to_the_other(tmp_path: Path) -> None:
    def script(request: Request) -> Any:
        if "Says no more" in request.messages[-1].text:
            raise TimeoutError("slow")
        lengths = {label: float(len(text)) for label, text in shown_candidates(request).items()}
        return {label: lengths.get(label.strip(), 1.0) / sum(lengths.values(), 1.0) for label in request.labels}

    ways = {"comparative": {"criteria": "comparative"}}
    row = run(study(tmp_path, ways=ways, bare=[]), tmp_path / "run", ScriptedEngine(script, reads=True))["rows"][0]
    assert (row["failed"], row["why"], row["unknown"]) == (0.5, "TimeoutError 10", 0)
    assert row["right"][0] == row["both"][0] == 0.8


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_of_several_votes_one_that_failed_hides_no_other(tmp_path: Path, failing: int) -> None:
    asked: Counter[str] = Counter()

    def script(request: Request) -> str:
        shown = shown_candidates(request)
        text = request.messages[-1].text
        asked[text] += 1
        longest = max(shown, key=lambda label: len(shown[label]))
        return "<think>hm" if asked[text] == failing + 1 else f"<answer>{longest}</answer>"

    how = {"format": "choice", "verdict": "generate", "temperature": 1.0, "votes": 3, "retries": 0, "schedule": "all_pairs",
           "both_orders": True}  # fmt: skip
    row = run(study(tmp_path, ways={"voted": how}, bare=[]), tmp_path / "run", ScriptedEngine(script))["rows"][0]
    assert row["failed"] == pytest.approx(1 / 3)
    assert row["one"][0] == row["both"][0] == row["right"][0] > 0


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        (0.4, 0.1, 1.0), (-0.1, 0.1, 0.0), (0.2, 0.2, 0.5), (0.2, 0.2 + 1e-9, 0.5), (0.0, 0.0, 0.5), (1e-7, 0.0, 1.0),
        (None, 0.1, None), (0.1, None, None), (None, None, None), (-5.0, -6.0, 1.0), (1.0, 0.0, 1.0),
    ],
)  # fmt: skip
def test_the_right_answer_is_ahead_or_not_or_nothing_is_known(
    right: float | None, wrong: float | None, expected: float | None
) -> None:
    assert credit(right, wrong) == expected


def test_ties_and_what_is_unknown_count_half_in_a_difference_and_are_not_right() -> None:
    row = measures([1.0, 0.5, None, 0.0], [0.0, 0.0, 0.5, 0.0], 50, 0)
    assert row["right"][0] == 0.25
    assert (row["tied"], row["unknown"]) == (0.25, 0.25)
    assert row["difference"][0] == pytest.approx((1 + 0.5 + 0 + 0) / 4)


@pytest.mark.parametrize(
    ("reference", "right", "wrong", "expected"),
    [
        ("a b c", "a b", "c d e", 1.0),
        ("a b c", "d", "a", 0.0),
        ("a b", "A, b!", "b a", 0.5),  # case, marks and order do not count
        ("A: 12", "A: 12", "A: 13", 1.0),
        ("a b", "a b and much more of it", "a b c", 0.0),  # length does
    ],
)
def test_shared_words_choose_by_overlap(reference: str, right: str, wrong: str, expected: float) -> None:
    for gold in (0, 1):
        item = from_choice("Which?", [right, wrong] if gold == 0 else [wrong, right], gold)
        assert shared_words(replace(item, group=replace(item.group, reference=reference))) == expected


def test_pairs_of_answers_written_by_people(tmp_path: Path) -> None:
    pairs = referenced_pairs("truthful_qa", truthful_file(tmp_path))
    assert len(pairs) == QUESTIONS
    for pair in pairs:
        right = pair.group.candidates[pair.gold_G.index(1.0)]
        assert right == f"it is {pair.group.reference}", "another answer than the reference"
    assert [p.group for p in pairs] == [p.group for p in referenced_pairs("truthful_qa", truthful_file(tmp_path))]
    assert referenced_pairs("truthful_qa", truthful_file(tmp_path), seed=1) != pairs


@pytest.mark.parametrize(
    "changed",
    [
        {"Best Answer": "I have no comment"},  # nothing to agree with
        {"Correct Answers": "because of it", "Best Answer": "because of it"},  # no second one
        {"Correct Answers": "I have no comment"},
        {"Incorrect Answers": ""},
        {"Incorrect Answers": " ; "},
        {"Correct Answers": "so", "Incorrect Answers": "so"},  # said to be both
    ],
)
def test_a_question_without_two_answers_beside_the_reference_gives_no_pair(
    changed: dict[str, str], tmp_path: Path
) -> None:
    assert referenced_pairs("truthful_qa", truthful_file(tmp_path, **changed)) == []


def test_pairs_of_solutions_are_of_the_same_question_and_without_a_calculator(tmp_path: Path) -> None:
    pairs = referenced_pairs("gsm8k", solutions_file(tmp_path))
    assert len(pairs) == QUESTIONS - 1, "one question has no right solution"
    for pair in pairs:
        text = "\n".join([str(pair.group.reference), *pair.group.candidates])
        assert "<<" not in text
        answer = str(pair.group.reference).rpartition("\n")[2]
        assert [candidate.endswith(answer) for candidate in pair.group.candidates] == [bool(g) for g in pair.gold_G]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("truthful_qa", "Question,Best Answer\nWhy?,So\n", "row 1 is none of truthful_qa: KeyError 'Correct Answers'"),
        ("gsm8k", '{"question": "What?"}\n', "row 1 is none of gsm8k: KeyError 'ground_truth'"),
        ("gsm8k", '{"question": "What?", "ground_truth": 3}\n', "row 1 is none of gsm8k: TypeError"),
        ("gsm8k", '{"question": "What?", "ground_truth": "A", "6b": {}}\n', "KeyError 'is_correct'"),
        ("truthful_qa", None, "is no CSV file"),
        ("gsm8k", None, "there is no file"),
    ],
)
def test_a_file_of_another_shape_is_refused_with_its_row(
    name: Any, text: str | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "some.jsonl"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        referenced_pairs(name, str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bare": ["simple"]}, "bare names 'simple', which is no way"),
        ({"ways": {}}, "ways"),
        ({"sets": {"mmlu": {}}}, "sets"),
        ({"sets": {"gsm8k": {"path": "x"}}}, "rubric"),
        ({"ways": {"plain": {"format": "choise"}}}, "choise"),
        (
            {"ways": {"all": {"criteria": "absolute", "criteria_per_call": 2, "verdict": "logprobs"}}},
            "criteria_per_call",
        ),
        ({"way": {}}, "unknown setting 'way'"),
    ],
)
def test_a_study_that_could_not_work_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        run(study(tmp_path, **{"bare": [], **change}), tmp_path / "run", judge())


def test_a_set_that_is_too_small_is_refused(tmp_path: Path) -> None:
    few = {"truthful_qa": {"path": truthful_file(tmp_path), "count": QUESTIONS + 1, "rubric": ["Is right."]}}
    with pytest.raises(ConfigError, match="truthful_qa has 5 pairs; lower its count of 6"):
        run(study(tmp_path, sets=few), tmp_path / "run", judge())


def test_the_config_compares_rubrics_to_a_plain_judge_that_sees_no_reference() -> None:
    config = RubricStudy(**read_config(CONFIG))
    judges = judges_of(config)
    assert next(iter(judges)) == config.bare[0] == "plain"
    assert [one.criteria for one in judges.values()] == [None, None, "implicit", "comparative", "absolute"]
    assert {one.verdict_mode for one in judges.values()} == {"logprobs"}
    assert sum(of["count"] for of in config.sets.values()) >= 200
