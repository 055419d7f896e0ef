"""What a data set's columns bring to the judge beside the prompt: references, rubrics and anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.fields import anchors_at, shown_at
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.rubrics.reading import rubric_at


def column(columns: Mapping[str, Sequence[Any]], name: str) -> Sequence[Any]:
    """A column of the rows at hand.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in columns:
        raise ConfigError(f"the dataset has no column {name!r}; it has {', '.join(sorted(columns)) or 'none'}")
    return columns[name]


def shown_texts(columns: Mapping[str, Sequence[Any]], path: str | None, rows: int, name: str) -> Sequence[str | None]:
    """A reference or rubric per row, as the judge is shown it; None where a row has none.

    Args:
        columns: of the rows at hand.
        path: a column, or a dotted path to a field in one; None for no column.
        rows: how many there are.
        name: ``"reference"`` or ``"rubric"``.

    Raises:
        ConfigError: if there is no such column.
        InputError: if a row holds there what is neither text nor numbers.
    """
    return [shown_at(row, path, name) for row in _rows(columns, path, rows)]


def shown_rubrics(
    columns: Mapping[str, Sequence[Any]], path: str | None, rows: int, by_criteria: bool
) -> Sequence[str | Rubric | None]:
    """A rubric per row; as ``shown_texts``, or for a judge that has criteria as ``rubrics.reading.own_rubric`` reads it."""
    return [
        rubric_at(row, path, by_criteria, f"{path} of row {number}")
        for number, row in enumerate(_rows(columns, path, rows))
    ]


def anchor_texts(columns: Mapping[str, Sequence[Any]], path: str | None, rows: int) -> Sequence[tuple[str, ...] | None]:
    """The anchors that each row brings; as ``shown_texts``."""
    return [anchors_at(row, path) for row in _rows(columns, path, rows)]


def _rows(columns: Mapping[str, Sequence[Any]], path: str | None, rows: int) -> list[dict[str, Any]]:
    """Of each row what a path is about."""
    if path is None:
        return [{}] * rows
    head = path if path in columns else path.partition(".")[0]
    return [{head: value} for value in column(columns, head)]
