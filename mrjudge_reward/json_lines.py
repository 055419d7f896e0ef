"""JSON lines, read in one way wherever they are read: one object a line, in UTF-8, packed with gzip or not.

What a file is, its content says, not its name. A byte-order mark, ``\\r\\n``, blank lines and line separators inside a text
(U+2028, U+0085) are no trouble, and a line has the number that an editor shows. ``NaN`` and ``Infinity`` are not JSON: they
are read as null. Another kind of file is refused in one sentence that names it; a bad line in one that gives its number.

>>> stream = io.BytesIO(b'\\xef\\xbb\\xbf{"prompt": "one\\xe2\\x80\\xa8two"}\\r\\n\\r\\n{"prompt": NaN}')
>>> [(number, parsed(raw)) for number, raw in lines(stream, "a.jsonl")]
[(1, {'prompt': 'one\\u2028two'}), (3, {'prompt': None})]
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from .errors import InputError

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
PARQUET = b"PAR1"
"""What a Parquet file begins with."""

_SAVE = "save it as UTF-8"
_UNPACK = "unpack it first"
_WRITE = "write one JSON object a line"
_KINDS = (
    (PARQUET, "a Parquet file", "convert it with datasets.Dataset.from_parquet(...).to_json(...)"),
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"\x89PNG", "an image", _WRITE),
    (b"\xff\xd8\xff", "an image", _WRITE),
    (b"GIF8", "an image", _WRITE),
    (b"RIFF", "an image or a sound", _WRITE),
    (b"%PDF", "a PDF", _WRITE),
    (b"ARROW1", "an Arrow file", "convert it with datasets.Dataset.from_file(...).to_json(...)"),
    (b"\xff\xff\xff\xff", "an Arrow file", "convert it with datasets.Dataset.from_file(...).to_json(...)"),
    (b"SQLite format 3", "a SQLite database", _WRITE),
    (b"\xff\xfe", "UTF-16 text", _SAVE),
    (b"\xfe\xff", "UTF-16 text", _SAVE),
    (b"version https://git-lfs", "a pointer of Git LFS, without the data", "run git lfs pull"),
    (_GZIP, "packed with gzip twice", _UNPACK),
    (b"<", "HTML or XML", _WRITE),
)
"""Beginning → what it is, and what to do."""


Name: TypeAlias = str | os.PathLike[str]


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Errors about the content of a line begin with where it is, as in ``"pairs.jsonl, line 7"``.

    Raises:
        InputError: for what is raised inside and says that a value is missing, of another type or none that there can be.
    """
    try:
        yield
    except KeyError as error:
        raise InputError(f"{where}: lacks {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from error


def read(path: Name) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, with the numbers of their lines.

    Raises:
        InputError: if there is no such file, it is of another kind, or a line is no object; nothing is left out.
    """
    with opened(path) as stream:
        for number, raw in lines(stream, path):
            with placed(f"{path}, line {number}"):
                record = parsed(raw)
            yield number, record


def opened(path: Name) -> BinaryIO:
    """A file of JSON lines, unpacked; to be closed.

    Raises:
        InputError: if there is no such file, or it is of another kind.
    """
    stream: Any = None
    try:
        with _readable(path):
            stream = Path(path).open("rb")  # noqa: SIM115  the caller closes it
            if beginning(stream) == _GZIP:
                stream.close()
                stream = gzip.open(path)  # noqa: SIM115
        return unpacked(stream, path)
    except BaseException:
        if stream is not None:
            stream.close()
        raise


def unpacked(stream: Any, name: Name) -> BinaryIO:
    """A stream of JSON lines, unpacked.

    Raises:
        InputError: if it is of another kind.
    """
    stream = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    with _readable(name):
        if beginning(stream) == _GZIP and not isinstance(stream, gzip.GzipFile):
            stream = gzip.GzipFile(fileobj=stream)
        head = beginning(stream, 64)
    kinds = [(kind, cure) for start, kind, cure in _KINDS if head.startswith(start)]
    if b"\0" in head:
        kinds.append(("UTF-16 or UTF-32 text", _SAVE) if b"\0" in head[:2] else ("binary data", _WRITE))
    if kinds:
        raise InputError(f"{name} is {kinds[0][0]}, not JSON lines; {kinds[0][1]}")
    return stream  # type: ignore[no-any-return]


def beginning(stream: Any, count: int = 2) -> bytes:
    """The first bytes of a buffered stream, which stay in it; of a pipe those that are there."""
    return bytes(stream.peek(count)[:count])


@contextmanager
def _readable(name: Name) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"there is no file {name}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: the gzip data are cut off or damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or error}") from error


def lines(stream: Any, name: Name) -> Iterator[tuple[int, bytes]]:
    """The lines of an unpacked stream that are not blank, with their numbers.

    Raises:
        InputError: if the first lines are those of one JSON document that stands on several.
    """
    first = True
    for number in itertools.count(1):
        with _readable(name):
            raw = stream.readline()
        if not raw:
            return
        raw = raw.removeprefix(_BOM)
        if not raw.strip():
            continue
        if first and raw.rstrip()[-1:] in b"{[,:":
            with _readable(name):
                _refuse_document(raw.strip(), bytes(stream.peek(4096)).lstrip(), name)
        first = False
        yield number, raw


def _refuse_document(first: bytes, after: bytes, name: Name) -> None:
    """Raise InputError if what is open at its line's end goes on in the next, rather than a line that was cut off."""
    if first[:1] == b"[" and after:
        raise InputError(f"{name} is one JSON array, not JSON lines; {_WRITE} (jq -c '.[]')")
    if first[:1] == b"{" and after and after[:1] != b"{":
        raise InputError(f"{name} is a pretty-printed JSON document, not JSON lines; {_WRITE} (jq -c .)")


def parsed(raw: bytes) -> dict[str, Any]:
    """The object of a line.

    Raises:
        InputError: if it is none; the caller names the line.
    """
    ended = raw.endswith(b"\n")
    try:
        text = raw.removeprefix(_BOM).decode("utf-8")
        record = json.loads(text, parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and not ended:
            raise InputError("cut off: the file ends within a letter of this line") from error
        raise InputError(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start} (Latin-1 or Windows-1252?); {_SAVE}"
        ) from error
    except json.JSONDecodeError as error:
        unfinished = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        if unfinished and not ended:
            raise InputError(f"cut off: the file ends within this line ({error.msg})") from error
        raise InputError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        hint = "; a file that is one array is no JSON lines (jq -c '.[]' writes one object a line)"
        raise InputError(
            f"must be an object {{...}}; got {type(record).__name__}{hint if isinstance(record, list) else ''}"
        )
    return record
