"""What a judge wrote, taken apart strictly: where its reasoning ends, what stands in its answer markers.

Nothing is repaired here. Whatever is not plainly a closed answer after closed reasoning is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.types import NoVerdict

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def after_thinking(text: str) -> str | NoVerdict:
    """What a judge wrote after its reasoning; failed if the reasoning was never closed.

    A tag in another case (``</THINK>``) closes nothing, and leaves open whether the reasoning is over.
    """
    section = text.rpartition(THINK_CLOSE)[2]
    lowered = section.lower()
    if THINK_OPEN in lowered or THINK_CLOSE in lowered:
        return NoVerdict("unclosed thinking")
    return section


def answers_in(text: str, opening: str, closing: str, every: bool = False) -> list[str] | NoVerdict:
    """Contents of all answer markers after the reasoning, in order.

    The last one must be closed (with ``every``, each must be), and no marker in another case may follow it (stand
    anywhere), which would leave open what the judge meant. An empty ``closing`` means that an answer runs to the end
    of its line.
    """
    section = after_thinking(text)
    if isinstance(section, NoVerdict):
        return section
    pieces = section.split(opening)[1:]
    if not pieces:
        return NoVerdict("no verdict")
    if not all(closing in piece for piece in (pieces if every else pieces[-1:])):
        return NoVerdict("unclosed verdict")
    checked = section if every else pieces[-1]
    if checked.lower().count(opening.lower()) != checked.count(opening):
        return NoVerdict("malformed marker", f"{opening} in another case")
    return [piece.partition(closing or "\n")[0].strip() for piece in pieces]


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
