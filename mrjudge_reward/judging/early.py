"""A group that is still arriving: comparisons that can be asked before all of its candidates are there.

A judge that works while the slowest rollouts are still running hides behind them. What is asked early are comparisons
of the schedule's first round, exactly as they would be asked later, so scores do not depend on who came first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mrjudge_reward.completions import image_numbers, unshown
from mrjudge_reward.prompting.sanitizing import visible
from mrjudge_reward.types import Comparison

from .comparisons import Asked
from .tournament import Tournament, is_degenerate


class EarlyComparisons:
    """A group to be, made by ``Judge.early``.

    Two equal candidates, or one that is not shown to a judge, change who meets whom, and images are loaded with the whole
    group; from then on nothing more is asked early, and what was asked already is used as far as it fits.

    Args:
        tournament: begun for as many players as the group will have.
        order: names of the players in the order of their numbers; None where that depends on their texts.
        votes: how often each comparison is asked.
        anchors: name → text of the group's anchors, which are there from the beginning.
    """

    def __init__(
        self, tournament: Tournament, order: Sequence[str] | None, votes: int, anchors: Mapping[str, str] | None = None
    ) -> None:
        self.tournament = tournament
        self._number = None if order is None else {name: number for number, name in enumerate(order)}
        self._present: set[int] = set()
        self._looks: set[str] = set()
        self._waiting = tournament.comparisons(votes)
        if self._number is None and not _meets_every_order(tournament):
            self._waiting = []
        self._among_anchors = [asked for name, text in (anchors or {}).items() for asked in self._come(name, text)]

    def add(self, name: str, text: str) -> list[Asked]:
        """A candidate has come.

        Args:
            name: one of the group's names; where it has none, anything.
            text: its final answer.

        Returns:
            The comparisons that can be asked now, for ``Judge.ask_early``; each is returned once.
        """
        ready, self._among_anchors = [*self._among_anchors, *self._come(name, text)], []
        return ready

    def _come(self, name: str, text: str) -> list[Asked]:
        look = visible(text)
        if is_degenerate(text) or look in self._looks or image_numbers([text]) or unshown([text]):
            self._waiting = []
        self._looks.add(look)
        if not self._waiting:
            return []
        number = len(self._present) if self._number is None else self._number[name]
        self.tournament.seat(number, text)
        self._present.add(number)
        ready = [comparison for comparison in self._waiting if self._is_here(comparison)]
        self._waiting = [comparison for comparison in self._waiting if not self._is_here(comparison)]
        return [(self.tournament, comparison) for comparison in ready]

    def _is_here(self, comparison: Comparison) -> bool:
        return self._present.issuperset(comparison.slots)


def _meets_every_order(tournament: Tournament) -> bool:
    """Whether the first round shows all arrangements of its players, so that their numbers do not matter."""
    sizes = {len(slots) for slots in tournament.round}
    return len(sizes) == 1 and len(set(tournament.round)) == math.perm(tournament.size, sizes.pop())
