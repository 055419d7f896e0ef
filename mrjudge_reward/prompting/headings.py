r"""Whose each of several answers is, where a judge names it beside the answer: ``**Response B**: <answer> 9 </answer>``.

A label counts only as a heading: it stands alone on its line, or ends what stands directly before the answer and is the
only label there ("Score of B:", "Response B gets"), or begins a line of that text ("**Response B** - clear, but wrong"),
or stands alone behind the answer ("(Response B)"). In prose ("better than Response B.") it names no answer.

>>> owners(["**Response B**: ", "\n**Response A**: ", ""], ("A", "B"))
[1, 0]
>>> owners(["B is better than A. ", ", ", ""], ("A", "B")) is None
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .normalising import bare, label_meant

_LONGEST = 300  # characters of a line that are looked at
_WORD = "response|option|label|answer|candidate"
_SIGN = r"[*_`$\"'“”’]"
_SENTENCE_END = re.compile(r"(?<=[.!?;。！？])\s+")
_BEFORE_LABEL = r"[ \t>#*_`\"'“|•+\-–—]{0,20}(?:\d{1,2}[.)][ \t]{0,4})?[*_`]{0,3}"
_BEFORE_ANSWER = (
    rf"{_SIGN}*(?:\s*\([^()]{{0,200}}\))?(?:['’]s)?(?:\s+(?:final|overall|total))?(?:\s+(?:score|grade|rating))?\s*{_SIGN}*\s*"
    r"(?:[-–—=]?>|→|[:：=|]|[-–—]|(?:is|gets|receives|earns|scores)(?:\s+an?)?(?:\s+(?:score|grade|rating))?(?:\s+of)?\s*[:：]?)"
    rf"(?:\s|{_SIGN})*"
)


@lru_cache(maxsize=256)
def _patterns(labels: tuple[str, ...], word: str) -> dict[str, re.Pattern[str]]:
    names = sorted({name for label in labels for name in (label, bare(label))}, key=len, reverse=True)
    any_name = "|".join(map(re.escape, names))
    label = (
        rf"(?<![A-Za-z0-9])(?<!</)[(\[{{]?(?:(?i:{word})[\s*_`:#(\[]{{1,6}}(?P<worded>(?i:{any_name}))|(?P<bare>{any_name}))"
        r"(?![A-Za-z0-9])[)\]}]?"
    )
    patterns = {
        "label": label,
        "alone": rf"{_BEFORE_LABEL}{label}[\s*_`$\"'”’|:：=)\]–—-]*",
        "listed": rf"{_BEFORE_LABEL}{label}[*_`]*[.)][*_`]*",
        "ends": rf"{label}{_BEFORE_ANSWER}$",
        "begins": rf"^{_BEFORE_LABEL}{label}{_SIGN}*[ \t]*(?:[:：(|=]|[.)][ \t]|[-–—]+[ \t]|['’]s\b|$)",
        "behind": rf"[\s(\[,;*_–—-]*(?:(?:for|to)\s+)?{label}[\s)\],.;*_|]*(?:and|while)?\s*",
    }
    return {name: re.compile(pattern, re.MULTILINE) for name, pattern in patterns.items()}


def owners(gaps: Sequence[str], labels: Sequence[str]) -> list[int] | str | None:
    """Which label each answer is headed by.

    Args:
        gaps: what stands before, between and behind the answers; one more than there are answers. A gap that begins with a
            new line holds nothing of the answer's own line.
        labels: those offered.

    Returns:
        The index of each answer's label; None if no answer is headed by one, so that their order says whose they are; or
        what is wrong: only some are, or two by the same.
    """
    offered = tuple(labels)
    count = len(gaps) - 1
    own = [gaps[0], *(gap.partition("\n")[2] if "\n" in gap else gap for gap in gaps[1:count])]
    headed = [heading(gap, offered) for gap in own]
    named = [_line_heading(gap, offered) if head is None else head for gap, head in zip(own, headed, strict=True)]
    if _each(named):
        return [label for label in named if label is not None]
    behind = [_meant(_patterns(offered, _WORD)["behind"].fullmatch(_line(gap, 0)), offered) for gap in gaps[1:]]
    if headed[0] is None and _each(behind):
        return [label for label in behind if label is not None]
    if headed.count(None) == count and None in named:
        return None
    said = ", ".join("none" if label is None else offered[label] for label in named)
    return f"their headings name: {said}"


def heading(gap: str, labels: Sequence[str], word: str = _WORD) -> int | None:
    """The label that heads an answer directly, by the text before it; None if there is none.

    Args:
        gap: the text.
        labels: those offered.
        word: what may stand before a label, as alternatives of a pattern.
    """
    patterns, line = _patterns(tuple(labels), word), _line(gap, -1)
    alone = patterns["alone"].fullmatch(line) or patterns["listed"].fullmatch(line)
    if alone and (alone["bare"] or not line.rstrip("*_` ").endswith(".")):
        return _meant(alone, labels)
    clause = _SENTENCE_END.split(line)[-1]
    names = {_meant(found, labels) for found in patterns["label"].finditer(clause)}
    return _meant(patterns["ends"].search(clause), labels) if len(names) == 1 else None


def _line_heading(gap: str, labels: tuple[str, ...]) -> int | None:
    """The one label that lines of a text begin with."""
    names = {_meant(found, labels) for found in _patterns(labels, _WORD)["begins"].finditer(gap)}
    return names.pop() if len(names) == 1 else None


def _line(gap: str, index: int) -> str:
    """The first line, or the last one that holds something."""
    lines = gap.split("\n", 1) if index == 0 else gap.rstrip().rsplit("\n", 1)
    line = lines[index].strip()
    return line[:_LONGEST] if index == 0 else line[-_LONGEST:]


def _meant(found: re.Match[str] | None, labels: Sequence[str]) -> int | None:
    return label_meant(found["worded"] or found["bare"], labels) if found else None


def _each(named: Iterable[int | None]) -> bool:
    """Whether each answer has a label of its own."""
    known = list(named)
    return None not in known and len(set(known)) == len(known)
