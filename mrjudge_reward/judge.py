"""The judge: groups in, scores out.

``schedule → render → one engine batch per round over all groups → parse → rate``

Cost: one engine call per round (two where the judge thinks before it is read), whatever the number of groups. An engine
that takes calls from several threads gets those of a schedule with several rounds group by group instead, so that no
group waits for another (see ``judging.parallel``). Identical requests of a batch are asked once. Identical candidates of
a group are judged as one and share its score.

The order in which candidates arrive carries no information (see ``judging.tournament``), so permuting the candidates
permutes the scores, and any rank computes the same plan.

A group's anchors play along, and scores are relative to theirs (see ``judging.anchors`` and ``scoring.levels``).

On failure: a failed comparison is asked again (``retries``), then contributes no game. A candidate without a game has
score None. When more than ``max_failed_fraction`` of the latest comparisons failed, the judge raises.

>>> from mrjudge_reward.engines.scripted import ScriptedEngine
>>> judge = Judge(ScriptedEngine.by_utility(len), schedule="ring")
>>> judge.rank("Say hello.", ["hi", "hello there", "hey"]).order
(1, 2, 0)
"""

from __future__ import annotations

import copy
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.judging.anchors import (
    anchor_name,
    as_players,
    lacks_level,
    of_candidates,
    with_anchors,
    without_level,
)
from mrjudge_reward.judging.comparisons import Asked, Comparer, round_of
from mrjudge_reward.judging.criteria import joined, rubric_of, split
from mrjudge_reward.judging.early import EarlyComparisons
from mrjudge_reward.judging.parallel import shares, side_by_side
from mrjudge_reward.judging.tournament import Tournament, digest, is_degenerate
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.scoring.alarms import FailureAlarm, LabelMassWatch, SlotWatch
from mrjudge_reward.scoring.levels import relative
from mrjudge_reward.scoring.ratings import rate
from mrjudge_reward.scoring.schedules import SCHEDULES
from mrjudge_reward.scoring.tally import HARD_LOG_ODDS, MAX_GROUP, cyclic_triads

from .cache import ReplyCache
from .config import JudgeSettings
from .errors import ConfigError, InputError
from .fields import Shown
from .messages import Message, Part
from .once import Once
from .types import Comparison, Group, JudgedComparison, Judgement, NoVerdict, Verdict

logger = logging.getLogger(__name__)

_SETTLING = threading.Lock()  # not the judge's own: a judge is pickled and copied


class Judge:
    """Scores the candidates of groups with a judge model.

    Args:
        engine: runs the judge model.
        format: a name or an object; the setting of that name.
        settings: all settings; None for those given by name.
        cache: replies kept on disk; None for the file that the settings name, if any.
        alarm: when to stop because of failures; None for the settings' own.
        named: settings, instead of ``settings``. With an engine given, ``auto`` is what it is for any model but the
            embedded one.

    Attributes:
        format, schedule, rating: what the settings resolve to.

    Raises:
        ConfigError: if the settings contradict each other or the engine.
    """

    def __init__(
        self,
        engine: Engine,
        format: str | Format = "auto",
        settings: JudgeSettings | None = None,
        *,
        cache: ReplyCache | None = None,
        alarm: FailureAlarm | None = None,
        **named: Any,
    ) -> None:
        if settings is None:
            settings = JudgeSettings(**{"model": engine.name, "format": format, **named})
        elif named or format != "auto":
            raise ConfigError("give settings, or settings by name, not both")
        for given, name in ((cache, "cache"), (alarm, "max_failed_fraction"), (alarm, "failure_window")):
            if given is not None and settings.is_set(name):
                raise ConfigError(
                    f"the setting {name} would do nothing beside the {type(given).__name__} that is given"
                )
        if settings.verdict not in ("auto", "generate") and not engine.can_read:
            raise ConfigError(f"{engine.name} cannot read label probabilities; use verdict='generate'")
        if (cache is not None or settings.cache is not None) and engine.weights_may_change:
            raise ConfigError(
                f"{engine.name} is a loaded model whose weights may change, so its replies cannot be kept: leave out "
                "the cache, or give the engine the model's name"
            )
        self.engine = engine
        self.cache = cache if cache is not None or settings.cache is None else ReplyCache(settings.cache)
        self.alarm = alarm or FailureAlarm(settings.max_failed_fraction, settings.failure_window)
        self._label_mass, self._slot_watch = LabelMassWatch(), SlotWatch()
        self._said_once = Once()
        self._set_up(settings.settled(engine.can_read))

    def _set_up(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.format, self.schedule, self.rating = settings.judge_format, settings.judge_schedule, settings.judge_rating
        self.by_criterion = settings.by_criterion
        self._comparer = Comparer(self.engine, settings, self.cache, self._said_once)
        self._limits = settings.limits
        self._settled = settings.verdict != "auto" or settings.verdict_mode == "generate"

    def __getstate__(self) -> dict[str, Any]:
        kept = ("engine", "cache", "alarm", "settings", "_label_mass", "_slot_watch", "_said_once", "_settled")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up(state["settings"])  # what it works with holds locks
        self._settled = state["_settled"]

    def settle(self) -> None:
        """Find out whether the engine reads labels where ``verdict`` is ``auto`` and that is not known yet, by asking a
        server with a tiny chat. Where it cannot, the judge writes; ``format`` and ``settings`` are then those of a judge
        that writes. Happens by itself before anything is judged."""
        if not self._settled:
            with _SETTLING:  # another thread may have found out meanwhile
                self._find_out()

    def _find_out(self) -> None:
        reads = True if self._settled else self.engine.reads_labels()
        if reads is False:
            logger.info("%s cannot read label probabilities, so the judge writes its verdicts", self.engine.name)
            self._set_up(self.settings.settled(can_read=False))
        self._settled = reads is not None

    # -- public ---------------------------------------------------------------------------------------------------

    def judge(
        self,
        groups: Sequence[Group],
        early: Sequence[EarlyComparisons | None] | None = None,
        first_votes: Sequence[int] | None = None,
    ) -> list[Judgement]:
        """Judge groups together.

        Args:
            groups: to judge; several threads may do so at once if the engine allows. Anchors of a group play along, and its
                scores are relative to them; a group that should have anchors and has none is not asked about.
            early: per group, what was asked early (see ``judging.early``). It changes what is asked now, never the
                scores of a judge that repeats itself.
            first_votes: per group, the number of its first vote; 0 by default. Copies of a group in which these differ by
                ``votes`` or more are sampled with different seeds, and in different slots if their keys differ too.

        Returns:
            A judgement per group, in their order.

        Raises:
            InputError: if a group is larger than ``MAX_GROUP``, has a reference or rubric that the wording does not place,
                or is to be judged by criteria and has none.
            JudgeUnreliableError: if too many judgements failed.
        """
        self.settle()
        firsts = first_votes if first_votes is not None else [0] * len(groups)
        begun = early if early is not None else [None] * len(groups)
        unknown = {
            index: without_level(group, None if of_group is None else of_group.tournament.spent)
            for index, (group, of_group) in enumerate(zip(groups, begun, strict=True))
            if lacks_level(group)
        }
        asked = [
            (with_anchors(group), of_group, first)
            for index, (group, of_group, first) in enumerate(zip(groups, begun, firsts, strict=True))
            if index not in unknown
        ]
        found = self._judge_by_criteria(asked) if self.by_criterion else self._judge(asked)
        judged = map(of_candidates, found)
        self.alarm.observe(item.verdict.outcome for judgement in unknown.values() for item in judgement.played)
        return [unknown[index] if index in unknown else next(judged) for index in range(len(groups))]

    def _judge_by_criteria(self, groups: Sequence[tuple[Group, EarlyComparisons | None, int]]) -> list[Judgement]:
        parts = [split(group, self.settings) for group, _, _ in groups]
        asked = [(of, part, first) for of, (_, _, first) in zip(parts, groups, strict=True) for part in of]
        judged = iter(
            self._judge([(part.group, None, first) for _, part, first in asked], [part.format for _, part, _ in asked])
        )
        return [
            joined(group, of, [next(judged) for _ in of], self.settings)
            for (group, _, _), of in zip(groups, parts, strict=True)
        ]

    def _ruled(self, group: Group) -> Group:
        """A group with the criteria over which one verdict is given, as the settings have them."""
        return replace(group, rubric=rubric_of(group, self.settings)) if self.settings.criteria == "implicit" else group

    def _judge(
        self,
        asked: Sequence[tuple[Group, EarlyComparisons | None, int]],
        formats: Sequence[Format | None] | None = None,
    ) -> list[Judgement]:
        """Judgements of groups, each with its early comparisons, its first vote, and its format where that is its own."""
        started = time.perf_counter()
        own = formats if formats is not None else [None] * len(asked)
        tournaments = [
            self._begin(self._ruled(group), early, first, form)
            for (group, early, first), form in zip(asked, own, strict=True)
        ]
        if playing := [tournament for tournament in tournaments if tournament.round]:
            with self.engine.session():
                if self.engine.concurrent_calls:
                    side_by_side(shares(playing) if self.schedule.looks else [playing], self._play)
                else:
                    self._play(playing)
        seconds = time.perf_counter() - started
        judgements = [self._judgement(tournament, seconds) for tournament in tournaments]
        self._slot_watch.observe(judgements)
        return judgements

    def early(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        size: int,
        key: str,
        names: Sequence[str] | None = None,
        reference: Shown = None,
        rubric: Any = None,
        anchors: Shown = None,
    ) -> EarlyComparisons:
        """Begin a group whose candidates come one by one; everything but the candidates is as in ``Group.of``.

        Without names it is not known who will meet whom, so only schedules that show every candidate to every other
        in all orders (or each one alone) can begin.

        Args:
            size: how many candidates there will be.
        """
        self.settle()
        if self.by_criterion:
            raise ConfigError("a judge that judges by criteria begins with whole groups")
        group = self._ruled(Group.of(prompt, [""] * size, key, reference, rubric, names, anchors))
        if lacks_level(group):  # nothing is asked of such a group
            return EarlyComparisons(Tournament(group, ()), None, self.settings.votes)
        anchor_of = {anchor_name(number): text for number, text in enumerate(group.anchors or ())}
        order, anchors_P = None, tuple(range(len(anchor_of)))
        if names is not None:
            order = sorted((*names, *anchor_of), key=lambda name: (digest(self.settings.seed, key, name), name))
            anchors_P = tuple(number for number, name in enumerate(order) if name in anchor_of)
        tournament = self._tournament(with_anchors(group), ("",) * (size + len(anchor_of)), anchors=anchors_P)
        return EarlyComparisons(tournament, order, self.settings.votes, anchor_of)

    def ask_early(self, asked: Sequence[Asked]) -> None:
        """Ask what ``EarlyComparisons.add`` returned, of any number of groups, in one batch.

        A comparison that failed and could go better is not kept, so that it is asked again with the whole group.
        """
        forks = {id(tournament): (tournament, tournament.fork()) for tournament, _ in asked}
        with self.engine.session():
            forked = [(forks[id(tournament)][1], comparison) for tournament, comparison in asked]
            # Which mirror images count beside them is not known yet.
            decided = self._comparer.decide(forked, scheduled=())
        passing = {  # both orders of a pair are asked again together: a cascade looks at both
            (id(tournament), frozenset(comparison.slots))
            for (tournament, comparison), items in zip(asked, decided, strict=True)
            if any(isinstance(outcome := item.verdict.outcome, NoVerdict) and outcome.transient for item in items)
        }
        keep: dict[int, dict[Comparison, list[JudgedComparison]]] = {key: {} for key in forks}
        for (tournament, comparison), items in zip(asked, decided, strict=True):
            if (id(tournament), frozenset(comparison.slots)) not in passing:
                keep[id(tournament)][comparison] = items
        for key, (tournament, fork) in forks.items():
            tournament.absorb(fork, keep[key])

    def compare(self, asked: Sequence[tuple[Group, Comparison]]) -> list[Verdict]:
        """Verdicts on comparisons of one's own choosing, all in one batch: for measuring a judge.

        No schedule, no rating and no alarm; retries, cache and the way to a verdict are the judge's own. Of a cascade it is
        what the judge wrote, or its quick read in the order asked for where that was enough.

        Args:
            asked: groups, and candidates of theirs in slot order, or anchors (-1 the first).

        Returns:
            As many verdicts, in their order.

        Raises:
            ConfigError: if the judge judges by criteria, where a comparison has several verdicts.
            InputError: if a slot names neither a candidate nor an anchor.
        """
        self.settle()
        if self.by_criterion:
            raise ConfigError(
                "a comparison by criteria has several verdicts: judge the group, and look at its criteria"
            )
        tournaments = {id(group): Tournament(whole := with_anchors(group), whole.candidates) for group, _ in asked}
        numbered = [
            (tournaments[id(group)], replace(comparison, slots=as_players(group, comparison.slots)))
            for group, comparison in asked
        ]
        with self.engine.session():
            decided = self._comparer.decide(numbered)
        return [
            [item.verdict for item in items if item.comparison == comparison][-1]
            for (_, comparison), items in zip(numbered, decided, strict=True)
        ]

    def apart(self) -> Judge:
        """The same judge for measuring it beside a run: it asks anew what a cache would know, and its failures count for
        nobody's alarm. It shares the engine; close this one, not that."""
        twin = copy.copy(self)
        twin.cache, twin.alarm = None, FailureAlarm(max_fraction=1.0)
        twin._label_mass, twin._slot_watch = LabelMassWatch(), SlotWatch(math.inf)
        twin._comparer = Comparer(self.engine, self.settings, said=self._said_once)
        return twin

    def rank(
        self,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        candidates: Sequence[str | Sequence[Mapping[str, Any] | Part]],
        key: str = "0",
        reference: Shown = None,
        rubric: Any = None,
        anchors: Shown = None,
    ) -> Judgement:
        """Judge the candidates of one prompt; everything is as in ``Group.of``, images in prompt and candidates too."""
        return self.judge([Group.of(prompt, candidates, key, reference, rubric, anchors=anchors)])[0]

    def check_room(self) -> None:
        """Whether candidates of any length get a share of the judge's context that is worth showing.

        Raises:
            ConfigError: if not.
        """
        self.settle()
        self._comparer.budget.check(self.format.min_slots)

    def render(self, group: Group, slots: Sequence[int]) -> tuple[Message, ...]:
        """What the judge would be shown of these candidates of a group, in slot order; by criteria, in its first call.

        Raises:
            InputError: if a slot names neither a candidate nor an anchor (-1 the first).
        """
        self.settle()
        shown, group = as_players(group, slots), with_anchors(group)
        part = split(group, self.settings)[0] if self.by_criterion else None
        group, form = (part.group, part.format) if part is not None else (self._ruled(group), None)
        shown = shown[: (form or self.format).max_slots]
        return self._comparer.render(Tournament(group, group.candidates, format=form), Comparison(shown))

    def close(self) -> None:
        """Release the engine and the cache."""
        self.engine.close()
        if self.cache is not None:
            self.cache.close()

    # -- a group's way ----------------------------------------------------------------------------------------------

    def _begin(
        self, group: Group, early: EarlyComparisons | None, first_vote: int, form: Format | None = None
    ) -> Tournament:
        if len(group.candidates) > MAX_GROUP:
            beside = ", its anchors among them" if group.anchors else ""
            raise InputError(
                f"group {group.key!r} has {len(group.candidates)} candidates{beside}; at most {MAX_GROUP} are judged "
                "together"
            )
        player_of, sanitized = self._comparer.seat(group)
        players = tuple(dict.fromkeys(player_of.values()))
        of_anchors = {player_of.get(text) for text in group.anchors or ()}
        anchors = tuple(number for number, player in enumerate(players) if player in of_anchors)
        tournament = self._tournament(group, players, first_vote, form, anchors)
        tournament.player_of, tournament.sanitized = player_of, sanitized
        if early is not None:
            tournament.follow(early.tournament)
        return tournament

    def _tournament(
        self,
        group: Group,
        players: tuple[str, ...],
        first_vote: int = 0,
        form: Format | None = None,
        anchors: tuple[int, ...] = (),
    ) -> Tournament:
        self._comparer.check_shown(group)
        fitting = form or self.format
        schedule, limits = self.schedule, replace(self._limits, anchors=anchors)
        if form is not None and form.max_slots == 1 and not schedule.alone:
            # An essential criterion is graded of all, whatever is compared.
            schedule, limits = SCHEDULES["pointwise"], replace(limits, budget=None)
        plan = schedule.plan(len(players), limits, Random(digest(self.settings.seed, group.key)))
        tournament = Tournament(group, players, plan, first_vote, form)
        tournament.anchors = anchors
        if len(players) >= fitting.min_slots:
            tournament.begin()
        return tournament

    def _play(self, tournaments: Sequence[Tournament]) -> None:
        """Take groups through all their rounds, in lock-step."""
        while asked := [
            (one, comparison) for one in tournaments for comparison in one.comparisons(self.settings.votes)
        ]:
            scheduled = round_of(asked)
            recalled = [
                tournament.recall(comparison, (id(tournament), comparison.swap()) in scheduled)
                for tournament, comparison in asked
            ]
            unknown = [pair for pair, items in zip(asked, recalled, strict=True) if items is None]
            fresh = iter(self._comparer.decide(unknown, scheduled))
            decided = [items if items is not None else next(fresh) for items in recalled]
            for (tournament, _), items in zip(asked, decided, strict=True):
                tournament.record(items)
            # After every round, not at the end: a dead judge is not asked for the rounds that are left.
            self.alarm.observe(item.verdict.outcome for items in decided for item in items)
            self._label_mass.observe(item.verdict for items in decided for item in items)
            for tournament in tournaments:
                if tournament.round:
                    tournament.next_round()

    def _judgement(self, tournament: Tournament, seconds: float) -> Judgement:
        group, players, player_of = tournament.group, tournament.players, tournament.player_of
        tally = tournament.tally()
        scores: list[float | None] = rate(self.rating, tally)
        forfeits = tuple(i for i, text in enumerate(group.candidates) if is_degenerate(text))
        if len(scores) == 1 and scores[0] is None and (forfeits or tournament.anchors):
            # The only real answer needs no judge to be better than none at all, nor to be as good as an anchor like it.
            scores = [self.rating.neutral]
        level = None
        if tournament.anchors:
            met_GG = None if self.rating.neutral is None else tally.games_GG
            scores, level = relative(scores, tournament.anchors, met_GG)
        unlevelled = tournament.anchors and level is None
        known = [] if unlevelled else [score for score in scores if score is not None]
        # Degenerate answers lose by rule: never above the lowest known, and below a middling one.
        lowest = self._lowest(known, tournament.format or self.format, level) if known else None
        grades = [None if math.isnan(grade) else float(grade) for grade in tally.grades_G]
        known_of = dict(zip(players, zip(scores, map(float, tally.games_G), grades, strict=True), strict=True))
        found_of = {text: known_of[player] for text, player in player_of.items()}

        def candidates_in(texts: set[str]) -> tuple[int, ...]:
            """Which candidates these are, themselves or by the text that played for them."""
            shown = (texts.intersection((text, player_of.get(text, text))) for text in group.candidates)
            return tuple(index for index, found in enumerate(shown) if found)

        return Judgement(
            group=group,
            scores_G=tuple(found_of.get(text, (lowest, 0.0, None))[0] for text in group.candidates),
            games_G=tuple(found_of.get(text, (lowest, 0.0, None))[1] for text in group.candidates),
            played=tournament.in_candidates(tournament.played),
            quick_reads=tournament.in_candidates(tournament.quick_reads),
            forfeits=forfeits,
            calls=tournament.spent.calls,
            cache_hits=tournament.spent.cache_hits,
            usage=tournament.spent.usage,
            cyclic_triads=cyclic_triads(tally),
            seconds=seconds,
            sanitized=candidates_in(tournament.sanitized),
            cut=candidates_in(tournament.cut),
            grades_G=tuple(found_of.get(text, (lowest, 0.0, None))[2] for text in group.candidates),
            level=level,
        )

    def _lowest(self, known: Sequence[float], form: Format, level: float | None) -> float:
        """The score of a degenerate answer beside these; with a level all are relative to it."""
        neutral = self.rating.neutral
        if neutral is None:
            grades: tuple[tuple[str, float], ...] = getattr(form, "grades")  # noqa: B009  known to be there
            lowest, second = sorted(value for _, value in grades)[:2]
            # A step below the scale: worse than the worst real answer.
            return round(lowest - (second - lowest) - (level or 0.0), 9)
        if neutral == 0.5:
            return 0.0 if level is None else -1.0  # anchors may be at the bottom of the range themselves
        return min(known) - HARD_LOG_ODDS


class JudgeConfig(JudgeSettings):
    """Everything about a judge, as plain values, from which it is built.

    With the default ``model="embedded"`` the untrained 135M model is read pointwise for sentiment, because that is what
    it does well; with ``adapter="embedded"`` it is trained to choose between two, and is read as it was trained. Any other
    model chooses among candidates, after the papers. The settings, with defaults and reasons, stand in ``config``.

    Raises:
        ConfigError: see ``JudgeSettings``.
    """

    @classmethod
    def load(cls, path: str | os.PathLike[str], **overrides: Any) -> JudgeConfig:
        """Read a YAML file; keyword arguments override its values.

        Raises:
            ConfigError: if the file is missing, not YAML, or not a mapping of known settings.
        """
        return cls(**{**cls.load_values(path), **overrides})

    def build(self, engine: Engine | None = None) -> Judge:
        """The judge.

        Args:
            engine: use this one instead of building it.
        """
        return Judge(engine if engine is not None else self.build_engine(), settings=self)
