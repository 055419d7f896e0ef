"""References and rubrics as data sets hold them, and what a judge is shown of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.fields import field_at, shown_at, shown_text
from mrjudge_reward.types import Group

TWO = "Reference 1 of 2: 4\nReference 2 of 2: four"


@pytest.mark.parametrize(
    ("value", "text", "because"),
    [
        ("4", "4", "text stands as it is"),
        (" 4 \n", " 4 \n", "with its spaces"),
        (4, "4", "a number means its numeral"),
        (1.5, "1.5", "of any kind"),
        (np.float32(1.5), "1.5", "numpy's"),
        (np.array("4"), "4", "an array without an axis is its entry"),
        (None, None, "nothing"),
        (float("nan"), None, "is NaN in a pandas column"),
        (pd.NA, None, "or NA"),
        ([], None, "no reference at all"),
        ([None, "", " ", float("nan")], None, "entries that say nothing"),
        (["4"], "4", "one of a list needs no number"),
        (["4", None], "4", "nor beside nothing"),
        (["4", "4", "4"], "4", "annotators who agree (SQuAD) gave one reference"),
        (["4", "four"], TWO, "several references"),
        (("4", "four"), TWO, "in a tuple"),
        ([4, "four"], TWO, "numbers and texts"),
        ([["4"], [["four"], []]], TWO, "of any depth"),
        (np.array(["4", "four"]), TWO, "as an array"),
        (np.array([np.array(["4"]), np.array(["four", "4"])], dtype=object), TWO, "as verl's Parquet rows have them"),
        (pd.Series(["4", "four"]), TWO, "as a series"),
        (pa.array([["4"], ["four"]]), TWO, "as Arrow has them"),
        (pa.chunked_array([["4"], ["four"]]), TWO, "in chunks"),
        (pa.scalar(["4", "four"]), TWO, "as one Arrow value"),
        (["a\nb", "c"], "Reference 1 of 2: a\nb\n\nReference 2 of 2: c", "lines of one are kept apart from the next"),
        (["1. Add.\n2. Halve.", "Reference 2 of 2: x"],
         "Reference 1 of 2: 1. Add.\n2. Halve.\n\nReference 2 of 2: Reference 2 of 2: x", "entries stand as they are"),
    ],
)  # fmt: skip
def test_a_reference_as_a_judge_is_shown_it(value: Any, text: str | None, because: str) -> None:
    assert shown_text(value, "reference") == text, because
    assert Group.of("q", ["a"], reference=value).reference == text, because
    rubric = text and text.replace("Reference 1", "Criterion 1").replace("\nReference 2", "\nCriterion 2")
    assert Group.of("q", ["a"], rubric=value).rubric == rubric, because


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"content": "4", "role": "user"}, "got dict with the fields content, role; name one of them"),
        ([{"title": "Brief", "weight": 2}], "got dict with the fields title, weight"),
        (["4", [b"four"]], "got bytes"),
        (object(), "got object"),
        ({"4"}, "got set"),
    ],
)
def test_what_is_neither_text_nor_numbers_is_refused(value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        shown_text(value, "rubric")
    with pytest.raises(InputError, match=rf"extra\.rubric: the rubric must be text, a number, or a list.*{says}"):
        shown_at({"extra": {"rubric": value}}, "extra.rubric", "rubric")


ROW = {
    "plain": "4",
    "extra": {"answer": "4", "deep": {"er": [1, 2]}, "none": None, "a.b": "dotted"},
    "answers": {"text": ["4", "four"], "answer_start": [0, 9]},
    "rubrics": [{"description": "brief", "weight": 1}, {"description": "kind"}],
    "arrays": np.array([{"text": np.array(["4"])}, {"text": None}, {}], dtype=object),
    "flat.name": "flattened",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("plain", "4"),
        ("extra.answer", "4"),
        ("extra.deep.er", [1, 2]),
        ("extra.none", None),
        ("extra.none.further", None),
        ("extra.missing", None),
        ("missing.at.all", None),
        ("extra.a.b", "dotted"),
        ("flat.name", "flattened"),
        ("answers.text", ["4", "four"]),
        ("rubrics.description", ["brief", "kind"]),
        ("rubrics.weight", [1, None]),
        ("arrays.text", [["4"], None, None]),
    ],
)
def test_paths_walk_down_mappings_and_through_lists(path: str, value: Any) -> None:
    found = field_at(ROW, path)
    assert (found == value) if not isinstance(found, np.ndarray) else found.tolist() == value


@pytest.mark.parametrize("path", ["plain.more", "extra.deep.er.more", "answers.text.more"])
def test_a_path_beyond_a_text_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="has no field 'more'"):
        field_at(ROW, path)
