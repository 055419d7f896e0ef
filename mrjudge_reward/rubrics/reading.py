"""One reader for the shapes in which rubrics are kept; every fault is told with its row, criterion and field.

==========================================================  ===============================================================
shape                                                       where
==========================================================  ===============================================================
``[{title, description, weight}, ...]``                     sets after Rubrics as Rewards (arXiv 2507.17746)
``[{criterion, points, ...}, ...]``                         sets after HealthBench (arXiv 2505.08775)
``["Names the dose.", ...]``                                plain lists; every weight is 1
``{title: [...], description: [...], weight: [...]}``       what ``datasets`` makes of a list of objects
``{"criteria": [...]}``, ``{"rubrics": [...]}``             any of these in an object
text                                                        JSON of any of these; else a criterion a line
==========================================================  ===============================================================

Lists may be of numpy or pyarrow. Further keys (tags, ids) are left alone, but for those that are a known one misspelt.

>>> print(read_rubric('[{"criterion": "Names the dose.", "points": 5}, {"criterion": "Invents a drug.", "points": -3}]'))
1. Names the dose. (weight 5)
2. Invents a drug. (weight -3: counts against an answer)
>>> read_rubric([{"title": "dose", "description": "Names the dose.", "weight": 0}], "row 7")
Traceback (most recent call last):
    ...
mrjudge_reward.errors.InputError: row 7, criterion 1 ('dose'): weight must be a finite number other than 0; got 0
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mrjudge_reward.errors import InputError
from mrjudge_reward.fields import field_at, numbered, plain, shown_at, shown_text
from mrjudge_reward.yaml_files import WordLoader, read_yaml

from .criteria import Criterion, Rubric

_NAMES = ("name", "title")
_TEXTS = ("description", "criterion", "criteria", "text")
_WEIGHTS = ("weight", "points")
_KNOWN = (*_NAMES, *_TEXTS, *_WEIGHTS, "grades", "essential")
_LISTS = ("criteria", "rubrics", "rubric")
_LIST_MARK = re.compile(r"\s*(?:[-*•]|\(?\d+[.)])\s+")
_WHAT = "a list of criteria (texts, or objects with a description and a weight), or such a list as JSON text"


def read_rubric(value: Any, where: str = "") -> Rubric:
    """A rubric in any of the shapes of the module.

    Args:
        value: as it stands in a data set.
        where: added to errors, such as ``"row 7"``.

    Raises:
        InputError: if it is none of them; it says where, in which criterion and in which field.
    """
    if isinstance(value, Rubric):
        return value
    place = f"{where}: " if where else ""
    if isinstance(value, str):
        value = _from_text(value, place)
    try:
        return Rubric(tuple(_criterion(entry, number, where) for number, entry in enumerate(_entries(value, place), 1)))
    except InputError as error:
        said = str(error)
        raise InputError(said if said.startswith((where or "criterion ", "criterion ")) else place + said) from None


def load_rubric(path: str | os.PathLike[str]) -> Rubric:
    """A rubric from a YAML (or JSON) file; there, a key that is not known is refused.

    Raises:
        InputError: if the file cannot be read, or holds something else.
    """
    value = read_yaml(path, WordLoader, InputError)  # in which a grade may be called no
    for number, entry in enumerate(_entries(value, f"{path}: "), 1):
        strange = [str(key) for key in entry if key not in _KNOWN] if isinstance(entry, Mapping) else []
        if strange:
            raise InputError(f"{path}, criterion {number}: unknown key {strange[0]!r}; known are {', '.join(_KNOWN)}")
    return read_rubric(value, str(path))


def own_rubric(value: Any, where: str = "", by_criteria: bool | None = None) -> str | Rubric | None:
    """A prompt's own rubric: criteria, or the text that a judge is shown (see ``fields.shown_text``); None if there is none.

    Args:
        value: as it stands in a data set. A text stays as it is, also where it is to be read as criteria.
        where: added to errors.
        by_criteria: whether lists and objects are criteria, as for a judge that has ``criteria``, or texts to be shown. If
            nobody knows, they are criteria where they hold objects.

    Raises:
        InputError: if it is neither; see ``read_rubric`` and ``fields.shown_text``.
    """
    value = plain(value)
    if by_criteria is None:
        entries = [value, *value] if isinstance(value, list | tuple) else [value]
        by_criteria = any(isinstance(entry, Mapping | Criterion) for entry in entries)
    if isinstance(value, Rubric) or (by_criteria and isinstance(value, Mapping | list | tuple)):
        return read_rubric(value, where)
    return shown_text(value, "rubric")


def rubric_at(
    row: Mapping[str, Any], path: str | None, by_criteria: bool | None = None, where: str = ""
) -> str | Rubric | None:
    """A row's own rubric; None if it has none, or no path is given.

    Args:
        row: field names to values.
        path: a dotted path.
        by_criteria: see ``own_rubric``.
        where: added to errors; the path if empty.

    Raises:
        InputError: see ``own_rubric``.
    """
    if path is None:
        return None
    if by_criteria is False:
        return shown_at(row, path, "rubric")
    try:
        value = field_at(row, path)
    except InputError as error:
        raise InputError(f"{where or path}: {error}") from error
    return own_rubric(value, where or path, by_criteria)


def _from_text(text: str, place: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if re.match(r"\s*(?:\[\s*(?:[\[{\"]|$)|\{)", text):  # and no "[1] Names the dose."
                raise InputError(f"{place}not JSON: {error.msg}, line {error.lineno}, column {error.colno}") from None
    if entries := numbered(text, "rubric"):
        return entries
    return [_LIST_MARK.sub("", line, count=1).strip() for line in text.splitlines() if line.strip()]


def _entries(value: Any, place: str) -> list[Any]:
    value = plain(value)
    if isinstance(value, Mapping):
        held = [key for key in _LISTS if key in value and not isinstance(value[key], str)]
        if len(held) == 1 and not any(key in value for key in (*_NAMES, *_WEIGHTS, "description")):
            return _entries(value[held[0]], place)
        value = _rows({key: plain(column) for key, column in value.items()}, place)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        came = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise InputError(f"{place}a rubric is {_WHAT}; got {came}")
    return [plain(entry) for entry in value]


def _rows(columns: Mapping[Any, Any], place: str) -> list[dict[Any, Any]]:
    """A list of objects out of an object of lists."""
    lists = {key: column for key, column in columns.items() if isinstance(column, list | tuple)}
    sizes = {len(column) for column in lists.values()}
    if len(lists) < len(columns) or len(sizes) != 1:
        raise InputError(f"{place}a rubric is {_WHAT}; got an object with {', '.join(map(str, columns)) or 'no key'}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _criterion(entry: Any, number: int, where: str) -> Criterion:
    place = ", ".join(filter(None, (where, f"criterion {number}")))
    if isinstance(entry, Criterion):
        return entry
    if isinstance(entry, str):
        entry = {"description": entry}
    if not isinstance(entry, Mapping):
        raise InputError(f"{place}: a criterion is a text or an object with a description; got {entry!r:.60}")
    values = {str(key): value for key, value in entry.items() if value is not None}  # columns of objects have all keys
    for key in values:
        if near := _misspelt(key):
            raise InputError(f"{place}: unknown key {key!r}; did you mean {near!r}?")
    field, text = _one_of(values, _TEXTS, place)
    name = _one_of(values, _NAMES, place)[1]
    weigher, weight = _one_of(values, _WEIGHTS, place)
    if isinstance(name, str) and name.strip():
        place += f" ({name!r:.60})"
    if text is None:
        if name is None or field:
            raise InputError(f"{place}: no {field or 'description'}; it has {', '.join(values) or 'nothing'}")
        text = name
    try:
        return Criterion(
            f"criterion {number}" if name is None else name, text, 1.0 if weight is None else weight,
            _grades(values.get("grades")), plain(values.get("essential", False)),
        )  # fmt: skip
    except InputError as error:  # in the words of the data set
        said = str(error)
        for ours, theirs in (("description", field), ("weight", weigher)):
            said = said.replace(f"{ours} must", f"{theirs or ours} must")
        raise InputError(f"{place}: {said}") from None


@lru_cache(maxsize=256)
def _misspelt(key: str) -> str:
    """The known key that another one nearly is; empty if it is none."""
    near = difflib.get_close_matches(key.lower(), _KNOWN, n=1, cutoff=0.8)
    return near[0] if near and key not in _KNOWN else ""


def _one_of(values: Mapping[str, Any], names: Sequence[str], place: str) -> tuple[str, Any]:
    """The one of these fields that is there, and its name; which of two is meant nobody knows."""
    found = [name for name in names if name in values]
    if len(found) > 1:
        raise InputError(f"{place}: has both {found[0]} and {found[1]}, which mean the same; keep one")
    return (found[0], plain(values[found[0]])) if found else ("", None)


def _grades(given: Any) -> tuple[tuple[str, str], ...]:
    given = plain(given)
    if given is None:
        return ()
    if isinstance(given, Mapping | list | tuple) and any(isinstance(word, bool) for word in given):
        raise InputError(f"grades must be words; got {given!r:.60}: put quotes around yes, no, true, false, on and off")
    if isinstance(given, Mapping):
        pairs = [(str(word), "" if meaning is None else str(meaning)) for word, meaning in given.items()]
    elif isinstance(given, list | tuple) and all(isinstance(word, str | int | float) for word in given):
        pairs = [(str(word), "") for word in given]
    else:
        raise InputError(
            f"grades must be words from worst to best, or an object of words and meanings; got {given!r:.60}"
        )
    if not pairs:
        raise InputError("grades must be at least two, all different; got none")
    return tuple(pairs)
