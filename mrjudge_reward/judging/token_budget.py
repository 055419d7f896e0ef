"""How many tokens a text may take, so that what is compared and the judge's reply fit the judge's context."""

from __future__ import annotations

import sys

from mrjudge_reward.completions import readable
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.once import Once
from mrjudge_reward.prompting.candidates import common_length
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.prompting.rendering import conversation_text, shown_rubric
from mrjudge_reward.prompting.sanitizing import Sanitizer, most_tokens
from mrjudge_reward.special_tokens import Reserved
from mrjudge_reward.types import Group

from .group_images import image_tokens
from .tournament import Tournament

UNKNOWN_CONTEXT = 16384
"""Assumed context of a judge that does not tell its own, in tokens."""

LEAST_TEXT = 48
"""Tokens that each outside text must at least get; the note about a cut takes some twelve."""

_CHAT = 128  # tokens that a chat template and an opened answer may add; gpt-oss puts 80 before a chat
_ANY_CODE = "qxzvjkwb"  # of as many tokens as any
_FILLED = 0.98  # of the room, at most: texts side by side may take a token more than each alone


class TokenBudget:
    """Shares a judge's context out.

    Args:
        engine: tells its context and counts tokens.
        format: its template takes some of the context.
        writes: tokens that the judge's reply may take.
        reserved: markers that are neutralised, which may take a few tokens more.
        of_candidate: most tokens of a candidate, whatever room there is; None for no such bound.
        said: what was warned about already.
    """

    def __init__(
        self,
        engine: Engine,
        format: Format,
        writes: int,
        reserved: Reserved,
        of_candidate: int | None = None,
        said: Once | None = None,
    ) -> None:
        self._engine, self._format, self._writes, self._reserved = engine, format, writes, reserved
        self._of_candidate, self._said = of_candidate, said or Once()
        self._frames: dict[tuple[Format | None, int], int] = {}

    @property
    def context(self) -> int:
        """The judge's context in tokens, of prompt and reply together; assumed where nobody says."""
        known = self._engine.context_tokens
        if known is None:
            self._said.warn(
                "context",
                f"{self._engine.name} does not tell its context, so {UNKNOWN_CONTEXT} tokens are assumed, of prompt and "
                "reply together: longer texts are cut, and a smaller context refuses them. Set context_tokens.",
            )
        return known or UNKNOWN_CONTEXT

    def room(self, slots: int, format: Format | None = None) -> int:
        """Tokens that are left for outside texts where so many candidates are shown."""
        key = format, slots
        if key not in self._frames:
            guard = Sanitizer(self._engine.count_tokens, 1 << 20, self._reserved)
            frame = (format or self._format).render(Group.of("", [""], rubric=" ", reference=" "), ("",) * slots, guard)
            texts = sum(self._engine.count_tokens(message.text) for message in frame)
            self._frames[key] = texts + _CHAT + 8 * slots  # the codes of section marks differ in tokens
        return max(0, self.context - self._frames[key] - self._writes)

    def of_each(self, tournament: Tournament, candidates: tuple[str, ...]) -> int:
        """Most tokens of each outside text of a comparison; of candidates the smaller of this and their own bound.

        Where everything fits nothing is cut; otherwise the longest texts are cut to a common length.

        Raises:
            ConfigError: if there is no room for a share that is worth showing.
        """
        room = self.room(len(candidates), tournament.format)
        if tournament.images is not None:
            room -= image_tokens(self._engine, tournament.images.images(candidates))
        room = int(_FILLED * room)
        own = self._of_candidate or sys.maxsize
        as_shown = (readable(text, _ANY_CODE) for text in candidates)
        texts = [(text, sys.maxsize) for text in shared_texts(tournament.group)] + [(text, own) for text in as_shown]
        most = (min(bound, tournament.remembered("most", text, most_tokens)) for text, bound in texts)
        if sum(most) <= room:  # counting takes most of our own time
            return room
        sizes = [min(bound, self._size(tournament, text, room)) for text, bound in texts]
        return room if sum(sizes) <= room else self._worth_showing(common_length(room, sizes), len(candidates))

    def _size(self, tournament: Tournament, text: str, room: int) -> int:
        """Tokens of a text; of one that is far beyond the room about, because no token spans 16 characters."""
        if len(text) > 16 * max(1, room):
            return len(text) // 4
        return tournament.remembered("counted", text, self._count)

    def _count(self, text: str) -> int:
        # As it will stand: a special token is one, and takes several once it is none any more.
        return self._engine.count_tokens(Sanitizer(self._engine.count_tokens, sys.maxsize, self._reserved)(text))

    def note_cut(self, tournament: Tournament, candidates: tuple[str, ...], guard: Sanitizer) -> None:
        """Note which candidates of a comparison were not shown whole, or not beside all they are to be judged by; warn of
        the first."""
        of_candidate = guard.most_of_candidate
        shared = [text for text in shared_texts(tournament.group) if (text, guard.max_tokens) in guard.cut]
        cut = candidates if shared else [text for text in candidates if (text, of_candidate) in guard.cut]
        if not cut:
            return
        tournament.cut.update(cut)
        room, slots = self.room(len(candidates), tournament.format), len(candidates)
        size = self._size(tournament, shared[0] if shared else readable(cut[0], _ANY_CODE), room)
        if not shared and of_candidate < guard.max_tokens:
            bound, cure = f"max_candidate_tokens={of_candidate}", "Raise max_candidate_tokens"
        else:
            assumed = ", which is assumed" if self._engine.context_tokens is None else ""
            bound = (
                f"{guard.max_tokens} tokens: a context of {self.context}{assumed}, leaves {room} for all texts beside the "
                f"wording and a reply of {self._writes}"
            )
            cure = "Raise the judge's context (context_tokens, and the server's own), or lower max_tokens"
            cure += " or max_slots" if slots > 2 else ""
        self._said.warn(
            "cut",
            f"in group {tournament.group.key!r}, {'what is asked' if shared else 'a candidate'} takes {size} tokens and was "
            f"cut in its middle to {bound}. {cure}. cut_rate tells how many candidates are judged so.",
        )

    def lacks_room_for(self, tokens: int, slots: int) -> str:
        """Why images of so many tokens leave too little for the texts beside them; empty if they do not."""
        room = self.room(slots)
        if _FILLED * (room - tokens) < LEAST_TEXT * (slots + 3):  # beside question, reference and rubric
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
                f"the judge's context of {self.context} tokens leaves {tokens} for each of {slots} candidates after the "
                "template and its reply; lower max_tokens or max_slots"
            )
        return tokens


def shared_texts(group: Group) -> tuple[str, ...]:
    """What every comparison of a group shows beside candidates: question, reference, rubric."""
    return tuple(text for text in (conversation_text(group.prompt), group.reference, shown_rubric(group)) if text)
