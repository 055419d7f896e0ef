"""One reader for all JSON lines: what a file is, its content says; nothing is left out, and what is wrong has its line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrjudge_reward import json_lines
from mrjudge_reward.errors import InputError
from mrjudge_reward.monitoring.canaries import load_canaries
from recipes.common.rows import read_rows
from recipes.data.captions import read_captions
from recipes.judge.train_sft import written_rows
from recipes.policy.policies import read_prompt_rows


def gzipped(data: bytes) -> bytes:
    """Without the time, so that all workers give a test the same name."""
    return gzip.compress(data, mtime=0)


BOM = b"\xef\xbb\xbf"
ROW = b'{"a": "one"}'
TWO = [(1, {"a": "one"}), (2, {"a": "two"})]


def found(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(json_lines.read(path))


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'{"a": "one"}\n{"a": "two"}\n', TWO),
        (b'{"a": "one"}\n{"a": "two"}', TWO),  # no end of the last line
        (BOM + b'{"a": "one"}\r\n{"a": "two"}\r\n', TWO),  # as Windows writes it
        (b'{"a": "one"}\n' + BOM + b'{"a": "two"}\n', TWO),  # two files joined
        (gzipped(b'{"a": "one"}\n{"a": "two"}\n'), TWO),
        (gzipped(b'{"a": "one"}\n') + gzipped(b'{"a": "two"}\n'), TWO),  # two packed files joined
        (gzipped(BOM + b'{"a": "one"}\r\n{"a": "two"}'), TWO),
        (b'\n\n{"a": "one"}\n \t\r\n{"a": "two"}\n\n', [(3, {"a": "one"}), (5, {"a": "two"})]),  # blank lines count
        ('{"a": "x\u2028y\u2029z\x85w"}\n{"a": 2}'.encode(), [(1, {"a": "x\u2028y\u2029z\x85w"}), (2, {"a": 2})]),
        (b'{"a": "x\\ud83d"}\n', [(1, {"a": "x\ud83d"})]),  # half a surrogate pair
        (b'{"a": NaN, "b": [Infinity, -Infinity, 1]}', [(1, {"a": None, "b": [None, None, 1]})]),
        (b'  {"a": "one"}  \n', [(1, {"a": "one"})]),
        (b'{"a": "' + b"x" * 300_000 + b'"}\n{"a": 2}', [(1, {"a": "x" * 300_000}), (2, {"a": 2})]),
        (b"", []),
        (BOM, []),
        (gzipped(b""), []),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "rows.jsonl.gz", "rows"])
def test_what_a_file_holds_is_read_whatever_it_is_called(tmp_path: Path, name: str, data: bytes, rows: Any):
    path = tmp_path / name
    path.write_bytes(data)
    assert found(path) == rows


OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), st.text(), max_size=3), max_size=4)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n"])


@given(OBJECTS, ENDS, st.booleans())
def test_any_objects_come_back_as_they_were(objects: list[dict[str, Any]], end: bytes, packed: bool):
    data = b"".join(json.dumps(one, ensure_ascii=False).encode() + end for one in objects)
    stream = json_lines.unpacked(io.BytesIO(gzipped(data) if packed else data), "x")
    assert [json_lines.parsed(raw) for _, raw in json_lines.lines(stream, "x")] == objects


def parquet(folder: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), folder / "t")
    return (folder / "t").read_bytes()


OTHER_KINDS = [
    (parquet, "is a Parquet file, not JSON lines; convert it"),
    (b"PK\x03\x04rest", "is a zip archive, not JSON lines; unpack it first"),
    (bz2.compress(ROW), "is packed with bzip2, not JSON lines; unpack it first"),
    (lzma.compress(ROW), "is packed with xz, not JSON lines; unpack it first"),
    (b"\x28\xb5\x2f\xfd rest", "is packed with zstd"),
    (gzipped(gzipped(ROW)), "is packed with gzip twice"),
    (b"\x89PNG\r\n\x1a\n\0\0", "is an image, not JSON lines"),
    (b"\xff\xd8\xff\xe0\0\x10JFIF", "is an image, not JSON lines"),
    (b"%PDF-1.7\n", "is a PDF, not JSON lines"),
    (b"ARROW1\0\0", "is an Arrow file, not JSON lines"),
    (b"SQLite format 3\0", "is a SQLite database"),
    ('{"a": "one"}\n'.encode("utf-16"), "is UTF-16 text, not JSON lines; save it as UTF-8"),
    ('{"a": "one"}\n'.encode("utf-16-le"), "is UTF-16 or UTF-32 text, not JSON lines; save it as UTF-8"),
    ('{"a": "one"}\n'.encode("utf-32-be"), "is UTF-16 or UTF-32 text"),
    (b"\x01\x02\x03\0\0\0", "is binary data, not JSON lines"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS, without the data"),
    (b"<!doctype html>\n<title>Sign in</title>", "is HTML or XML, not JSON lines"),
    (json.dumps({"a": 1, "b": [1]}, indent=2).encode(), "is a pretty-printed JSON document, not JSON lines; write one"),
    (2 * (json.dumps({"a": 1}, indent=2).encode() + b"\n"), "is a pretty-printed JSON document"),
    (json.dumps([{"a": 1}, {"a": 2}], indent=2).encode(), "is one JSON array, not JSON lines; write one"),
    (b'[{"a": 1},\n{"a": 2}]\n', "is one JSON array, not JSON lines; write one"),
    (gzipped(json.dumps([{"a": 1}], indent=2).encode()), "is one JSON array"),
    (gzipped(ROW * 1000)[:-20], ": the gzip data are cut off or damaged"),
]


@pytest.mark.parametrize(("data", "said"), OTHER_KINDS)
def test_another_kind_of_file_is_named_in_one_sentence(tmp_path: Path, data: Any, said: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data(tmp_path))
    with pytest.raises(InputError) as caught:
        found(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_LINES = [
    (b'{"a": "on', "cut off: the file ends within this line"),
    (b'{"a": 1', "cut off: the file ends within this line"),
    (b'{"a":', "cut off: the file ends within this line"),
    ('{"a": "é'.encode()[:-1], "cut off: the file ends within a letter of this line"),
    (b'{"a": "on\n{"a": 2}\n', "not JSON: Invalid control character"),  # cut off, and then appended to
    (b'{"a": 1} {"a": 2}\n', "not JSON: Extra data at column 10"),
    (b"{'a': 1}\n", "not JSON: Expecting property name"),
    (b"a,b\n1,2\n", "not JSON: Expecting value at column 1"),  # CSV
    (
        '{"a": "caf\u00e9"}\n'.encode("latin-1"),
        "not UTF-8: byte 0xe9 at position 10 (Latin-1 or Windows-1252?); save it",
    ),
    (b"[1]\n", "must be an object {...}; got list; a file that is one array"),
    (b'"text"\n', "must be an object {...}; got str"),
    (b"3\n", "must be an object {...}; got int"),
    (b"null\n", "must be an object {...}; got NoneType"),
    (b"[" * 100_000 + b"\n", "not JSON: "),
    (b'{"a": ' + b"1" * 5000 + b"}\n", "not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("bad", "said"), BAD_LINES)
def test_a_bad_line_is_an_error_with_its_number_and_never_left_out(tmp_path: Path, bad: bytes, said: str):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW + b"\n\n" + bad)
    with pytest.raises(InputError) as caught:
        found(path)
    assert str(caught.value).startswith(f"{path}, line 3: {said}")


@pytest.mark.parametrize("first", [b'{"a": 1,\n', b"{\n"])
def test_a_first_line_that_is_cut_off_is_no_document(tmp_path: Path, first: bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(first + ROW)  # another object follows, not the rest of this one
    with pytest.raises(InputError, match="line 1: not JSON"):
        found(path)


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path):
    with pytest.raises(InputError, match=r"there is no file .*none\.jsonl"):
        found(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="Is a directory"):
        found(tmp_path)


# -- every reader -----------------------------------------------------------------------------------------------------


def prompts(path: str) -> list[Any]:
    return [(number, row["prompt"]) for number, row in read_prompt_rows(path)]


READERS: list[tuple[Callable[[Any], Any], dict[str, Any]]] = [
    (load_canaries, {"kind": "k", "prompt": "one\u2028two", "candidates": ["good\x85", "bad"]}),
    (read_rows, {"prompt": "one\u2028two", "chosen": "x", "rejected": "y"}),
    (written_rows, {"messages": [{"role": "user", "content": "one\u2028two"}], "answer": "<answer>A</answer>"}),
    (prompts, {"prompt": "one\u2028two"}),
    (read_captions, {"image": "a.png", "caption": "one\u2028two", "category": "c"}),
]


@pytest.mark.parametrize(("read", "row"), READERS)
def test_all_readers_read_alike_and_name_the_line_that_is_cut(tmp_path: Path, read: Any, row: dict[str, Any]):
    path = tmp_path / "rows.jsonl"
    line = json.dumps(row, ensure_ascii=False).encode()
    path.write_bytes(gzipped(BOM + line + b"\r\n\r\n" + line))
    assert len(read(str(path))) == 2
    path.write_bytes(line + b"\n" + line[:-3])
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: cut off"):
        read(str(path))
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"rows\.jsonl is an image, not JSON lines"):
        read(str(path))
    with pytest.raises(InputError, match="there is no file"):
        read(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(("read", "field"), [(load_canaries, "kind"), (written_rows, "answer")])
def test_a_line_that_lacks_a_field_is_named_with_it(tmp_path: Path, read: Any, field: str):
    row = dict(next(row for reader, row in READERS if reader is read))
    del row[field]
    (tmp_path / "rows.jsonl").write_text("\n" + json.dumps(row))
    with pytest.raises(InputError, match=f"line 2: lacks '{field}'"):
        read(str(tmp_path / "rows.jsonl"))
