"""Rows of a data set, wherever they are: JSON lines, a JSON array, Parquet, a folder, or a name on the hub.

What a file is, its content says. Each row comes with where it stands, so that whoever refuses it can say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mrjudge_reward import json_lines
from mrjudge_reward.errors import InputError, require

_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".csv", ".arrow", ".txt")
"""Endings that no name on the hub has."""


def read_rows(path: str, split: str = "train", name: str | None = None) -> list[dict[str, Any]]:
    """Rows of a data set.

    Args:
        path: a file of JSON lines (packed with gzip or not), a JSON array of objects or Parquet, or what
            ``datasets.load_dataset`` takes: a folder, or a name on the hub.
        split: of a hub data set; a file is all one split.
        name: configuration of a hub data set.

    Raises:
        InputError: if there is no such file or data set, or it holds something else than rows; naming the line.
    """
    return [row for _, row in placed_rows(path, split, name)]


def placed_rows(path: str, split: str = "train", name: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The same, each with where it stands: ``"line 7"`` of JSON lines, ``"row 7"`` of all else."""
    file = Path(path)
    if file.is_dir() or not (file.exists() or file.suffix in _FILES or path.startswith(("/", ".", "~"))):
        return _numbered(_of_library(path, split, name))
    try:
        with file.open("rb") as stream:
            head = stream.read(4096)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if head.startswith(json_lines.PARQUET):
        return _numbered(_of_parquet(file))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return _numbered(_of_array(file))
    return [(f"line {number}", row) for number, row in json_lines.read(path)]


def _numbered(rows: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


def _of_library(path: str, split: str, name: str | None) -> Iterator[dict[str, Any]]:
    datasets = require("datasets", extra="trl")
    folder = Path(path)
    try:
        if any((folder / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json")):  # of save_to_disk
            found = datasets.load_from_disk(path)
            found = found[split] if isinstance(found, dict) else found
        else:
            found = datasets.load_dataset(path, name, split=split)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"there is no file {path}, and as a data set it cannot be loaded: {said:.300}") from error
    yield from found


def _of_parquet(file: Path) -> list[dict[str, Any]]:
    parquet = require("pyarrow.parquet", extra="trl")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise InputError(f"{file} begins like a Parquet file and is none: {error}") from error
    return rows


def _of_array(file: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} begins like a JSON array and is none: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{file}, row {number}: must be an object {{...}}; got {type(row).__name__}")
    return list(rows)
