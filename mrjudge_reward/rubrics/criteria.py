"""A rubric: criteria by which answers to a prompt are judged, each with a weight.

>>> rubric = Rubric((Criterion("dose", "Names the dose.", weight=2), Criterion("alarm", "Frightens the reader.", weight=-1)))
>>> print(rubric)
1. dose: Names the dose. (weight 2)
2. alarm: Frightens the reader. (weight -1: counts against an answer)
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from mrjudge_reward.errors import InputError

MOST_CRITERIA = 100
"""Largest rubric. Public ones hold up to fifty criteria; each costs judge calls."""

_GRADE = re.compile(r"[^\W_](?:[\w .,'+/%-]{0,38}[\w%+])?")


@dataclass(frozen=True, slots=True)
class Criterion:
    """One thing that answers are judged by.

    Attributes:
        name: of results and logs.
        description: what the judge is told; a text from outside, like a candidate.
        weight: how much it counts. Negative for a pitfall: to meet it counts against an answer.
        grades: how far it can be met, from worst to best, each with what it means ("" where the word says it). They are
            worth evenly spaced values from 0 to 1. Empty for the judge's own grades.
        essential: an answer that does not meet it is placed below all that do, whatever else holds of it.

    Raises:
        InputError: on construction, naming the field: an empty name or description, a weight that is 0 or no finite number,
            grades that are too few, equal, or cannot be written as a verdict.
    """

    name: str
    description: str
    weight: float = 1.0
    grades: tuple[tuple[str, str], ...] = ()
    essential: bool = False

    def __post_init__(self) -> None:
        for field in ("name", "description"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{field} must be a text that is not empty; got {value!r:.100}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise InputError(f"weight must be a number; got {self.weight!r:.100}")
        if not 0 < abs(self.weight) <= sys.float_info.max:  # an int may be larger than any float
            raise InputError(f"weight must be a finite number other than 0; got {self.weight!r:.100}")
        if not isinstance(self.essential, bool):
            raise InputError(f"essential must be true or false; got {self.essential!r:.100}")
        words = [word for word, _ in self.grades]
        if len(words) == 1 or len({word.casefold() for word in words}) < len(words):
            raise InputError(f"grades must be at least two, all different; got {', '.join(words)}")
        for word in words:
            if not _GRADE.fullmatch(word):
                raise InputError(
                    f"grades are words that the judge writes: at most 40 letters, digits, spaces, .,'+/%-; got {word!r:.60}"
                )

    @property
    def told(self) -> str:
        """What the judge is told of it: name, description, and grades with their meanings."""
        unnamed = re.fullmatch(r"criterion \d+", self.name) or self.description.startswith(self.name)
        said = self.description if unnamed else f"{self.name}: {self.description}"
        if not self.grades:
            return said
        meant = (f"{word} ({meaning})" if meaning else word for word, meaning in self.grades)
        return f"{said}\nGrades of this criterion, worst first: {'; '.join(meant)}"

    def as_dict(self) -> dict[str, Any]:
        """As plain values; what is as by default is left out."""
        values: dict[str, Any] = {"name": self.name, "description": self.description, "weight": self.weight}
        if self.grades:
            values["grades"] = dict(self.grades)
        return values | ({"essential": True} if self.essential else {})


@dataclass(frozen=True, slots=True)
class Rubric:
    """Criteria, in their order. As a text it is what a judge is shown that gives one verdict over all of them.

    Raises:
        InputError: on construction, if there is no criterion, there are more than ``MOST_CRITERIA``, or two have one name or
            say the same.
    """

    criteria: tuple[Criterion, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.criteria) <= MOST_CRITERIA:
            raise InputError(f"a rubric has 1 to {MOST_CRITERIA} criteria; got {len(self.criteria)}")
        for field in ("name", "description"):
            same = Counter(" ".join(getattr(one, field).casefold().split()) for one in self.criteria)
            text, count = same.most_common(1)[0]
            if count > 1:
                raise InputError(f"{count} criteria have the {field} {text!r:.100}; each needs its own")

    def __str__(self) -> str:
        return "\n".join(
            f"{number}. {one.told} (weight {one.weight:g}"
            + (": counts against an answer" if one.weight < 0 else "")
            + (", essential)" if one.essential else ")")
            for number, one in enumerate(self.criteria, 1)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the criteria."""
        return tuple(one.name for one in self.criteria)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names as parts of identifiers: ASCII letters and digits, numbered where two would be the same."""
        found: list[str] = []
        for number, name in enumerate(self.names, 1):
            key = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or str(number)
            found.append(key if key not in found else f"{key}_{number}")
        return tuple(found)

    def as_json(self) -> str:
        """As JSON text, which ``reading.read_rubric`` reads."""
        return json.dumps([one.as_dict() for one in self.criteria], ensure_ascii=False)
