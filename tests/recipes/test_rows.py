"""Rows of data sets: lines, arrays, Parquet, folders and hub names, told by their content; each row knows its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.messages import final_answer
from mrjudge_reward.training.items import from_preference
from recipes.common.rows import placed_rows, read_rows
from tests.training.test_layouts import LAYOUTS, TEXTS

ROWS = [{"prompt": "q\u2028", "chosen": "a", "rejected": "b"}, {"prompt": "r", "chosen": "c", "rejected": "d"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def written(path: Path, rows: list[dict[str, Any]], kind: str) -> str:
    """Rows in a file of a kind, whatever its name says."""
    if kind == "parquet":
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "array":
        path.write_text("\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if kind == "packed lines" else lines)
    return str(path)


@pytest.mark.parametrize("kind", ["lines", "packed lines", "array", "parquet"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.ndjson", "rows"])
def test_the_content_says_what_a_file_is(tmp_path: Path, kind: str, name: str):
    path = written(tmp_path / name, ROWS, kind)
    assert read_rows(path) == ROWS
    unit = "line" if "lines" in kind else "row"
    assert [place for place, _ in placed_rows(path)] == [f"{unit} 1", f"{unit} 2"]


def test_the_place_of_a_row_is_its_line(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    assert [place for place, _ in placed_rows(str(path))] == ["line 2", "line 4"]


def test_folders_and_saved_data_sets_are_read_by_the_library(tmp_path: Path):
    import datasets

    (tmp_path / "set").mkdir()
    written(tmp_path / "set" / "train.jsonl", ROWS, "lines")
    assert read_rows(str(tmp_path / "set")) == ROWS
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    assert read_rows(str(tmp_path / "one")) == ROWS
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "several")
    assert read_rows(str(tmp_path / "several"), "test") == ROWS[1:]
    with pytest.raises(InputError, match="cannot be loaded"):
        read_rows(str(tmp_path / "several"), "validation")
    with pytest.raises(InputError, match="cannot be loaded"):
        read_rows(str(tmp_path / "set"), "validation")


@pytest.mark.parametrize(
    "name", ["none.jsonl", "none.parquet", "none.json", "none.jsonl.gz", "/nowhere", "./none", "none.csv"]
)
def test_a_file_that_is_not_there_is_not_asked_of_the_hub(name: str):
    with pytest.raises(InputError, match=f"there is no file {name}"):
        read_rows(name)


def test_a_hub_name_that_cannot_be_had_is_said_in_the_librarys_words():
    with pytest.raises(InputError, match=r"there is no file nobody/nothing, and as a data set it cannot be loaded: .+"):
        read_rows("nobody/nothing")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "line 1: cut off"),
        (b'{"a": 1}\n3', "line 2: must be an object"),
        (b'"text"', "line 1: must be an object"),
        (b"[1]", "row 1: must be an object {...}; got int"),
        (b'[{"a": 1}, [2]]', "row 2: must be an object {...}; got list"),
        (b'[{"a": 1}', "begins like a JSON array and is none: Expecting"),
        (b"[\xe9]", "begins like a JSON array and is none: 'utf-8' codec"),
        (b"PAR1 and nothing else", "begins like a Parquet file and is none"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"\x89PNG\r\n", "is an image"),
        (b"prompt,chosen,rejected\nq,a,b\n", "line 1: not JSON: Expecting value"),
        (json.dumps(ROWS[0], indent=2).encode(), "is a pretty-printed JSON document"),
    ],
)
@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json"])
def test_a_file_that_holds_no_rows_is_named(tmp_path: Path, name: str, data: bytes, said: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_rows(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert said in str(caught.value)


PAIRS = [texts for texts in TEXTS if "A half pair" not in texts[0]]  # no file of UTF-8 can hold one


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_of_each_layout_survive_a_file_of_lines_and_one_of_parquet(tmp_path: Path, name: str):
    rows = [LAYOUTS[name](*texts) for texts in PAIRS]
    kinds = ["parquet"] if any(isinstance(value, bytes) for value in _leaves(rows)) else ["lines", "parquet"]
    for kind in kinds:
        items = [from_preference(row) for row in read_rows(written(tmp_path / "rows", rows, kind))]
        best = [item.group.candidates[item.gold_G.index(max(item.gold_G))] for item in items]
        assert best == [final_answer(better) for _, better, _ in PAIRS], kind


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    else:
        yield value
