"""The state of one group while it is judged: who plays, what was decided, what it cost. Nobody else writes it.

Players are a group's distinct candidates that can be shown to a judge; those that would look the same to it are one. They
are numbered by a hash of (seed, group key, text or name), so the order in which candidates arrive carries no information.
Comparisons in here are in players' numbers: :meth:`Tournament.texts` says what such a comparison shows,
:meth:`Tournament.slots` which numbers texts have.
"""

from __future__ import annotations

import hashlib
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mrjudge_reward.completions import own_words
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.images import Album
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.prompting.sanitizing import Sanitizer, visible
from mrjudge_reward.scoring.schedules import Plan
from mrjudge_reward.scoring.tally import GameCount, Tally
from mrjudge_reward.special_tokens import Reserved
from mrjudge_reward.types import Comparison, EngineFailure, Group, JudgedComparison, Reply, Usage, Verdict

from .group_images import GroupImages, fault_in_parts, load_images, shows_more_than_text

_Shown: TypeAlias = tuple[tuple[str, ...], int]
"""The texts of a comparison in slot order, and its vote."""


def digest(*parts: object) -> int:
    """A number that depends on the parts alone, on every machine and in every process: what slots, schedules and sampling
    are drawn from."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


_QUOTES = "\"'„‚「」『』〝〞〟"
# Of Latin, CJK, Arabic, Hebrew, Armenian, Devanagari, Ethiopic, Myanmar, Khmer, Tibetan and Mongolian.
_STOPS = ".,:;!?‽¡¿•‣、。،؛؟۔⸮׀׃՚՛՜՝՞՟։।॥፡።፣፤፥፦፧፨၊။។៕៖།༎᠂᠃᠄"


def is_degenerate(text: str) -> bool:
    """Whether what a policy wrote says nothing: it is empty, blank, or no more than stops, quotes and dashes.

    Such answers win surprisingly often with judges ("master keys", arXiv 2507.08794), so they are not shown to one. Brackets
    and operators may be the answer (``[]``, ``*``, ``/``), a call is something, and so is a single hyphen, which is a minus
    sign; ``--`` and ``---`` are dashes.

    >>> [is_degenerate(text) for text in ("...", "---", "-", "[]")]
    [True, True, False, False]
    """
    said = visible(own_words(text))
    if any(unicodedata.category(char)[0] in "LNS" for char in said):
        return False
    said = unicodedata.normalize("NFKC", said)  # full-width and vertical forms, an ellipsis in one character
    if [char for char in said if not (char.isspace() or _is_quote(char))] == ["-"]:
        return False
    others = (unicodedata.category(char) for char in said if not (char in _STOPS or _is_quote(char)))
    return not any(category[0] == "P" and category != "Pd" for category in others)


def _is_quote(char: str) -> bool:
    return char in _QUOTES or unicodedata.category(char) in ("Pi", "Pf")


def players_of(group: Group, seed: int, look_of: Mapping[str, str]) -> dict[str, str]:
    """Candidate → the text that plays for it, players in the order of their numbers.

    Args:
        group: those of its candidates that are degenerate do not play.
        seed: of the judge.
        look_of: candidate → what the judge sees of it. Of twins, which look the same, the one with the least that is not
            seen plays.
    """
    place: dict[str, tuple[int, str]] = {}  # twins share the place of the first of them
    twins: dict[str, set[str]] = {}
    for name, text in zip(group.names or group.candidates, group.candidates, strict=True):
        if not is_degenerate(text):
            own, look = (digest(seed, group.key, name), name), look_of[text]
            place[look] = min(place.get(look, own), own)
            twins.setdefault(look, set()).add(text)
    plays = {look: min(texts, key=lambda text: (len(text), text)) for look, texts in twins.items()}
    return {text: plays[look] for look in sorted(place, key=place.__getitem__) for text in twins[look]}


@dataclass
class Spent:
    """What judging a group has cost."""

    calls: int = 0
    cache_hits: int = 0
    usage: Usage = field(default_factory=Usage)

    def count(self, reply: Reply | EngineFailure, fresh: bool) -> None:
        """A reply has come, from the engine or not."""
        self.calls += fresh
        self.cache_hits += not fresh
        if fresh and isinstance(reply, Reply):
            self.usage += reply.usage

    def __iadd__(self, other: Spent) -> Spent:
        self.calls += other.calls
        self.cache_hits += other.cache_hits
        self.usage += other.usage
        return self


class Tournament:
    """One group on its way through the rounds of a schedule.

    Args:
        group: that is judged.
        players: their texts, by number.
        plan: the schedule's; None where comparisons are chosen otherwise.
        first_vote: number of the first vote.
        format: how it is asked about; None for the judge's own way.

    Attributes:
        round: comparisons to play next, in players' numbers; empty at the end.
        played: comparisons with their verdicts, in the order decided.
        quick_reads: of a cascade.
        spent: what all of it has cost.
        sanitized: texts in which a marker had to be made harmless.
        cut: candidates of which, or of whose question, reference or rubric, the judge was not shown the whole.
        player_of: candidate → the text that plays for it; the players alone unless set.
        anchors: the players, by number, that play for the group's anchors.
        images: the group with its images loaded, once something of it was asked.
    """

    def __init__(
        self, group: Group, players: Sequence[str], plan: Plan | None = None, first_vote: int = 0,
        format: Format | None = None,
    ) -> None:  # fmt: skip
        self.group = group
        self.format = format
        self.first_vote = first_vote
        self.round: list[tuple[int, ...]] = []
        self.played: list[JudgedComparison] = []
        self.quick_reads: list[JudgedComparison] = []
        self.spent = Spent()
        self.sanitized: set[str] = set()
        self.cut: set[str] = set()
        self.player_of: Mapping[str, str] = dict(zip(players, players, strict=True))
        self.anchors: tuple[int, ...] = ()
        self.images: GroupImages | None = None
        self._plan = plan
        self._players = list(players)
        self._number = {text: number for number, text in enumerate(players)}
        self._games = GameCount(len(players))
        self._guards: dict[tuple[int, int | None], Sanitizer] = {}
        self._tokens: dict[tuple[str, str], int] = {}
        self._early: dict[_Shown, list[tuple[_Shown, Verdict]]] = {}
        self._early_reads: dict[_Shown, Verdict] = {}
        self._lock = threading.Lock()

    # -- players and slots --------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many players there are."""
        return len(self._players)

    @property
    def players(self) -> tuple[str, ...]:
        """Their texts, by number."""
        return tuple(self._players)

    def texts(self, comparison: Comparison) -> tuple[str, ...]:
        """What a comparison shows, in slot order."""
        return tuple(self._players[slot] for slot in comparison.slots)

    def slots(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The numbers of these texts."""
        return tuple(self._number[text] for text in texts)

    def seat(self, number: int, text: str) -> None:
        """A player has come whose text was not known."""
        self._players[number] = text
        self._number[text] = number

    def in_candidates(self, items: Sequence[JudgedComparison]) -> tuple[JudgedComparison, ...]:
        """Comparisons in the indices of the group's candidates; of twins, the first."""
        candidates = reversed(list(enumerate(self.group.candidates)))
        index = {self.player_of[text]: index for index, text in candidates if text in self.player_of}
        return tuple(
            JudgedComparison(
                Comparison(tuple(index[text] for text in self.texts(item.comparison)), item.comparison.repeat),
                item.verdict,
            )
            for item in items
        )

    # -- rounds -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Ask the schedule for its first round."""
        self.round = self._checked(next(self._plan, [])) if self._plan is not None else []

    def comparisons(self, votes: int) -> list[Comparison]:
        """Those of this round, each as often as it is asked."""
        return [Comparison(slots, self.first_vote + vote) for slots in self.round for vote in range(votes)]

    def record(self, items: Sequence[JudgedComparison]) -> None:
        """Comparisons of this round were decided."""
        self.played += items
        self._games.add(items)

    def read_quickly(self, items: Sequence[JudgedComparison]) -> None:
        """Comparisons were read quickly, whatever comes of it."""
        self.quick_reads += items

    def next_round(self) -> None:
        """Ask the schedule for the next round, given what was played."""
        assert self._plan is not None
        try:
            self.round = self._checked(self._plan.send(self.tally()))
        except StopIteration:
            self.round = []

    def _checked(self, comparisons: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        for slots in comparisons:
            if len(set(slots)) != len(slots) or not all(0 <= slot < self.size for slot in slots):
                raise ConfigError(
                    f"the schedule asks to compare {slots}; a comparison is of different candidates, 0 to {self.size - 1}"
                )
        return comparisons

    def tally(self) -> Tally:
        """The games of what was played."""
        return self._games.tally()

    # -- what is remembered of its texts ----------------------------------------------------------------------------------

    def load_images(self, album: Album) -> GroupImages | None:
        """The group with its images loaded, which happens once; None where it shows none."""
        if self.images is None and shows_more_than_text(self.group):
            self.images = load_images(self.group, album)
        return self.images

    def guard(
        self,
        bound: int,
        count_tokens: Callable[[str], int],
        reserved: Reserved,
        seed: int,
        of_candidate: int | None = None,
    ) -> Sanitizer:
        """What makes texts safe and at most so long; a text stands in many comparisons and is made safe once."""
        key = bound, of_candidate
        if key not in self._guards:
            self._guards[key] = Sanitizer(count_tokens, bound, reserved, self.sanitized, seed, of_candidate)
        return self._guards[key]

    def remembered(self, what: str, text: str, count: Callable[[str], int]) -> int:
        """A count of a text's tokens, made once for each ``what``."""
        if (what, text) not in self._tokens:
            self._tokens[what, text] = count(text)
        return self._tokens[what, text]

    # -- comparisons that were asked before all players were there --------------------------------------------------------

    def fork(self) -> Tournament:
        """A tournament of the same players that starts with nothing, to be absorbed later."""
        fork = Tournament(self.group, self._players, format=self.format)
        fork.images = self.images
        return fork

    def absorb(self, fork: Tournament, decided: Mapping[Comparison, Sequence[JudgedComparison]]) -> None:
        """Take over what a fork spent, and what it decided that is worth keeping. Threads may do it at once."""

        def shown(comparison: Comparison) -> _Shown:
            return fork.texts(comparison), comparison.repeat

        kept = {frozenset(comparison.slots) for comparison in decided}
        with self._lock:
            self.spent += fork.spent
            self.sanitized |= fork.sanitized
            self.cut |= fork.cut
            self.images = self.images or fork.images
            for comparison, items in decided.items():
                self._early[shown(comparison)] = [(shown(item.comparison), item.verdict) for item in items]
            for read in fork.quick_reads:
                if frozenset(read.comparison.slots) in kept:
                    self._early_reads[shown(read.comparison)] = read.verdict

    def follow(self, earlier: Tournament) -> None:
        """Go on from what another tournament of the same group found out; what that has cost counts here."""
        self.spent += earlier.spent
        self.sanitized |= earlier.sanitized
        self.cut |= earlier.cut
        if fault_in_parts(self.group) is None:  # of this group all fails, whoever came first
            self._early, self._early_reads = earlier._early, earlier._early_reads
        if not self.group.images:  # of the candidates: those of the prompt are the same
            self.images = earlier.images

    def recall(self, comparison: Comparison, mirrored: bool = False) -> list[JudgedComparison] | None:
        """What was decided about a comparison early on; None if it was not asked. It is recalled once.

        Args:
            comparison: of this round.
            mirrored: whether this round holds its mirror image too, which brings its own quick read.
        """
        texts, vote = self.texts(comparison), comparison.repeat
        decided = self._early.pop((texts, vote), None) if self._early else None
        if decided is None:
            return None
        own = [(texts, vote)] if mirrored else [(texts, vote), (texts[::-1], vote)]
        self.read_quickly(
            self._numbered([(shown, self._early_reads[shown]) for shown in own if shown in self._early_reads])
        )
        return self._numbered([(shown, verdict) for shown, verdict in decided if shown in own])

    def _numbered(self, decided: Sequence[tuple[_Shown, Verdict]]) -> list[JudgedComparison]:
        return [JudgedComparison(Comparison(self.slots(texts), vote), verdict) for (texts, vote), verdict in decided]
