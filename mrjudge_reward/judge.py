"""The judge: groups in, scores out.

``schedule → render → one engine batch per round over all groups → parse → rate``

Cost: one engine call per round (two where the judge thinks before it is read), whatever the number of groups. Identical
requests of a batch are asked once. Identical candidates of a group are judged as one and share its score.

The order in which candidates arrive carries no information: they are renumbered by a hash of (seed, group key, text)
before anything is scheduled, so permuting the candidates permutes the scores, and any rank computes the same plan.

On failure: a failed comparison is asked again (``retries``), then contributes no game. A candidate without a game has
score None. When more than ``max_failed_fraction`` of the latest comparisons failed, the judge raises.

>>> from mrjudge_reward.engines.scripted import ScriptedEngine
>>> judge = Judge(ScriptedEngine.by_utility(len), Choice(), schedule="ring")
>>> judge.rank("Say hello.", ["hi", "hello there", "hey"]).order
(1, 2, 0)
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal, TypeAlias

from .cache import Answer, ReplyCache, Verb, ask
from .errors import ConfigError, InputError
from .formats import THINK_CLOSE, THINK_OPEN, Choice, Format, read_reply
from .prompts import TextGuard
from .ratings import RATINGS, rate
from .schedules import SCHEDULES, Limits, Plan
from .stats import FailureAlarm
from .tally import HARD_LOG_ODDS, MAX_GROUP, bounded_log_odds, count_games, cyclic_triads
from .types import (
    Comparison,
    Engine,
    Failed,
    Failure,
    Group,
    Judgement,
    Message,
    Played,
    Preference,
    Request,
    Sampling,
    Usage,
    Verdict,
)

VerdictMode: TypeAlias = Literal["sampled", "read", "cascade"]

_UNKNOWN_CONTEXT = 16384
"""Assumed context of a judge that does not tell its own, in tokens."""

_LEAST_TEXT = 48
"""Tokens that each outside text must at least get; the note about a cut takes some twelve."""


def is_degenerate(text: str) -> bool:
    """Whether a final answer holds no letter, number or symbol: empty, blank, or bare punctuation.

    Such answers win surprisingly often with judges ("master keys", arXiv 2507.08794), so they are not shown to one.
    """
    return not any(unicodedata.category(char)[0] in "LNS" for char in text)


def _digest(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


@dataclass
class _Run:
    """One group on its way through the rounds. Players are its distinct candidates that can be shown to a judge."""

    group: Group
    players: tuple[str, ...]
    plan: Plan
    batch: list[tuple[int, ...]] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    glances: list[Played] = field(default_factory=list)
    guards: dict[int, TextGuard] = field(default_factory=dict)
    calls: int = 0
    cache_hits: int = 0
    usage: Usage = Usage()

    def advance(self, first: bool = False) -> None:
        try:
            self.batch = next(self.plan) if first else self.plan.send(count_games(len(self.players), self.played))
        except StopIteration:
            self.batch = []

    def texts(self, comparison: Comparison) -> tuple[str, ...]:
        return tuple(self.players[slot] for slot in comparison.slots)


_Asked: TypeAlias = tuple[_Run, Comparison]


class Judge:
    """Scores the candidates of groups with a judge model.

    Args:
        engine: runs the judge model.
        format: what the judge is asked.
        schedule: name in ``SCHEDULES``.
        rating: name in ``RATINGS``.
        verdict: ``"sampled"``, the judge writes and is parsed; ``"read"``, it thinks up to ``thinking_tokens`` and the
            label probabilities are read; ``"cascade"``, both orders are read without thinking and the judge thinks
            (and is sampled) only where these contradict each other or are closer than ``cascade_margin``.
        sampling: how the judge writes.
        thinking_tokens: cap on the reasoning before a read; 0 is a glance.
        cascade_margin: log-odds between the two best, below which a glance is not trusted.
        budget: most comparisons per group, votes included; None for the schedule's own number. A comparison is one
            request, two where the judge thinks before it is read, up to three in a cascade; retries come on top.
        both_orders: show pairs in both slot orders; None for the schedule's habit.
        max_slots: most candidates in one comparison.
        votes: how often each comparison is asked (with different seeds; for sampled verdicts).
        retries: how often a failed comparison is asked again.
        seed: of slots, schedules and sampling.
        cache: replies kept on disk.
        max_candidate_tokens: bound of each outside text; None to share out the judge's context.
        alarm: when to stop because of failures.

    Raises:
        ConfigError: if the settings contradict each other.
    """

    def __init__(
        self,
        engine: Engine,
        format: Format = Choice(),
        *,
        schedule: str = "adaptive",
        rating: str = "log_odds",
        verdict: VerdictMode = "sampled",
        sampling: Sampling = Sampling(),
        thinking_tokens: int = 0,
        cascade_margin: float = 1.0,
        budget: int | None = None,
        both_orders: bool | None = None,
        max_slots: int = 8,
        votes: int = 1,
        retries: int = 1,
        seed: int = 0,
        cache: ReplyCache | None = None,
        max_candidate_tokens: int | None = None,
        alarm: FailureAlarm | None = None,
    ) -> None:
        if schedule not in SCHEDULES:
            raise ConfigError(f"no schedule {schedule!r}; there are {', '.join(SCHEDULES)}")
        if rating not in RATINGS:
            raise ConfigError(f"no rating {rating!r}; there are {', '.join(RATINGS)}")
        if (schedule == "pointwise") != (format.max_slots == 1):
            raise ConfigError(
                f"schedule {schedule!r} does not fit format {type(format).__name__}: a format that grades one response "
                "alone goes with schedule 'pointwise', and only that one"
            )
        if schedule != "listwise" and format.max_slots > 1 and format.min_slots > 2:
            raise ConfigError(f"format {type(format).__name__} needs {format.min_slots} candidates; use 'listwise'")
        if verdict not in ("sampled", "read", "cascade"):
            raise ConfigError(f"verdict must be 'sampled', 'read' or 'cascade'; got {verdict!r}")
        if verdict != "sampled":
            format.read_labels(format.min_slots)  # raises where the format cannot be read
            if not engine.can_read:
                raise ConfigError(f"{engine.identity} cannot read label probabilities; use verdict='sampled'")
        if verdict == "cascade" and format.max_slots == 1:
            raise ConfigError("a cascade compares both orders of candidates; a format that grades alone has no order")
        if rating == "mean_score" and not hasattr(format, "grades"):
            raise ConfigError(f"rating 'mean_score' needs a format that grades; {type(format).__name__} does not")
        if votes > 1 and verdict != "read" and sampling.temperature == 0:
            raise ConfigError("votes > 1 at temperature 0 would ask the very same thing again; raise the temperature")
        if thinking_tokens > 0 and verdict != "read":
            raise ConfigError(f"thinking_tokens belong to verdict 'read'; a {verdict} verdict is bounded by max_tokens")
        if votes > 1 and verdict == "read" and (thinking_tokens == 0 or sampling.temperature == 0):
            raise ConfigError("votes > 1 need sampled reasoning: set thinking_tokens and temperature above 0")
        for name, value, least in (
            ("votes", votes, 1),
            ("retries", retries, 0),
            ("thinking_tokens", thinking_tokens, 0),
            ("budget", budget, votes),
            ("max_slots", max_slots, format.min_slots),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}")
        self.engine = engine
        self.format = format
        self.schedule = schedule
        self.rating = rating
        self.verdict: VerdictMode = verdict
        self.sampling = sampling
        self.thinking_tokens = thinking_tokens
        self.cascade_margin = cascade_margin
        self.votes = votes
        self.retries = retries
        self.seed = seed
        self.cache = cache
        self.max_candidate_tokens = max_candidate_tokens
        self.alarm = alarm if alarm is not None else FailureAlarm()
        slots = min(max_slots, format.max_slots)
        self.limits = Limits(None if budget is None else budget // votes, both_orders, slots)
        self._reserved = engine.reserved | {format.answer_open}
        self._bounds: dict[tuple[int, int], int] = {}

    # -- public ---------------------------------------------------------------------------------------------------

    def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Judge groups together.

        Returns:
            A judgement per group, in their order.

        Raises:
            InputError: if a group is larger than ``MAX_GROUP``.
            JudgeUnreliableError: if too many judgements failed.
        """
        started = time.perf_counter()
        runs = [self._start(group) for group in groups]
        while asked := [
            (run, Comparison(slots, vote)) for run in runs for slots in run.batch for vote in range(self.votes)
        ]:
            for (run, _), verdicts in zip(asked, self._decide(asked), strict=True):
                run.played += verdicts
            for run in runs:
                if run.batch:
                    run.advance()
        seconds = time.perf_counter() - started
        judgements = [self._finish(run, seconds) for run in runs]
        self.alarm.observe(judgements)
        return judgements

    def rank(
        self, prompt: str | Sequence[Mapping[str, Any] | Message], candidates: Sequence[str], key: str = "0"
    ) -> Judgement:
        """Judge the candidates of one prompt."""
        return self.judge([Group.of(prompt, candidates, key)])[0]

    def close(self) -> None:
        """Release the engine and the cache."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    # -- a group's way ----------------------------------------------------------------------------------------------

    def _start(self, group: Group) -> _Run:
        if len(group.candidates) > MAX_GROUP:
            raise InputError(
                f"group {group.key!r} has {len(group.candidates)} candidates; at most {MAX_GROUP} are judged together"
            )
        texts = {text for text in group.candidates if not is_degenerate(text)}
        players = tuple(sorted(texts, key=lambda text: (_digest(self.seed, group.key, text), text)))
        plan = SCHEDULES[self.schedule](len(players), self.limits, Random(_digest(self.seed, group.key)))
        run = _Run(group, players, plan)
        if len(players) >= self.format.min_slots:
            run.advance(first=True)
        return run

    def _finish(self, run: _Run, seconds: float) -> Judgement:
        tally = count_games(len(run.players), run.played)
        scores: list[float | None] = rate(self.rating, tally)
        forfeits = tuple(i for i, text in enumerate(run.group.candidates) if is_degenerate(text))
        neutral = RATINGS[self.rating].neutral
        if len(scores) == 1 and scores[0] is None and forfeits:
            scores = [neutral]  # the only real answer needs no judge to be better than none at all
        known = [score for score in scores if score is not None]
        # Degenerate answers lose by rule: never above the lowest known, and below a middling one.
        lowest = self._lowest(known) if known else None
        score_of = dict(zip(run.players, scores, strict=True))
        games_of = dict(zip(run.players, (float(g) for g in tally.games_G), strict=True))
        candidates = run.group.candidates
        index_of = {text: index for index, text in reversed(list(enumerate(candidates)))}

        def original(items: list[Played]) -> tuple[Played, ...]:
            return tuple(
                Played(Comparison(tuple(index_of[t] for t in run.texts(p.comparison)), p.comparison.repeat), p.verdict)
                for p in items
            )

        return Judgement(
            group=run.group,
            scores_G=tuple(score_of.get(text, lowest) for text in candidates),
            games_G=tuple(games_of.get(text, 0.0) for text in candidates),
            played=original(run.played),
            glances=original(run.glances),
            forfeits=forfeits,
            calls=run.calls,
            cache_hits=run.cache_hits,
            usage=run.usage,
            cyclic_triads=cyclic_triads(tally),
            seconds=seconds,
        )

    def _lowest(self, known: Sequence[float]) -> float:
        """The score of a degenerate answer beside these."""
        neutral = RATINGS[self.rating].neutral
        if neutral is None:
            grades: tuple[tuple[str, float], ...] = getattr(self.format, "grades")  # noqa: B009  known to be there
            return min(value for _, value in grades)
        return 0.0 if neutral == 0.5 else min(known) - HARD_LOG_ODDS

    # -- a round over all groups ------------------------------------------------------------------------------------

    def _decide(self, asked: Sequence[_Asked]) -> list[list[Played]]:
        """What each comparison came to; a cascade may return both glances as games of their own."""
        if self.verdict == "cascade":
            return self._cascade(asked)
        verdicts = self._with_retries(asked, self._sample if self.verdict == "sampled" else self._think_and_read)
        return [[Played(comparison, verdict)] for (_, comparison), verdict in zip(asked, verdicts, strict=True)]

    def _cascade(self, asked: Sequence[_Asked]) -> list[list[Played]]:
        both = [pair for run, comparison in asked for pair in ((run, comparison), (run, comparison.swap()))]
        verdicts = self._read(both, [""] * len(both))
        glances = [Played(comparison, verdict) for (_, comparison), verdict in zip(both, verdicts, strict=True)]
        decided: list[list[Played]] = []
        unsure: list[int] = []
        for index, (run, _) in enumerate(asked):
            pair = glances[2 * index : 2 * index + 2]
            run.glances += pair
            decided.append(pair if _agree(pair[0], pair[1], self.cascade_margin) else [])
            if not decided[-1]:
                unsure.append(index)
        thought = self._with_retries([asked[index] for index in unsure], self._sample)
        for index, verdict in zip(unsure, thought, strict=True):
            decided[index] = [Played(asked[index][1], verdict)]
        return decided

    def _with_retries(
        self, asked: Sequence[_Asked], way: Callable[[Sequence[_Asked], int], list[Verdict]]
    ) -> list[Verdict]:
        if not asked:
            return []
        verdicts = way(asked, 0)
        for attempt in range(1, self.retries + 1):
            again = [i for i, verdict in enumerate(verdicts) if verdict.failed and self._worth_retrying(verdict)]
            if not again:
                break
            for index, verdict in zip(again, way([asked[i] for i in again], attempt), strict=True):
                verdicts[index] = verdict
        return verdicts

    def _worth_retrying(self, verdict: Verdict) -> bool:
        # A greedy judge or a glance comes out the same again; only what the engine calls transient can go differently.
        outcome = verdict.outcome
        sampled = self.sampling.temperature > 0 and (self.verdict != "read" or self.thinking_tokens > 0)
        return isinstance(outcome, Failed) and (outcome.transient or sampled)

    def _sample(self, asked: Sequence[_Asked], attempt: int) -> list[Verdict]:
        requests = [
            Request(self._render(run, comparison), sampling=self.sampling, seed=self._seed(comparison, attempt))
            for run, comparison in asked
        ]
        return [
            Verdict(Failed(answer.reply.reason, answer.reply.detail, answer.reply.transient))
            if isinstance(answer.reply, Failure)
            else read_reply(self.format, answer.reply, len(comparison.slots))
            for (_, comparison), answer in zip(asked, self._ask("generate", asked, requests), strict=True)
        ]

    def _think_and_read(self, asked: Sequence[_Asked], attempt: int) -> list[Verdict]:
        if self.thinking_tokens == 0:
            return self._read(asked, [""] * len(asked))
        sampling = Sampling(self.sampling.temperature, self.sampling.top_p, self.thinking_tokens)
        requests = [
            Request(
                self._render(run, comparison),
                prefill=f"{THINK_OPEN}\n",
                sampling=sampling,
                stop=(THINK_CLOSE,),
                seed=self._seed(comparison, attempt),
            )
            for run, comparison in asked
        ]
        answers = self._ask("generate", asked, requests)
        failed = {
            i: Verdict(Failed(answer.reply.reason, answer.reply.detail, answer.reply.transient))
            for i, answer in enumerate(answers)
            if isinstance(answer.reply, Failure)
        }
        thoughts = {i: answer.reply for i, answer in enumerate(answers) if not isinstance(answer.reply, Failure)}
        closed = [f"{THINK_OPEN}\n{reply.text.strip()}\n{THINK_CLOSE}\n\n" for reply in thoughts.values()]
        read = self._read([asked[i] for i in thoughts], closed)
        verdicts = failed | {
            i: replace(verdict, usage=verdict.usage + thoughts[i].usage)
            for i, verdict in zip(thoughts, read, strict=True)
        }
        return [verdicts[i] for i in range(len(asked))]

    def _read(self, asked: Sequence[_Asked], thoughts: Sequence[str]) -> list[Verdict]:
        """Open the answer after each thought and read the offered labels."""
        if not asked:
            return []
        requests = [
            Request(
                self._render(run, comparison),
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
                verdicts.append(Verdict(Failed(reply.reason, reply.detail, reply.transient), thought))
            elif reply.label_logprobs is None:
                verdicts.append(Verdict(Failed("malformed reply", "no label log-probabilities"), thought, reply.usage))
            else:
                outcome = self.format.from_logprobs(reply.label_logprobs, len(comparison.slots))
                verdicts.append(Verdict(outcome, thought, reply.usage))
        return verdicts

    # -- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, verb: Verb, asked: Sequence[_Asked], requests: Sequence[Request]) -> list[Answer]:
        answers = ask(self.engine, verb, requests, self.cache)
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
        return _digest(self.seed, comparison.repeat, attempt) % 2**31

    def _render(self, run: _Run, comparison: Comparison) -> tuple[Message, ...]:
        group = run.group
        others = 1 + (group.reference is not None) + (group.rubric is not None)
        bound = self._text_bound(len(comparison.slots), others)
        if bound not in run.guards:  # a text stands in many comparisons of its group and is made safe once
            run.guards[bound] = TextGuard(self.engine.count_tokens, bound, self._reserved)
        return self.format.render(group, run.texts(comparison), run.guards[bound])

    def _text_bound(self, slots: int, others: int) -> int:
        """Most tokens of one outside text, so that a comparison and the judge's reply fit its context."""
        if self.max_candidate_tokens is not None:
            return self.max_candidate_tokens
        if (slots, others) in self._bounds:
            return self._bounds[slots, others]
        guard = TextGuard(self.engine.count_tokens, 1 << 20, self._reserved)
        frame = self.format.render(Group.of("", [""], rubric=" ", reference=" "), ("",) * slots, guard)
        taken = sum(self.engine.count_tokens(message.text) for message in frame) + 64
        writes = self.thinking_tokens + 16 if self.verdict == "read" else self.sampling.max_tokens
        room = (self.engine.context_tokens or _UNKNOWN_CONTEXT) - taken - writes
        if room < _LEAST_TEXT * (slots + others):
            raise ConfigError(
                f"the judge's context of {self.engine.context_tokens or _UNKNOWN_CONTEXT} tokens leaves {room} for "
                f"{slots} candidates after the template ({taken}) and its reply ({writes}); lower max_tokens or max_slots"
            )
        self._bounds[slots, others] = room // (slots + others)
        return self._bounds[slots, others]


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
