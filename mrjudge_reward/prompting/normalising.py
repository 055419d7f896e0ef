"""The one normalisation of a verdict's text: what is dropped without changing which label is meant, and nothing else.

Around a text: emphasis, backticks, quotes, brackets, ``$``, ``\\(\\)``, ``\\[\\]``, ``\\boxed{}`` and ``\\text{}``, a final
full stop, and a leading word such as "Response". Then case, where it is unique among the labels offered; for grades,
numbers that are equal, also as a share of the scale's top ("8/10"). Labels may look like any of this themselves, so a text
that is a label as it stands is that label, and a text that fits several after normalisation is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

_AROUND = dict(zip("*_`\"'“‘«„([{$", "*_`\"'”’»“)]}$", strict=True))
_LATEX = re.compile(r"\\(?:(?:boxed|text|textbf|mathrm|mathbf)\s*\{(.+)\}|\((.+)\\\)|\[(.+)\\\])", re.DOTALL)
_LEADING = re.compile(r"(?:response|option|label|answer|candidate)(?:\s*:\s*|\s+)(.+)", re.IGNORECASE | re.DOTALL)
_GRADING = re.compile(r"(?:answer|score|grade|rating)(?:\s*:\s*|\s+)(.+)", re.IGNORECASE | re.DOTALL)
_EMPHASIS = re.compile(r"\*+|_+|`+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_LONGEST = 100  # characters that may stand around a label; what is longer is prose, and would take long to peel


def peeled(text: str, leading: re.Pattern[str] = _LEADING) -> Iterator[str]:
    """A text as it stands, then with ever less around it."""
    while True:
        text = text.strip()
        yield text
        if match := _LATEX.fullmatch(text) or leading.fullmatch(text):
            text = str(match[match.lastindex or 1])
        elif len(text) > 2 and _AROUND.get(text[0]) == text[-1]:
            text = text[1:-1]
        elif len(text) > 1 and text[-1] == "." != text[-2]:
            text = text[:-1]
        else:
            return


def closed_before(before: str, text: str) -> str:
    """A text without the emphasis that was opened on its line before it, and closes at either end of it.

    >>> [closed_before("**", said) for said in ("B**", "** B", "** **B**", "**B**", "B*")]
    ['B', 'B', '**B**', '**B**', 'B*']
    """
    counts = Counter(_EMPHASIS.findall(before.rpartition("\n")[2][-_LONGEST:]))
    opened = [run for run, count in counts.items() if count % 2] if len(text) < 10 * _LONGEST else []
    for run in opened * len(opened):  # the innermost closes first
        stop = "." if text.endswith(f"{run}.") else ""
        if _EMPHASIS.findall(text).count(run) % 2 == 0:
            continue
        if text.startswith(run):
            text = text.removeprefix(run).strip()
        elif text.endswith(run + stop):
            text = text.removesuffix(run + stop).strip() + stop
    return text


def bare(text: str, leading: re.Pattern[str] = _LEADING) -> str:
    """The innermost text."""
    return list(peeled(text, leading))[-1]


def label_meant(text: str, labels: Sequence[str]) -> int | None:
    """Index of the one label that a text names; None if it names none, or could mean several.

    >>> [label_meant(said, ("A", "B")) for said in ("B", "**Response b**.", "\\\\boxed{A}", "A or B", "not A")]
    [1, 1, 0, None, None]
    """
    return _meant(text, labels, _LEADING)


def grade_meant(text: str, grades: Sequence[str]) -> int | None:
    """Index of the one grade that a text names.

    >>> [grade_meant(said, ("1", "2", "3", "4", "5")) for said in ("4.0", "4/5", "Score: 4", "4.5", "4/10", "9/5")]
    [3, 3, 3, None, None, None]
    """
    found = _meant(text, grades, _GRADING)
    if found is not None or len(text) > _LONGEST:
        return found
    said, slash, top = bare(text, _GRADING).partition("/")
    numbers = [_number(grade) for grade in grades]
    if slash and (None in numbers or _number(top) != max(number for number in numbers if number is not None)):
        return None
    value = _number(said)
    return numbers.index(value) if value is not None and numbers.count(value) == 1 else None


def _meant(text: str, labels: Sequence[str], leading: re.Pattern[str]) -> int | None:
    text = text.strip()
    if text in labels:
        return labels.index(text)
    if len(text) > _LONGEST + max(map(len, labels)):
        return None
    said, names = bare(text, leading), [bare(label, leading) for label in labels]
    for fold in (str, _folded):
        same = [index for index, name in enumerate(names) if fold(name) == fold(said)]
        if same:
            return same[0] if len(same) == 1 else None
    return None


def _folded(text: str) -> str:
    # No character outside ASCII may become one of it: the Kelvin sign is no "k".
    return "".join(char.lower() if char.isascii() == char.lower().isascii() else char for char in text)


def _number(text: str) -> Fraction | None:
    text = text.strip()
    return Fraction(text) if _NUMBER.fullmatch(text) else None
