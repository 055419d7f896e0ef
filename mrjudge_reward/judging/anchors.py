"""Groups with anchors: these play as further candidates, and are taken out again of what the judge found.

So an anchor is shown, numbered, made safe and rated as a candidate is, and nobody can tell which response it is. What it
costs is part of what the group costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mrjudge_reward.errors import InputError
from mrjudge_reward.types import Comparison, Group, JudgedComparison, Judgement, NoVerdict, Verdict

from .tournament import Spent, is_degenerate

NO_ANCHOR = "no anchor"
"""Reason why a group that should have a level cannot be judged."""


def lacks_level(group: Group) -> bool:
    """Whether a group is to be judged relative to anchors and has none that says anything."""
    return group.anchors is not None and all(map(is_degenerate, group.anchors))


def without_level(group: Group, spent: Spent | None = None) -> Judgement:
    """What is known of such a group: nothing. It is not asked about, and counts as one comparison that failed.

    Args:
        group: that lacks a level.
        spent: on it before that was known.
    """
    spent = spent or Spent()
    size = len(group.candidates)
    why = (
        f"group {group.key!r} brings no anchor that says anything besides its reference, or rows with different ones: its "
        "level is unknown"
    )
    failed = JudgedComparison(Comparison((0,) if size else ()), Verdict(NoVerdict(NO_ANCHOR, why)))
    return Judgement(
        group=group,
        scores_G=(None,) * size,
        games_G=(0.0,) * size,
        played=(failed,),
        calls=spent.calls,
        cache_hits=spent.cache_hits,
        usage=spent.usage,
        grades_G=(None,) * size,
        anchors_A=(None,) * len(group.anchors or ()),
    )


def with_anchors(group: Group) -> Group:
    """The group with its anchors as its last candidates."""
    anchors = group.anchors or ()
    names = None if group.names is None else (*group.names, *map(anchor_name, range(len(anchors))))
    return replace(group, candidates=(*group.candidates, *anchors), names=names) if anchors else group


def anchor_name(number: int) -> str:
    """The identity of an anchor in a group whose candidates have names."""
    return f"anchor {number}"


def of_candidates(judgement: Judgement) -> Judgement:
    """A judgement of such a group as one of its candidates, with the anchors apart."""
    count = len(judgement.group.anchors or ())
    if not count:
        return judgement
    group, size = judgement.group, len(judgement.group.candidates) - count

    def placed(items: Sequence[JudgedComparison]) -> tuple[JudgedComparison, ...]:
        return tuple(replace(item, comparison=_placed(item.comparison, size)) for item in items)

    def below(indices: Sequence[int]) -> tuple[int, ...]:
        return tuple(index for index in indices if index < size)

    return replace(
        judgement,
        group=replace(
            group, candidates=group.candidates[:size], names=None if group.names is None else group.names[:size]
        ),
        scores_G=judgement.scores_G[:size],
        anchors_A=tuple(
            None if is_degenerate(text) else score
            for text, score in zip(group.candidates[size:], judgement.scores_G[size:], strict=True)
        ),
        games_G=judgement.games_G[:size],
        grades_G=judgement.grades_G[:size],
        played=placed(judgement.played),
        quick_reads=placed(judgement.quick_reads),
        criteria=tuple(
            replace(one, scores_G=one.scores_G[:size], grades_G=one.grades_G[:size]) for one in judgement.criteria
        ),
        forfeits=below(judgement.forfeits),
        sanitized=below(judgement.sanitized),
        cut=below(judgement.cut),
    )


def as_players(group: Group, slots: Sequence[int]) -> tuple[int, ...]:
    """Numbers in ``with_anchors`` of candidates and anchors, the latter given as -1, -2, ...

    Raises:
        InputError: if there is no such candidate or anchor.
    """
    size, anchors = len(group.candidates), len(group.anchors or ())
    if wrong := [slot for slot in slots if not -anchors <= slot < size]:
        raise InputError(
            f"group {group.key!r} has candidates 0 to {size - 1} and {anchors} anchors (-1 is the first); got {wrong[0]}"
        )
    return tuple(slot if slot >= 0 else size - 1 - slot for slot in slots)


def _placed(comparison: Comparison, size: int) -> Comparison:
    """Candidates by their numbers, the anchors behind them as -1, -2, ..."""
    return replace(comparison, slots=tuple(slot if slot < size else size - 1 - slot for slot in comparison.slots))
