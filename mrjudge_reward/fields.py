"""References, anchors and rubrics as data sets keep them: a field of a row, and the text that a judge is shown of it.

A path walks down mappings and through lists: ``answers.text`` of ``{"answers": [{"text": "4"}, {"text": "four"}]}`` is both
texts. Of several texts each is numbered, so that a judge can tell where one ends.

>>> print(shown_text(["4", "four"], "reference"))
Reference 1 of 2: 4
Reference 2 of 2: four
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any, TypeAlias

from .errors import InputError

Shown: TypeAlias = str | float | Sequence["Shown"] | None
"""A reference, rubric or anchors: text, a number, or a list of these of any depth."""

_ENTRY = {"reference": "Reference", "rubric": "Criterion"}
_AS_PYTHON = ("tolist", "to_pylist", "as_py")
"""How arrays, series and scalars of numpy, pandas and pyarrow become Python's own."""
_NOTHING = ("NAType", "NaTType")
"""What pandas writes where nothing is, besides NaN."""


def shown_at(row: Mapping[str, Any], path: str | None, name: str) -> str | None:
    """A row's reference or rubric as text; None if it has none, or no path is given.

    Args:
        row: field names to values.
        path: a dotted path.
        name: ``"reference"`` or ``"rubric"``.

    Raises:
        InputError: if something else than texts and numbers is there.
    """
    try:
        return None if path is None else shown_text(field_at(row, path), name)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def field_at(value: Any, path: str) -> Any:
    """The value at a dotted path of a row; None where there is none. Of a list on the way it is the list of what its entries
    hold.

    Raises:
        InputError: if a text or a number on the way should have fields.
    """
    value = plain(value)
    if not path or value is None:
        return value
    if isinstance(value, list | tuple):
        return [field_at(entry, path) for entry in value]
    if not isinstance(value, Mapping):
        raise InputError(f"a {type(value).__name__} has no field {path!r}: {value!r:.60}")
    if path in value:  # a name may hold a dot: columns that were flattened
        return value[path]
    name, _, further = path.partition(".")
    return field_at(value.get(name), further)


def shown_text(value: Any, name: str) -> str | None:
    """A reference or rubric as text; None if there is none.

    Args:
        value: text, a number, None, or a list of these of any depth; also as numpy, pandas or pyarrow hold it. Of a list,
            what says nothing and what was said before is left out.
        name: ``"reference"`` or ``"rubric"``.

    Raises:
        InputError: if something else is there.
    """
    value = plain(value)
    if not isinstance(value, list | tuple):
        return _text(value, name)
    texts = texts_of(value, name)
    if len(texts) < 2:
        return texts[0] if texts else None
    entries = [f"{_ENTRY[name]} {number} of {len(texts)}: {text}" for number, text in enumerate(texts, 1)]
    return ("\n\n" if any("\n" in text for text in texts) else "\n").join(entries)


def texts_of(value: Any, name: str) -> tuple[str, ...]:
    """All texts of a value that says one or several things; what says nothing and what was said before is left out.

    Args:
        value, name: as in ``shown_text``.

    Raises:
        InputError: if something else than texts and numbers is there.
    """
    return tuple(dict.fromkeys(text for text in _leaves([value], name) if text.strip()))


def anchors_at(row: Mapping[str, Any], path: str | None) -> tuple[str, ...] | None:
    """The anchors that a row brings at a dotted path; None if no path is given.

    Raises:
        InputError: if something else than texts and numbers is there.
    """
    try:
        return None if path is None else texts_of(field_at(row, path), "anchor")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def numbered(text: str, name: str) -> list[str]:
    """The entries of a list that ``shown_text`` made this text of; none if it made it of no list."""
    opening, *entries = re.split(rf"(?:^|\n){_ENTRY[name]} \d+ of \d+: ", text)
    return [] if opening else [entry.strip() for entry in entries]


def _leaves(values: list[Any] | tuple[Any, ...], name: str) -> Iterator[str]:
    for entry in map(plain, values):
        if isinstance(entry, list | tuple):
            yield from _leaves(entry, name)
        elif (text := _text(entry, name)) is not None:
            yield text


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Number):
        return None if value != value else str(value)
    if type(value).__name__ in _NOTHING:
        return None
    fields = f" with the fields {', '.join(map(str, value))}; name one of them" if isinstance(value, Mapping) else ""
    raise InputError(f"the {name} must be text, a number, or a list of these; got {type(value).__name__}{fields}")


def plain(value: Any) -> Any:
    """A value of numpy, pandas or pyarrow as Python's own; others as they are."""
    for name in _AS_PYTHON:
        if hasattr(value, name):
            return getattr(value, name)()
    return value
