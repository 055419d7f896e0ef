"""What a data set's columns bring to the judge beside the prompt: references and rubrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.fields import shown_at


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
    if path is None:
        return [None] * rows
    head = path if path in columns else path.partition(".")[0]
    return [shown_at({head: value}, path, name) for value in column(columns, head)]
