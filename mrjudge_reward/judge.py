"""The judge: groups in, scores out.

``schedule → render → one engine batch per round over all groups → parse → rate``

Cost: one engine call per round (two where the judge thinks before it is read), whatever the number of groups. An engine
that takes calls from several threads gets those of a schedule with several rounds group by group instead, so that no
group waits for another (see ``judging.parallel``). Identical requests of a batch are asked once. Identical candidates of a group
are judged as one and share its score.

The order in which candidates arrive carries no information: they are renumbered by a hash of (seed, group key, text or
name) before anything is scheduled, so permuting the candidates permutes the scores, and any rank computes the same plan.

On failure: a failed comparison is asked again (``retries``), then contributes no game. A candidate without a game has
score None. When more than ``max_failed_fraction`` of the latest comparisons failed, the judge raises.

>>> from mrjudge_reward.engines.scripted import ScriptedEngine
>>> judge = Judge(ScriptedEngine.by_utility(len), Choice(), schedule="ring")
>>> judge.rank("Say hello.", ["hi", "hello there", "hey"]).order
(1, 2, 0)
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from mrjudge_reward.judging.comparisons import Asked, Asker, Run, VerdictMode, digest, is_degenerate, session_of
from mrjudge_reward.judging.early import Ahead
from mrjudge_reward.judging.parallel import shares, side_by_side
from mrjudge_reward.prompting.formats import Choice, Format
from mrjudge_reward.scoring.ratings import RATINGS, rate
from mrjudge_reward.scoring.schedules import SCHEDULES, Limits
from mrjudge_reward.scoring.stats import FailureAlarm
from mrjudge_reward.scoring.tally import HARD_LOG_ODDS, MAX_GROUP, count_games, cyclic_triads

from .cache import ReplyCache
from .errors import ConfigError, InputError
from .images import MAX_PIXELS
from .messages import Message, Part
from .types import Comparison, Engine, Failed, Group, Judgement, Played, Sampling, Verdict


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
        min_label_mass: a read whose labels have less probability together than this has failed: the judge was about
            to write something else.
        audit: play the mirror image of a group's first comparison as well, where the schedule's first round mirrors
            none, so that position consistency is always known. It is a game like any other; it counts in a budget, and
            comes on top of a schedule's own number.
        max_pixels: most pixels of an image shown to the judge; larger ones are scaled down (see ``images``).
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
        min_label_mass: float = 1e-4,
        audit: bool = False,
        max_pixels: int = MAX_PIXELS,
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
        if cache is not None and getattr(engine, "weights_may_change", False):
            raise ConfigError(
                f"{engine.identity} is a loaded model whose weights may change, so its replies cannot be kept: leave out "
                "the cache, or give the engine the model's name"
            )
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
            ("max_pixels", max_pixels, 4),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}")
        self.engine = engine
        self.format = format
        self.schedule = schedule
        self.rating = rating
        self.votes = votes
        self.seed = seed
        self.cache = cache
        self.alarm = alarm if alarm is not None else FailureAlarm()
        slots = min(max_slots, format.max_slots)
        self.audit = audit and format.max_slots > 1 and (budget is None or budget // votes > 1)
        self.limits = Limits(None if budget is None else budget // votes - self.audit, both_orders, slots)
        self.asker = Asker(
            engine, format, verdict, sampling, thinking_tokens, cascade_margin, retries, seed, cache, max_candidate_tokens,
            min_label_mass, max_pixels,
        )  # fmt: skip

    # -- public ---------------------------------------------------------------------------------------------------

    def judge(
        self,
        groups: Sequence[Group],
        ahead: Sequence[Ahead | None] | None = None,
        first_votes: Sequence[int] | None = None,
    ) -> list[Judgement]:
        """Judge groups together.

        Args:
            groups: to judge; several threads may do so at once if the engine allows.
            ahead: per group, what was asked ahead of it (see ``judging.early``). It changes what is asked now, never the scores
                of a judge that repeats itself.
            first_votes: per group, the number of its first vote; 0 by default. Copies of a group in which these differ by
                ``votes`` or more are sampled with different seeds, and in different slots if their keys differ too.

        Returns:
            A judgement per group, in their order.

        Raises:
            InputError: if a group is larger than ``MAX_GROUP``.
            JudgeUnreliableError: if too many judgements failed.
        """
        started = time.perf_counter()
        runs = [self._start(group) for group in groups]
        for run, first in zip(runs, first_votes or (), strict=first_votes is not None):
            run.first_vote = first
        for run, begun in zip(runs, ahead or (), strict=ahead is not None):
            if begun is not None:
                run.follow(begun.run)
        if playing := [run for run in runs if run.batch]:
            with session_of(self.engine):
                if getattr(self.engine, "concurrent_calls", False):
                    side_by_side(shares(playing, self.schedule), self._play)
                else:
                    self._play(playing)
        seconds = time.perf_counter() - started
        return [self._finish(run, seconds) for run in runs]

    def ahead(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        size: int,
        key: str,
        names: Sequence[str] | None = None,
        reference: str | None = None,
        rubric: str | None = None,
    ) -> Ahead:
        """Begin a group whose candidates come one by one; everything but the candidates is as in ``Group.of``.

        Without names it is not known who will meet whom, so only schedules that show every candidate to every other
        in all orders (or each one alone) can begin.

        Args:
            size: how many candidates there will be.
        """
        order = None if names is None else sorted(names, key=lambda name: (digest(self.seed, key, name), name))
        group = Group.of(prompt, [""] * size, key, reference, rubric, names)
        return Ahead(self._open(group, ("",) * size), order, self.votes)

    def ask_ahead(self, asked: Sequence[Asked]) -> None:
        """Ask what ``Ahead.add`` returned, of any number of groups, in one batch.

        A comparison that failed and could go better is not kept, so that it is asked again with the whole group.
        """
        forks = {id(run): (run, run.fork()) for run, _ in asked}
        with session_of(self.engine):
            decided = self.asker.decide([(forks[id(run)][1], comparison) for run, comparison in asked])
        passing = {  # both orders of a pair are asked again together: a cascade looks at both
            (id(run), frozenset(comparison.slots))
            for (run, comparison), items in zip(asked, decided, strict=True)
            if any(isinstance(outcome := item.verdict.outcome, Failed) and outcome.transient for item in items)
        }
        keep: dict[int, list[tuple[Comparison, list[Played]]]] = {key: [] for key in forks}
        for (run, comparison), items in zip(asked, decided, strict=True):
            if (id(run), frozenset(comparison.slots)) not in passing:
                keep[id(run)].append((comparison, items))
        for key, (run, fork) in forks.items():
            run.absorb(fork, keep[key])

    def compare(self, asked: Sequence[tuple[Group, Comparison]]) -> list[Verdict]:
        """Verdicts on comparisons of one's own choosing, all in one batch: for measuring a judge.

        No schedule, no rating and no alarm; retries, cache and the way to a verdict are the judge's own. Of a cascade that
        trusts its glances it is the one in the order asked for.

        Args:
            asked: groups, and candidates of theirs in slot order.

        Returns:
            As many verdicts, in their order.
        """
        runs: dict[int, Run] = {}
        for group, _ in asked:
            if id(group) not in runs:
                runs[id(group)] = Run(group, group.candidates, SCHEDULES["listwise"](0, self.limits, Random(0)))
        with session_of(self.engine):
            decided = self.asker.decide([(runs[id(group)], comparison) for group, comparison in asked])
        return [items[0].verdict for items in decided]

    def apart(self) -> Judge:
        """The same judge for measuring it beside a run: it asks anew what a cache would know, and its failures count for
        nobody's alarm. It shares the engine; close this one, not that."""
        twin = copy.copy(self)
        twin.cache, twin.alarm = None, FailureAlarm(max_fraction=1.0)
        twin.asker = replace(self.asker, cache=None)
        return twin

    def rank(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        candidates: Sequence[str | Sequence[Mapping[str, Any] | Part]],
        key: str = "0",
    ) -> Judgement:
        """Judge the candidates of one prompt; prompt and candidates may show images (see ``Group.of``)."""
        return self.judge([Group.of(prompt, candidates, key)])[0]

    def close(self) -> None:
        """Release the engine and the cache."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    # -- a group's way ----------------------------------------------------------------------------------------------

    def _start(self, group: Group) -> Run:
        if len(group.candidates) > MAX_GROUP:
            raise InputError(
                f"group {group.key!r} has {len(group.candidates)} candidates; at most {MAX_GROUP} are judged together"
            )
        mark: dict[str, tuple[int, str]] = {}  # twins share the place of the first of them
        for name, text in zip(group.names or group.candidates, group.candidates, strict=True):
            if not is_degenerate(text):
                own = (digest(self.seed, group.key, name), name)
                mark[text] = min(mark.get(text, own), own)
        return self._open(group, tuple(sorted(mark, key=mark.__getitem__)))

    def _open(self, group: Group, players: tuple[str, ...]) -> Run:
        plan = SCHEDULES[self.schedule](len(players), self.limits, Random(digest(self.seed, group.key)))
        run = Run(group, players, plan)
        if len(players) >= self.format.min_slots:
            run.advance(first=True)
        if self.audit and run.batch and set(run.batch).isdisjoint(slots[::-1] for slots in run.batch):
            run.batch.append(run.batch[0][::-1])
        return run

    def _play(self, runs: Sequence[Run]) -> None:
        """Take groups through all their rounds, in lock-step."""
        while asked := [
            (run, Comparison(slots, run.first_vote + vote))
            for run in runs
            for slots in run.batch
            for vote in range(self.votes)
        ]:
            recalled = [run.recall(comparison) for run, comparison in asked]
            fresh = iter(
                self.asker.decide([pair for pair, items in zip(asked, recalled, strict=True) if items is None])
            )
            decided = [items if items is not None else next(fresh) for items in recalled]
            for (run, _), items in zip(asked, decided, strict=True):
                run.played += items
            # After every round, not at the end: a dead judge is not asked for the rounds that are left.
            self.alarm.observe(item.verdict.outcome for items in decided for item in items)
            for run in runs:
                if run.batch:
                    run.advance()

    def _finish(self, run: Run, seconds: float) -> Judgement:
        if (
            len(run.players) < self.format.min_slots
        ):  # shown to nobody, and may still hold markers: a policy that collapsed
            for player in range(len(run.players)):
                self.asker.render(run, Comparison((player,) * self.format.min_slots))
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
            disarmed=tuple(i for i, text in enumerate(candidates) if text in run.disarmed),
        )

    def _lowest(self, known: Sequence[float]) -> float:
        """The score of a degenerate answer beside these."""
        neutral = RATINGS[self.rating].neutral
        if neutral is None:
            grades: tuple[tuple[str, float], ...] = getattr(self.format, "grades")  # noqa: B009  known to be there
            lowest, second = sorted(value for _, value in grades)[:2]
            return lowest - (second - lowest)  # a step below the scale: worse than the worst real answer
        return 0.0 if neutral == 0.5 else min(known) - HARD_LOG_ODDS
