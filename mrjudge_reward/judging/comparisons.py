"""How comparisons become verdicts: render, ask in one batch, parse or read, try again.

The three ways (design: sampled, read, cascade) share everything but what is asked. All groups of a round go to the
engine together; a failed comparison is asked again where that can help, and stays failed otherwise.
"""

from __future__ import annotations

import hashlib
import math
import threading
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from mrjudge_reward.cache import Answer, ReplyCache, Verb, ask
from mrjudge_reward.engines.cancelling import cancelled
from mrjudge_reward.errors import ConfigError, EngineError
from mrjudge_reward.images import MAX_PIXELS, Album
from mrjudge_reward.messages import Message
from mrjudge_reward.prompting.formats import Format, read_reply
from mrjudge_reward.prompting.parsing import THINK_CLOSE, THINK_OPEN
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.prompting.sanitizing import TextGuard, most_tokens
from mrjudge_reward.scoring.schedules import Plan
from mrjudge_reward.scoring.tally import bounded_log_odds, count_games
from mrjudge_reward.types import (
    Comparison,
    Engine,
    Failed,
    Failure,
    Group,
    Played,
    Preference,
    Request,
    Sampling,
    Usage,
    Verdict,
)

from .group_images import BAD, Sight, image_tokens, look

VerdictMode: TypeAlias = Literal["sampled", "read", "cascade"]

UNKNOWN_CONTEXT = 16384
"""Assumed context of a judge that does not tell its own, in tokens."""

LEAST_TEXT = 48
"""Tokens that each outside text must at least get; the note about a cut takes some twelve."""


def digest(*parts: object) -> int:
    """A number that depends on the parts alone, on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def is_degenerate(text: str) -> bool:
    """Whether a final answer holds no letter, number or symbol: empty, blank, or bare punctuation.

    Such answers win surprisingly often with judges ("master keys", arXiv 2507.08794), so they are not shown to one.
    """
    return not any(unicodedata.category(char)[0] in "LNS" for char in text)


def session_of(engine: Engine) -> AbstractContextManager[Any]:
    """What an engine wants to be held around all calls of one judging; most want nothing."""
    session: Callable[[], AbstractContextManager[Any]] = getattr(engine, "session", nullcontext)
    return session()


@dataclass
class Run:
    """One group on its way through the rounds. Players are its distinct candidates that can be shown to a judge.

    ``known`` holds what was decided ahead, by the texts in slot order and the vote; ``earlier`` is the run that did so.
    Votes are numbered from ``first_vote``.
    ``sight`` is the group with its images loaded, once something of it was asked.
    """

    group: Group
    players: tuple[str, ...]
    plan: Plan
    batch: list[tuple[int, ...]] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    glances: list[Played] = field(default_factory=list)
    guards: dict[int, TextGuard] = field(default_factory=dict)
    disarmed: set[str] = field(default_factory=set)
    tokens: dict[str, int] = field(default_factory=dict)
    most_tokens: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    cache_hits: int = 0
    usage: Usage = Usage()
    known: dict[tuple[tuple[str, ...], int], list[Played]] = field(default_factory=dict)
    known_glances: dict[tuple[tuple[str, ...], int], Played] = field(default_factory=dict)
    earlier: Run | None = None
    first_vote: int = 0
    sight: Sight | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fork(self) -> Run:
        """A run of the same group and players that starts with nothing, to be absorbed later."""
        return Run(self.group, self.players, self.plan, sight=self.sight)

    def absorb(self, fork: Run, keep: Sequence[tuple[Comparison, list[Played]]]) -> None:
        """Take over what a fork spent, and those of its comparisons that are worth keeping. Threads may do it at once."""
        kept = {frozenset(comparison.slots) for comparison, _ in keep}
        with self._lock:
            self.calls += fork.calls
            self.cache_hits += fork.cache_hits
            self.usage += fork.usage
            self.disarmed |= fork.disarmed
            self.sight = self.sight or fork.sight
            self.known |= {(fork.texts(comparison), comparison.repeat): items for comparison, items in keep}
            self.known_glances |= {
                (fork.texts(item.comparison), item.comparison.repeat): item
                for item in fork.glances
                if frozenset(item.comparison.slots) in kept
            }

    def follow(self, earlier: Run) -> None:
        """Go on from what another run of the same group found out; its calls count as calls of this one."""
        self.earlier = earlier
        self.calls, self.cache_hits, self.usage = earlier.calls, earlier.cache_hits, earlier.usage
        self.disarmed |= earlier.disarmed
        if not self.group.images:  # of the candidates: those of the prompt are the same
            self.sight = earlier.sight

    def recall(self, comparison: Comparison) -> list[Played] | None:
        """What the earlier run decided about a comparison, in this run's numbers; None if it was not asked there."""
        if self.earlier is None:
            return None
        earlier, texts, vote = self.earlier, self.texts(comparison), comparison.repeat
        items = earlier.known.pop((texts, vote), None)
        if items is None:
            return None
        number = dict(zip(texts, comparison.slots, strict=True))

        def renumbered(item: Played) -> Played:
            return Played(
                Comparison(tuple(number[text] for text in earlier.texts(item.comparison)), vote), item.verdict
            )

        glances = [earlier.known_glances.pop((order, vote), None) for order in (texts, texts[::-1])]
        self.glances += [renumbered(glance) for glance in glances if glance is not None]
        return [renumbered(item) for item in items]

    def advance(self, first: bool = False) -> None:
        """Ask the schedule for the next round, given what was played."""
        try:
            self.batch = next(self.plan) if first else self.plan.send(count_games(len(self.players), self.played))
        except StopIteration:
            self.batch = []

    def texts(self, comparison: Comparison) -> tuple[str, ...]:
        """What a comparison shows, in slot order."""
        return tuple(self.players[slot] for slot in comparison.slots)


Asked: TypeAlias = tuple[Run, Comparison]
"""A comparison of a group, in the numbers of its players."""


@dataclass
class Asker:
    """Decides comparisons; the fields are those of :class:`~mrjudge_reward.judge.Judge`."""

    engine: Engine
    format: Format
    verdict: VerdictMode
    sampling: Sampling
    thinking_tokens: int
    cascade_margin: float
    retries: int
    seed: int
    cache: ReplyCache | None
    max_candidate_tokens: int | None
    min_label_mass: float
    max_pixels: int = MAX_PIXELS
    _frames: dict[int, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._reserved = self.engine.reserved | {self.format.answer_open}
        self._album = Album(self.max_pixels)

    def decide(self, asked: Sequence[Asked]) -> list[list[Played]]:
        """What each comparison came to, as games in the players' numbers.

        A cascade returns both glances as games of their own where it trusts them, each glance once. What shows a bad image
        has failed without being asked.
        """
        faults = [self._fault(run, comparison) for run, comparison in asked]
        seen = iter(self._decide([pair for pair, fault in zip(asked, faults, strict=True) if fault is None]))
        return [
            next(seen) if fault is None else [Played(comparison, Verdict(fault))]
            for (_, comparison), fault in zip(asked, faults, strict=True)
        ]

    def _fault(self, run: Run, comparison: Comparison) -> Failed | None:
        if not run.group.images and not any(message.images for message in run.group.prompt):
            return None
        if run.sight is None:
            run.sight = look(run.group, self._album)
        texts = run.texts(comparison)
        if fault := run.sight.fault_of(texts):
            return fault
        tokens, room = image_tokens(self.engine, run.sight.images(texts)), self._room(len(texts))
        if room - tokens < LEAST_TEXT * (len(texts) + 1):
            return Failed(BAD, f"its images take {tokens} tokens, and {room} are left for all that is judged")
        return None

    def _decide(self, asked: Sequence[Asked]) -> list[list[Played]]:
        if self.verdict == "cascade":
            return self._cascade(asked)
        verdicts = self._with_retries(asked, self._sample if self.verdict == "sampled" else self._think_and_read)
        return [[Played(comparison, verdict)] for (_, comparison), verdict in zip(asked, verdicts, strict=True)]

    def _cascade(self, asked: Sequence[Asked]) -> list[list[Played]]:
        both = [pair for run, comparison in asked for pair in ((run, comparison), (run, comparison.swap()))]
        verdicts = self._read(both, [""] * len(both))
        glances = [Played(comparison, verdict) for (_, comparison), verdict in zip(both, verdicts, strict=True)]
        scheduled = {(id(run), comparison) for run, comparison in asked}
        decided: list[list[Played]] = []
        unsure: list[int] = []
        for index, (run, comparison) in enumerate(asked):
            pair = glances[2 * index : 2 * index + 2]
            # Where the mirror image is scheduled too, it brings its own glance: none may count twice.
            own = pair[:1] if (id(run), comparison.swap()) in scheduled else pair
            run.glances += own
            decided.append(own if _agree(pair[0], pair[1], self.cascade_margin) else [])
            if not decided[-1]:
                unsure.append(index)
        thought = self._with_retries([asked[index] for index in unsure], self._sample)
        for index, verdict in zip(unsure, thought, strict=True):
            decided[index] = [Played(asked[index][1], verdict)]
        return decided

    def _with_retries(
        self, asked: Sequence[Asked], way: Callable[[Sequence[Asked], int], list[Verdict]]
    ) -> list[Verdict]:
        if not asked:
            return []
        verdicts = way(asked, 0)
        for attempt in range(1, self.retries + 1):
            outcomes = (verdict.outcome for verdict in verdicts)
            again = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Failed) and outcome.transient]
            if not again:
                break
            for index, verdict in zip(again, way([asked[i] for i in again], attempt), strict=True):
                verdicts[index] = verdict
        return verdicts

    def _sample(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        requests = [
            Request(self.render(run, comparison), sampling=self.sampling, seed=self._seed(comparison, attempt))
            for run, comparison in asked
        ]
        verdicts: list[Verdict] = []
        for (_, comparison), answer in zip(asked, self._ask("generate", asked, requests), strict=True):
            if isinstance(answer.reply, Failure):
                verdicts.append(_not_served(answer.reply))
                continue
            verdict = read_reply(self.format, answer.reply, len(comparison.slots))
            # A greedy judge repeats itself, and one that ran into the cap mostly will again.
            if verdict.failed and self.sampling.temperature > 0 and answer.reply.finish != "length":
                assert isinstance(verdict.outcome, Failed)
                verdict = replace(verdict, outcome=replace(verdict.outcome, transient=True))
            verdicts.append(verdict)
        return verdicts

    def _think_and_read(self, asked: Sequence[Asked], attempt: int) -> list[Verdict]:
        if self.thinking_tokens == 0:
            return self._read(asked, [""] * len(asked))
        # The judge opens its reasoning itself: templates of thinking models rewrite a turn that was opened for them.
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.thinking_tokens)
        requests = [
            Request(
                self.render(run, comparison),
                sampling=sampling,
                stop=(THINK_CLOSE,),
                seed=self._seed(comparison, attempt),
            )
            for run, comparison in asked
        ]
        answers = self._ask("generate", asked, requests)
        failed = {i: _not_served(answer.reply) for i, answer in enumerate(answers) if isinstance(answer.reply, Failure)}
        thoughts = {i: answer.reply for i, answer in enumerate(answers) if not isinstance(answer.reply, Failure)}
        closed = [_closed_thought(reply.text) for reply in thoughts.values()]
        read = self._read([asked[i] for i in thoughts], closed)
        verdicts = failed | {
            i: replace(verdict, usage=verdict.usage + thoughts[i].usage)
            for i, verdict in zip(thoughts, read, strict=True)
        }
        return [verdicts[i] for i in range(len(asked))]

    def _read(self, asked: Sequence[Asked], thoughts: Sequence[str]) -> list[Verdict]:
        """Open the answer after each thought and read the offered labels."""
        if not asked:
            return []
        requests = [
            Request(
                self.render(run, comparison),
                prefill=thought + self.format.answer_open,
                labels=self.format.read_labels(len(comparison.slots)),
            )
            for (run, comparison), thought in zip(asked, thoughts, strict=True)
        ]
        verdicts: list[Verdict] = []
        answers = self._ask("label_probabilities", asked, requests)
        for (_, comparison), thought, answer in zip(asked, thoughts, answers, strict=True):
            reply = answer.reply
            if isinstance(reply, Failure):
                verdicts.append(_not_served(reply, thought))
            elif reply.label_logprobs is None:
                verdicts.append(Verdict(Failed("malformed reply", "no label log-probabilities"), thought, reply.usage))
            elif (mass := sum(map(math.exp, reply.label_logprobs))) < self.min_label_mass:
                outcome = Failed(
                    "labels improbable", f"together {mass:.1e}: the judge was about to write something else"
                )
                verdicts.append(Verdict(outcome, thought, reply.usage))
            else:
                read = self.format.from_logprobs(reply.label_logprobs, len(comparison.slots))
                verdicts.append(Verdict(read, thought, reply.usage))
        return verdicts

    # -- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, asked: Sequence[Asked], requests: Sequence[Request]) -> list[Answer]:
        if cancelled():
            raise EngineError("judging was cancelled")
        answers = ask(self.engine, verb, requests, self.cache)
        if cancelled():  # what was answered is in the cache; what was not has failed for a reason that says nothing
            raise EngineError("judging was cancelled")
        for (run, _), answer in zip(asked, answers, strict=True):
            run.calls += answer.fresh
            run.cache_hits += not answer.fresh
            if answer.fresh and not isinstance(answer.reply, Failure):
                run.usage += answer.reply.usage
        return answers

    def _seed(self, comparison: Comparison, attempt: int) -> int | None:
        # Not of the group's key: identical comparisons of different groups stay identical, and are asked once.
        if self.sampling.temperature == 0:
            return None
        return digest(self.seed, comparison.repeat, attempt) % 2**31

    def render(self, run: Run, comparison: Comparison) -> tuple[Message, ...]:
        """The chat that shows a comparison, outside texts made safe and short enough."""
        group, texts = run.sight.group if run.sight else run.group, run.texts(comparison)
        bound = self.max_candidate_tokens or self._bound_of(run, texts)
        if bound not in run.guards:  # a text stands in many comparisons of its group and is made safe once
            run.guards[bound] = TextGuard(self.engine.count_tokens, bound, self._reserved, run.disarmed)
        return self.format.render(group, texts, run.guards[bound])

    def _bound_of(self, run: Run, candidates: tuple[str, ...]) -> int:
        """Most tokens of one outside text, so that this comparison and the judge's reply fit its context.

        Where everything fits nothing is cut; otherwise the longest texts are cut to a common length.
        """
        group, room = run.group, self._room(len(candidates))
        if run.sight is not None:
            room -= image_tokens(self.engine, run.sight.images(candidates))
        texts = (conversation_text(group.prompt), group.reference or "", group.rubric or "", *candidates)
        for text in texts:
            if text not in run.most_tokens:
                run.most_tokens[text] = most_tokens(text)
        if sum(run.most_tokens[text] for text in texts) <= 0.95 * room:  # counting takes most of our own time
            return room
        for text in texts:
            if text not in run.tokens:  # no token spans 16 characters, so far longer texts are not tokenized
                run.tokens[text] = self.engine.count_tokens(text) if len(text) <= 16 * room else len(text) // 4
        sizes = [run.tokens[text] for text in texts]
        if sum(sizes) <= 0.95 * room:  # neutralising markers takes a few more
            return room
        return self._enough(common_length(room, sizes), len(candidates))

    def check_room(self, slots: int) -> None:
        """Whether texts without end still get a share of the judge's context that is worth showing.

        Raises:
            ConfigError: if not.
        """
        self._enough(self._room(slots) // (slots + 1), slots)

    def _enough(self, level: int, slots: int) -> int:
        if level < LEAST_TEXT:
            raise ConfigError(
                f"the judge's context of {self.engine.context_tokens or UNKNOWN_CONTEXT} tokens leaves {level} for each "
                f"of {slots} candidates after the template and its reply; lower max_tokens or max_slots"
            )
        return level

    def _room(self, slots: int) -> int:
        """Tokens left for outside texts."""
        if slots not in self._frames:
            guard = TextGuard(self.engine.count_tokens, 1 << 20, self._reserved)
            frame = self.format.render(Group.of("", [""], rubric=" ", reference=" "), ("",) * slots, guard)
            taken = sum(self.engine.count_tokens(message.text) for message in frame) + 64
            writes = self.thinking_tokens + 16 if self.verdict == "read" else self.sampling.max_tokens
            self._frames[slots] = (self.engine.context_tokens or UNKNOWN_CONTEXT) - taken - writes
        return max(0, self._frames[slots])


def common_length(room: int, sizes: Sequence[int]) -> int:
    """To which length texts of these sizes are cut so that together they fit: short ones leave their share to the rest."""
    level, left = room, room
    for index, size in enumerate(sorted(sizes)):
        level = left // (len(sizes) - index)
        if size > level:
            break
        left -= size
    return level


def _closed_thought(text: str) -> str:
    """Reasoning as a closed section, whether the judge (or its server) wrote the tags or not."""
    body = text.lstrip().removeprefix(THINK_OPEN).partition(THINK_CLOSE)[0].strip()
    return f"{THINK_OPEN}\n{body}\n{THINK_CLOSE}\n\n"


def _not_served(failure: Failure, rationale: str = "") -> Verdict:
    return Verdict(Failed(failure.reason, failure.detail, failure.transient), rationale)


def _agree(forward: Played, backward: Played, margin: float) -> bool:
    """Whether two mirrored glances name the same winner, together by at least ``margin`` in log-odds."""
    p, q = forward.verdict.outcome, backward.verdict.outcome
    if not isinstance(p, Preference) or not isinstance(q, Preference):
        return False
    one, two = p.probabilities_K, q.probabilities_K[::-1]
    if one.index(max(one)) != two.index(max(two)):
        return False
    mean = sorted(((a + b) / 2 for a, b in zip(one, two, strict=True)), reverse=True)
    return bounded_log_odds(mean[0], mean[1]) >= margin
