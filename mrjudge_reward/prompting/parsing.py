"""What a judge wrote, taken apart strictly: where its reasoning ends, what stands in its answer markers.

Nothing is repaired here. Whatever is not plainly a closed answer after closed reasoning is a failure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.reasoning import TYPE_IN_CODE, split_reasoning
from mrjudge_reward.types import NoVerdict

from .normalising import closed_before

_EXCERPT = 60
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ALL_REASONING = "nothing follows its reasoning (reasoning_content, where a server sets it apart)"


def excerpt(text: str) -> str:
    """The end of a text, on one line."""
    return " ".join(text[-4 * _EXCERPT :].split())[-_EXCERPT:]


def no_verdict(reason: str, said: str, detail: str = "") -> NoVerdict:
    """A failure that keeps the end of what the judge said instead, so that frequent ones can be counted."""
    return NoVerdict(reason, detail or f"it ends: {excerpt(said)!r}", rejected=excerpt(said))


def after_thinking(text: str) -> str | NoVerdict:
    """What a judge wrote after its reasoning; failed if the reasoning was never closed."""
    section, left_open = split_reasoning(text)
    return NoVerdict("unclosed thinking") if left_open else section


def split_answers(text: str, opening: str, closing: str) -> list[str] | NoVerdict:
    """What follows the reasoning, split where answers are opened; failed if none is.

    Tags and brackets are markers in any case, but for a type in code (``Promise<Answer>``).
    """
    section = after_thinking(text)
    if isinstance(section, NoVerdict):
        return section
    for marker in (opening, closing) if _is_tag(opening) else ():
        if section.lower().count(marker.lower()) != section.count(marker):
            code = f"(?!{TYPE_IN_CODE})" if marker[0] == "<" else ""
            any_case = f"{re.escape(marker[0])}{code}(?i:{re.escape(marker[1:])})"
            section = re.sub(any_case, marker.replace("\\", r"\\"), section, flags=re.ASCII)
    parts = section.split(opening)
    if len(parts) > 1:
        return parts
    if section.strip() or not text.strip():
        return no_verdict("no verdict", section)
    return no_verdict("no verdict", text, f"{_ALL_REASONING}, which ends: {excerpt(text)!r}")


def _is_tag(opening: str) -> bool:
    return "<" in opening or "[" in opening


def answers_in(text: str, opening: str, closing: str) -> list[str] | NoVerdict:
    """Contents of all answer markers after the reasoning, in order; see ``answers_and_gaps``."""
    found = answers_and_gaps(text, opening, closing, every=False)
    return found if isinstance(found, NoVerdict) else found[0]


def answers_and_gaps(text: str, opening: str, closing: str, every: bool) -> tuple[list[str], list[str]] | NoVerdict:
    """Contents of all answer markers after the reasoning, in order, and what stands before, between and behind them.

    The last one must be closed (with ``every``, each must be). A marker that is a word ("Sentiment:") is one as it stands
    alone, because candidates' texts hold such words too; in another case it may not follow (with ``every``, stand
    anywhere), which would leave open what the judge meant. An empty ``closing`` means that an answer runs to the end of
    its line.
    """
    parts = split_answers(text, opening, closing)
    if isinstance(parts, NoVerdict):
        return parts
    before, *pieces = parts
    if not all(closing in piece for piece in (pieces if every else pieces[-1:])):
        return no_verdict("unclosed verdict", pieces[-1])
    checked = opening.join(parts) if every else pieces[-1]
    if not _is_tag(opening) and checked.lower().count(opening.lower()) != checked.count(opening):
        return no_verdict("malformed marker", checked, f"{opening} in another case")
    answers, gaps = [], [before]
    for piece in pieces:
        said, gap = answer_and_rest(gaps[-1], piece, closing)
        answers.append(said)
        gaps.append(gap)
    return answers, gaps


def answer_and_rest(before: str, piece: str, closing: str) -> tuple[str, str]:
    """An answer, and what follows it.

    A brace that closes an answer is the one that closes what was opened before it: ``\\boxed{\\text{B}}``. Emphasis that
    was opened before a marker may close behind it, where an answer runs to the end of its line: ``**Answer: B**``.

    Args:
        before: what precedes the opening marker.
        piece: what follows it.
        closing: ends the answer; empty for the end of its line.
    """
    if not closing:
        said, end, rest = piece.partition("\n")
        said = said.strip()
        return (said if before.endswith("\n") else closed_before(before, said)), end + rest
    said, _, rest = piece.partition(closing)
    if closing == "}" and "{" in said and (place := _closing_brace(piece)):
        said, rest = piece[:place], piece[place + 1 :]
    return said.strip(), rest


def _closing_brace(piece: str) -> int:
    """Where the brace closes that was opened before a text; 0 if it does not, or too far away for an answer."""
    depth = 1
    for brace in _BRACE.finditer(piece, 0, 10_000):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return 0


def softmax(logprobs: Sequence[float]) -> tuple[float, ...] | NoVerdict:
    """Softmax over the offered labels."""
    if not all(math.isfinite(value) for value in logprobs):
        return NoVerdict("unreadable label", f"log-probabilities {tuple(logprobs)!r:.200}")
    return tuple(map(float, np.exp(np.subtract(logprobs, np.logaddexp.reduce(logprobs)))))


def check_labels(labels: tuple[str, ...], least: int) -> None:
    """Raise ConfigError unless there are enough labels, all different."""
    stripped = [label.strip() for label in labels]
    if len(labels) < least or len(set(stripped)) != len(stripped) or not all(stripped):
        raise ConfigError(f"labels must be at least {least} different non-empty texts; got {labels!r:.200}")


def check_markers(opening: str, closing: str, labels: tuple[str, ...]) -> None:
    """Raise ConfigError unless the markers can be told from each other and from the labels."""
    if not opening.strip() or opening in closing:
        raise ConfigError(f"answer_open must not be empty nor part of answer_close; got {opening!r} and {closing!r}")
    if any(marker in label for label in labels for marker in (opening, closing or "\n")):
        raise ConfigError(f"no label may hold {opening!r} or {closing or 'newline'!r}; got {labels!r:.200}")
