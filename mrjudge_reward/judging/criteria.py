"""A group judged by the criteria of its rubric: split into a group per criterion, and put together again.

Each criterion is one more tournament of the same candidates under the same key: the same slots, and prompts that are the
same up to the criteria. Those asked about in one call render to the same request, which is asked once, and each has its own
games, tally and rating. So a criterion whose verdicts fail abstains alone.

Of an essential criterion it must be known whether it is met, which no comparison says: it is graded, where others are
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.errors import InputError
from mrjudge_reward.prompting.criteria import ByCriterion, OneVerdict
from mrjudge_reward.prompting.formats import Format
from mrjudge_reward.prompting.sanitizing import neutralise
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.rubrics.reading import read_rubric
from mrjudge_reward.scoring.criteria import by_contrast, relative_totals, totals
from mrjudge_reward.types import CriterionScores, Group, Judgement, Usage

from .tournament import digest


@dataclass(frozen=True, slots=True)
class Part:
    """One criterion of a group.

    Attributes:
        criterion: that is asked about.
        group: whose rubric is the criteria of one call.
        format: reads the verdict on this one.
    """

    criterion: Criterion
    group: Group
    format: Format


OVERALL = Rubric((Criterion("overall", "Answers the prompt well: it is correct, helpful and to the point."),))
"""What a group of our own, to measure a judge with, is judged by where there is no rubric for the whole run."""


def with_rubric(group: Group, settings: JudgeSettings) -> Group:
    """A group that a judge by criteria can be asked about: with ``OVERALL`` if neither it nor the run has a rubric."""
    lacks = settings.criteria is not None and settings.rubric is None and group.rubric is None
    return replace(group, rubric=OVERALL) if lacks else group


def rubric_of(group: Group, settings: JudgeSettings) -> Rubric:
    """A group's own rubric, or else the run's, without the criteria that are left out of it.

    Raises:
        InputError: if it has none, or its text is none.
    """
    own = group.rubric if group.rubric is not None and str(group.rubric).strip() else settings.rubric
    if own is None:
        raise InputError(
            f"group {group.key!r} has no rubric to judge it by: set rubric for the whole run, or give each prompt its own"
        )
    rubric = read_rubric(own, f"rubric of group {group.key!r}")
    return Rubric(tuple(_kept(rubric.criteria, settings.rubric_dropout, settings.seed, group.key)))


def _kept(criteria: Sequence[Criterion], dropout: float, seed: int, key: str) -> list[Criterion]:
    """The criteria without a share of those that are not essential; at least one is kept."""
    free = [index for index, one in enumerate(criteria) if not one.essential]
    most = len(free) - (len(free) == len(criteria))
    gone = set(Random(digest(seed, key, "dropout")).sample(free, min(most, round(dropout * len(free)))))
    return [one for index, one in enumerate(criteria) if index not in gone]


def split(group: Group, settings: JudgeSettings) -> list[Part]:
    """A group per criterion, in the rubric's order.

    Raises:
        InputError: see ``rubric_of``; or if a criterion has a grade that would be a marker.
    """
    rubric = rubric_of(group, settings)
    graded = [one for one in rubric.criteria if settings.criteria == "absolute" or one.essential]
    compared = [one for one in rubric.criteria if one not in graded]
    part_of: dict[str, Part] = {}
    for kind, alone in ((graded, True), (compared, False)):
        order = Random(digest(settings.seed, group.key, "criteria", alone)).sample(kind, len(kind))
        for first in range(0, len(order), settings.criteria_per_call):
            chunk = tuple(order[first : first + settings.criteria_per_call])
            each = tuple(_verdict_on(one, settings, alone) for one in chunk)
            asked = replace(group, rubric=Rubric(chunk))
            part_of |= {one.name: Part(one, asked, ByCriterion(each, number)) for number, one in enumerate(chunk)}
    return [part_of[one.name] for one in rubric.criteria]


def _verdict_on(criterion: Criterion, settings: JudgeSettings, alone: bool) -> OneVerdict:
    if not alone:
        return settings.compared_by
    if not criterion.grades:
        return settings.graded_by
    words = [word for word, _ in criterion.grades]
    for word in words:
        if neutralise(word) != word:
            raise InputError(f"criterion {criterion.name!r}: grade {word!r} would be a marker; call it otherwise")
    return replace(settings.graded_by, grades=tuple((word, step / (len(words) - 1)) for step, word in enumerate(words)))


def joined(group: Group, parts: Sequence[Part], judgements: Sequence[Judgement], settings: JudgeSettings) -> Judgement:
    """One judgement out of those on each criterion; its scores are totals (see ``scoring.criteria``).

    A criterion by which no anchor of the group is known has no level, and counts as one of which nothing is known.
    """
    anchors = len(group.anchors or ())
    unknown = (None,) * len(group.candidates)
    criteria = [
        CriterionScores(
            part.criterion,
            unknown if anchors and judgement.level is None else judgement.scores_G,
            judgement.grades_G,
            len(judgement.played),
            sum(item.verdict.failed for item in judgement.played),
            part.criterion.weight,
        )
        for part, judgement in zip(parts, judgements, strict=True)
    ]
    forfeits = judgements[0].forfeits
    if settings.contrast:
        criteria = by_contrast(criteria, len(group.candidates) - anchors)
    bounded = settings.judge_rating.neutral != 0
    found = relative_totals(criteria, anchors, bounded, forfeits) if anchors else totals(criteria, bounded, forfeits)
    calls, hits = _requests(parts, judgements)
    return Judgement(
        group=group,
        scores_G=found,
        games_G=tuple(map(math.fsum, zip(*(one.games_G for one in judgements), strict=True))),
        played=tuple(
            replace(item, criterion=part.criterion.name)
            for part, one in zip(parts, judgements, strict=True)
            for item in one.played
        ),
        forfeits=forfeits,
        calls=calls,
        cache_hits=hits,
        usage=sum((one.usage for one in judgements), Usage()),
        cyclic_triads=sum(one.cyclic_triads for one in judgements),
        seconds=judgements[0].seconds,
        sanitized=tuple(sorted({index for one in judgements for index in one.sanitized})),
        cut=tuple(sorted({index for one in judgements for index in one.cut})),
        criteria=tuple(criteria),
    )


def _requests(parts: Sequence[Part], judgements: Sequence[Judgement]) -> tuple[int, int]:
    """Requests to the engine, and those answered without it: criteria of one call share theirs."""
    most: dict[Rubric, int] = {}
    asked: dict[Rubric, int] = {}
    for part, one in zip(parts, judgements, strict=True):
        rubric = part.group.rubric
        assert isinstance(rubric, Rubric)
        most[rubric] = max(most.get(rubric, 0), one.calls + one.cache_hits)
        asked[rubric] = asked.get(rubric, 0) + one.calls
    return sum(asked.values()), sum(max(0, most[rubric] - asked[rubric]) for rubric in most)
