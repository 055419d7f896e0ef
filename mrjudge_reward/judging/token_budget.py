"""How many tokens a text may take, so that what is compared and the judge's reply fit the judge's context."""

from __future__ import annotations

from collections.abc import Sequence

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.prompting.sanitizing import Sanitizer, most_tokens
from mrjudge_reward.special_tokens import Reserved
from mrjudge_reward.types import Group

from .group_images import image_tokens
from .tournament import Tournament

UNKNOWN_CONTEXT = 16384
"""Assumed context of a judge that does not tell its own, in tokens."""

LEAST_TEXT = 48
"""Tokens that each outside text must at least get; the note about a cut takes some twelve."""


class TokenBudget:
    """Shares a judge's context out.

    Args:
        engine: tells its context and counts tokens.
        format: its template takes some of the context.
        writes: tokens that the judge's reply may take.
        reserved: markers that are neutralised, which may take a few tokens more.
        bound: most tokens of each outside text; None to share out what there is.
    """

    def __init__(
        self, engine: Engine, format: Format, writes: int, reserved: Reserved, bound: int | None = None
    ) -> None:
        self._engine, self._format, self._writes, self._reserved, self._bound = engine, format, writes, reserved, bound
        self._rooms: dict[int, int] = {}

    def room(self, slots: int) -> int:
        """Tokens that are left for outside texts where so many candidates are shown."""
        if slots not in self._rooms:
            guard = Sanitizer(self._engine.count_tokens, 1 << 20, self._reserved)
            frame = self._format.render(Group.of("", [""], rubric=" ", reference=" "), ("",) * slots, guard)
            taken = (
                sum(self._engine.count_tokens(message.text) for message in frame) + 64 + 8 * slots
            )  # codes differ in tokens
            self._rooms[slots] = max(0, (self._engine.context_tokens or UNKNOWN_CONTEXT) - taken - self._writes)
        return self._rooms[slots]

    def of_each(self, tournament: Tournament, candidates: tuple[str, ...]) -> int:
        """Most tokens of each outside text of a comparison.

        Where everything fits nothing is cut; otherwise the longest texts are cut to a common length.

        Raises:
            ConfigError: if there is no room for a share that is worth showing.
        """
        if self._bound is not None:
            return self._bound
        group, room = tournament.group, self.room(len(candidates))
        if tournament.images is not None:
            room -= image_tokens(self._engine, tournament.images.images(candidates))
        texts = (conversation_text(group.prompt), group.reference or "", group.rubric or "", *candidates)
        most = (tournament.remembered("most", text, most_tokens) for text in texts)
        if sum(most) <= 0.95 * room:  # counting takes most of our own time
            return room
        count = self._engine.count_tokens
        sizes = [  # no token spans 16 characters, so far longer texts are not tokenized
            tournament.remembered("counted", text, count) if len(text) <= 16 * room else len(text) // 4
            for text in texts
        ]
        if sum(sizes) <= 0.95 * room:  # neutralising markers takes a few more
            return room
        return self._worth_showing(common_length(room, sizes), len(candidates))

    def lacks_room_for(self, tokens: int, slots: int) -> str:
        """Why images of so many tokens leave too little for the texts beside them; empty if they do not."""
        room = self.room(slots)
        if room - tokens < LEAST_TEXT * (slots + 1):
            return f"its images take {tokens} tokens, and {room} are left for all that is judged"
        return ""

    def check(self, slots: int) -> None:
        """Whether texts without end still get a share of the judge's context that is worth showing.

        Raises:
            ConfigError: if not.
        """
        self._worth_showing(self.room(slots) // (slots + 1), slots)

    def _worth_showing(self, tokens: int, slots: int) -> int:
        if tokens < LEAST_TEXT:
            raise ConfigError(
                f"the judge's context of {self._engine.context_tokens or UNKNOWN_CONTEXT} tokens leaves {tokens} for each "
                f"of {slots} candidates after the template and its reply; lower max_tokens or max_slots"
            )
        return tokens


def common_length(room: int, sizes: Sequence[int]) -> int:
    """To which length texts of these sizes are cut so that together they fit: short ones leave their share to the rest."""
    level, left = room, room
    for index, size in enumerate(sorted(sizes)):
        level = left // (len(sizes) - index)
        if size > level:
            break
        left -= size
    return level
