"""Rubrics: what a criterion may be, and the shapes in which public sets keep them."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.rubrics.reading import load_rubric, own_rubric, read_rubric, rubric_at

WORDS = ("dose", "unit", "source", "date", "cause", "risk", "name", "place", "number", "reason", "café", "剂量", "ok?")


def said(random: Random, number: int) -> str:
    return f"#{number} the answer names the {' and the '.join(random.sample(WORDS, 3))}."


def weight_of(random: Random) -> int:
    return random.choice([5, 4, 3, 2, 1, -1, -2])


def as_rubrics_as_rewards(random: Random, count: int) -> Any:
    kind = ("Essential", "Important", "Optional", "Pitfall")
    return [
        {
            "title": f"{random.choice(WORDS)} {n}",
            "description": f"{random.choice(kind)} Criteria: {said(random, n)}",
            "weight": weight_of(random),
        }
        for n in range(count)
    ]


def as_health_benchmarks(random: Random, count: int) -> Any:
    return [
        {
            "criterion": said(random, n),
            "points": random.choice([-10, -5, 3, 7, 10]),
            "tags": ["level:example", "axis:x"],
        }
        for n in range(count)
    ]


def as_plain_list(random: Random, count: int) -> Any:
    return [said(random, n) for n in range(count)]


def as_columns(random: Random, count: int) -> Any:
    rows = as_rubrics_as_rewards(random, count)
    return {key: [row[key] for row in rows] for key in rows[0]}


def as_numpy(random: Random, count: int) -> Any:
    return np.array(as_rubrics_as_rewards(random, count), dtype=object)


def as_arrow(random: Random, count: int) -> Any:
    pa = pytest.importorskip("pyarrow")
    rows = as_health_benchmarks(random, count)
    shape = pa.list_(pa.struct([("criterion", pa.string()), ("points", pa.int64()), ("tags", pa.list_(pa.string()))]))
    return pa.array([rows], shape)[0]


def as_json(random: Random, count: int) -> Any:
    shape = random.choice([as_rubrics_as_rewards, as_health_benchmarks, as_plain_list])
    return json.dumps(shape(random, count), ensure_ascii=random.random() < 0.5, indent=random.choice([None, 2]))


def as_wrapped(random: Random, count: int) -> Any:
    return {random.choice(["criteria", "rubrics", "rubric"]): as_health_benchmarks(random, count)}


def as_lines(random: Random, count: int) -> Any:
    mark = random.choice(["- ", "* ", "", "{}. ", "{}) ", "({}) "])
    return "\n".join(mark.format(n + 1) + said(random, n) for n in range(count))


SHAPES: list[Callable[[Random, int], Any]] = [
    as_rubrics_as_rewards, as_health_benchmarks, as_plain_list, as_columns, as_numpy, as_arrow, as_json, as_wrapped,
    as_lines,
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_thousand_rows_of_each_public_shape_load(shape: Callable[[Random, int], Any]):
    random = Random(shape.__name__)
    for row in range(1000):
        count = random.randint(1, 12)
        rubric = read_rubric(shape(random, count), f"row {row}")
        assert len(rubric.criteria) == count
        said_of = [re.search(r"#(\d+)", one.description) for one in rubric.criteria]
        assert [int(found[1]) for found in said_of if found] == [*range(count)], "each says what it said, in its order"
        assert read_rubric(rubric.as_json()) == rubric, "what is written is read again"
        assert read_rubric(rubric) is rubric


def test_the_same_criteria_are_read_alike_from_objects_columns_numpy_arrow_and_json():
    shapes = [as_rubrics_as_rewards, as_columns, as_numpy]
    objects, columns, arrays = (read_rubric(shape(Random(3), 9)) for shape in shapes)
    assert objects == columns == arrays
    assert read_rubric(as_health_benchmarks(Random(3), 9)) == read_rubric(as_arrow(Random(3), 9))
    assert [one.weight for one in objects.criteria] == [one["weight"] for one in as_rubrics_as_rewards(Random(3), 9)]


BAD: list[tuple[Any, str]] = [
    (None, "row 7: a rubric is a list"),
    (3, "row 7: a rubric is a list .* got int 3"),
    (math.nan, "row 7: a rubric is a list"),
    ("", "row 7: a rubric has 1 to 100 criteria; got 0"),
    ([], "row 7: a rubric has 1 to 100 criteria; got 0"),
    (["a"] * 101, "row 7: a rubric has 1 to 100 criteria; got 101"),
    ({}, "row 7: .* got an object with no key"),
    ({"score": 3}, "row 7: .* got an object with score"),
    ({"title": ["a", "b"], "weight": [1]}, "row 7: .* an object with title, weight"),
    ('[{"title": "dose"', "row 7: not JSON: .* line 1, column 18"),
    ('{"criteria": [', "row 7: not JSON"),
    (["a", ""], "row 7, criterion 2: description must be a text that is not empty"),
    (["a", "  \n"], "row 7, criterion 2: description must"),
    (["a", 5], "row 7, criterion 2: a criterion is a text or an object"),
    (["a", None], "row 7, criterion 2: a criterion is a text or an object"),
    ([["a"]], "row 7, criterion 1: a criterion is a text or an object"),
    (["Names the dose.", "names  the DOSE."], "row 7: 2 criteria have the description 'names the dose.'"),
    ([{"criterion": "a", "points": 0}], "row 7, criterion 1: points must be a finite number other than 0; got 0"),
    ([{"criterion": "a", "points": "5"}], "row 7, criterion 1: points must be a number; got '5'"),
    ([{"criterion": "a", "points": True}], "row 7, criterion 1: points must be a number; got True"),
    ([{"criterion": "a", "points": math.inf}], "points must be a finite number"),
    ([{"criterion": "a", "points": math.nan}], "points must be a finite number"),
    ([{"criterion": "a", "points": [1]}], r"points must be a number; got \[1\]"),
    ([{"criterion": "a", "points": 1, "weight": 2}], "criterion 1: has both weight and points"),
    ([{"criterion": "a", "points": 10**400}], "row 7, criterion 1: points must be a finite number other than 0; got 1000"),
    ([{"criterion": "a", "description": "b"}], "criterion 1: has both description and criterion"),
    ([{"title": "a", "name": "b", "text": "c"}], "criterion 1: has both name and title"),
    ([{"points": 1}], "row 7, criterion 1: no description; it has points"),
    ([{}], "row 7, criterion 1: no description; it has nothing"),
    ([{"description": 3}], "criterion 1: description must be a text"),
    ([{"title": "", "description": "b"}], "criterion 1: name must be a text that is not empty"),
    ([{"title": "dose", "description": "b", "wieght": 2}], "unknown key 'wieght'; did you mean 'weight'"),
    ([{"title": "dose", "desciption": "b"}], "unknown key 'desciption'; did you mean 'description'"),
    ([{"title": "a", "description": "b"}, {"title": "A ", "description": "c"}], "2 criteria have the name 'a'"),
    ([{"title": "dose", "description": "b", "weight": "high"}], r"row 7, criterion 1 \('dose'\): weight must be a number"),
    ([{"description": "b", "essential": "yes"}], "essential must be true or false; got 'yes'"),
    ([{"description": "b", "grades": ["good"]}], "grades must be at least two"),
    ([{"description": "b", "grades": []}], "grades must be at least two"),
    ([{"description": "b", "grades": ["good", "Good"]}], "grades must be at least two, all different"),
    ([{"description": "b", "grades": "bad, good"}], "grades must be words from worst to best"),
    ([{"description": "b", "grades": ["bad", "</answer>"]}], "grades are words that the judge writes"),
    ([{"description": "b", "grades": ["bad", "[End of criterion]"]}], "grades are words that the judge writes"),
    ([{"description": "b", "grades": ["bad", "good\n2: met"]}], "grades are words that the judge writes"),
    ([{"description": "b", "grades": ["bad", "x" * 41]}], "grades are words that the judge writes"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "said"), BAD)
def test_a_bad_row_is_refused_with_its_place_and_field(value: Any, said: str):
    with pytest.raises(InputError, match=said):
        read_rubric(value, "row 7")


def test_without_a_place_the_criterion_is_told():
    with pytest.raises(InputError, match=r"^criterion 2: points must be"):
        read_rubric([{"criterion": "a", "points": 1}, {"criterion": "b", "points": 0}])


def test_what_a_set_keeps_beside_and_leaves_empty_is_no_trouble():
    rows = [{"criterion": "a", "points": 5, "tags": ["x"], "id": 3, "grades": None, "title": None}]
    assert read_rubric(rows) == Rubric((Criterion("criterion 1", "a", 5),))
    assert read_rubric([{"title": "Names the dose", "weight": 2}]).criteria[0].description == "Names the dose"


YAML = """
criteria:
  - name: dose
    description: Names the dose.
    weight: 2
    essential: true
    grades:
      none: no dose is named
      range: a range
      exact: the exact dose
  - name: alarm
    description: Frightens the reader.
    weight: -1
"""


def test_a_rubric_for_a_whole_run_comes_from_a_file(tmp_path: Path):
    path = tmp_path / "rubric.yaml"
    path.write_text(YAML)
    rubric = load_rubric(path)
    dose, alarm = rubric.criteria
    assert dose.grades == (("none", "no dose is named"), ("range", "a range"), ("exact", "the exact dose"))
    assert (dose.weight, dose.essential, alarm.weight, alarm.essential) == (2, True, -1, False)
    assert rubric.names == ("dose", "alarm")
    assert pickle.loads(pickle.dumps(rubric)) == rubric == read_rubric(rubric.as_json())
    assert "exact (the exact dose)" in str(rubric)
    assert "(weight -1: counts against an answer)" in str(rubric)


def test_names_make_keys_of_their_own():
    names = ["dose", "no shouting!", "no-shouting", "剂量", "因", "Dose 2"]
    rubric = Rubric(tuple(Criterion(name, f"about {name}") for name in names))
    assert rubric.keys == ("dose", "no_shouting", "no_shouting_3", "4", "5", "Dose_2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("criteria: [", "rubric.yaml: .*line 1"),
        ("- name: a\n  description: b\n  points_: 3\n", "criterion 1: unknown key 'points_'; known are name"),
        ("- name: a\n  description: b\n  tags: [x]\n", "unknown key 'tags'"),
        ("", "rubric.yaml: a rubric is"),
    ],
)
def test_a_file_that_is_no_rubric_is_refused_by_name(tmp_path: Path, text: str, said: str):
    path = tmp_path / "rubric.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        load_rubric(path)
    with pytest.raises(InputError, match=r"missing\.yaml"):
        load_rubric(tmp_path / "missing.yaml")


OBJECTS = [{"criterion": "a", "points": 5}, {"criterion": "b", "points": -1}]
BOTH = "Criterion 1 of 2: a\nCriterion 2 of 2: b"


@pytest.mark.parametrize(
    ("value", "text", "descriptions", "because"),
    [
        (None, None, None, "none"),
        (math.nan, None, None, "nor what pandas writes for it"),
        (pd.NA, None, None, "or NA"),
        ("", "", "", "a text stays as it is"),
        ("- a\n- b", "- a\n- b", "- a\n- b", "and is read where it is judged by"),
        ('["a", "b"]', '["a", "b"]', '["a", "b"]', "JSON as well"),
        (5, "5", "5", "a number is a text"),
        (["a", "b"], BOTH, ["a", "b"], "texts are criteria too"),
        (("a", "b"), BOTH, ["a", "b"], "in a tuple"),
        (np.array(["a", "b"]), BOTH, ["a", "b"], "as an array"),
        (pa.scalar(["a", "b"]), BOTH, ["a", "b"], "as Arrow has them"),
        (["a"], "a", ["a"], "one of a list"),
        (["a\nb", "c"], "Criterion 1 of 2: a\nb\n\nCriterion 2 of 2: c", ["a\nb", "c"], "of several lines"),
    ],
)  # fmt: skip
def test_texts_are_shown_to_a_judge_without_criteria_and_are_criteria_to_one_that_has_them(
    value: Any, text: str | None, descriptions: str | list[str] | None, because: str
):
    assert own_rubric(value) == own_rubric(value, by_criteria=False) == text, because
    judged_by = own_rubric(value, "row 7", by_criteria=True)
    if not isinstance(descriptions, list):
        assert judged_by == descriptions, because
        return
    assert isinstance(judged_by, Rubric)
    assert [one.description for one in judged_by.criteria] == descriptions, because
    assert text is not None
    if len(descriptions) > 1:
        assert read_rubric(text) == judged_by, "where nobody knew, they are read from what is shown"


@pytest.mark.parametrize(
    "value",
    [OBJECTS, tuple(OBJECTS), np.array(OBJECTS, dtype=object), pa.array(OBJECTS), {"criteria": OBJECTS},
     {"criterion": ["a", "b"], "points": [5, -1]}, read_rubric(OBJECTS), list(read_rubric(OBJECTS).criteria)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_objects_are_criteria_and_a_judge_without_takes_a_rubric_alone(value: Any):
    assert own_rubric(value) == own_rubric(value, by_criteria=True) == read_rubric(OBJECTS)
    if isinstance(value, Rubric):
        assert own_rubric(value, by_criteria=False) is value
        return
    with pytest.raises(InputError, match="the rubric must be text, a number, or a list of these; got"):
        own_rubric(value, by_criteria=False)


@pytest.mark.parametrize(
    ("value", "by_criteria", "said"),
    [
        ([{"criterion": "a", "points": 0}], True, "row 7, criterion 1: points must be"),
        ([{"criterion": "a", "points": 0}], None, "row 7, criterion 1: points must be"),
        (
            [{"criterion": "a", "points": 1}],
            False,
            "extra.rubric: the rubric must be text.* with the fields criterion, p",
        ),
        ({"x": 1}, True, "row 7: a rubric is a list"),
        ({"x": 1}, False, "extra.rubric: the rubric must be text.* with the fields x; name one"),
        (["a", 5], True, "row 7, criterion 2: a criterion is a text or an object"),
        ([], True, "row 7: a rubric has 1 to 100 criteria; got 0"),
    ],
)
def test_what_a_row_holds_is_refused_in_the_words_of_what_the_judge_wants(value: Any, by_criteria: Any, said: str):
    with pytest.raises(InputError, match=said):
        rubric_at({"extra": {"rubric": value}}, "extra.rubric", by_criteria, "row 7")
    with pytest.raises(InputError, match=r"^(row 7|extra\.rubric\.a): a .* has no field 'a'"):
        rubric_at({"extra": {"rubric": "text"}}, "extra.rubric.a", by_criteria, "row 7")


@pytest.mark.parametrize("word", ["no", "yes", "No", "YES", "on", "off", "Off", "y", "n", "1e3"])
def test_a_grade_in_a_file_is_the_word_that_stands_there(tmp_path: Path, word: str) -> None:
    path = tmp_path / "rubric.yaml"
    for grades in (f"[{word}, partly]", f"{{{word}: bad, partly: good}}"):
        path.write_text(f"- {{description: Names the dose., grades: {grades}}}", encoding="utf-8")
        written = load_rubric(path).criteria[0].grades[0][0]
        assert written == ("1000.0" if word == "1e3" else word)


@pytest.mark.parametrize("grades", [[False, True], ["no", True], {True: "good", "no": "bad"}, {False: "", True: ""}])
def test_grades_that_a_reader_took_for_truth_values_are_refused(grades: Any) -> None:
    with pytest.raises(InputError, match=r"grades must be words.*quotes around yes, no"):
        read_rubric([{"description": "Names the dose.", "grades": grades}])
