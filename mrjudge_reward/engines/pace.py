"""The speed that a reply's bound, a request's deadline and the requests in flight imply of a server."""

from __future__ import annotations

import math
from dataclasses import dataclass

SURE = 10.0
"""Tokens a second that a server writes for one request among many; a guess on the safe side. A reasoning judge of 8B to 32B
on a busy GPU writes 15 to 50."""


@dataclass(frozen=True)
class Pace:
    """What a server must keep up so that no reply of the greatest length misses its deadline.

    Attributes:
        tokens: a request may write, reasoning included.
        deadline_s: for a request, tries included.
        at_once: requests in flight.
    """

    tokens: int
    deadline_s: float
    at_once: int

    @property
    def each(self) -> float:
        """Tokens a second for one request."""
        return self.tokens / self.deadline_s

    @property
    def fits(self) -> bool:
        """Whether a server that is no more than sure to be fast enough is."""
        return self.each <= SURE

    @property
    def enough_s(self) -> int:
        """A deadline that fits, in seconds."""
        return math.ceil(self.tokens / SURE)

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens within {self.deadline_s:g} s want {_rate(self.each)} tokens a second for each request, "
            f"{_rate(self.each * self.at_once)} for {self.at_once} at once"
        )


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
