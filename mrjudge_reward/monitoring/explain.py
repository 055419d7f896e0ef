"""Verdicts in words, for logs, tables and output files."""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from mrjudge_reward.types import CriterionScores, Grades, JudgedComparison, NoVerdict, Preference, RankOrder, Tie

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """One line that is safe to print: white space folded, control characters and bidi overrides made visible (U+FFFD).

    Models write what they like, and a terminal obeys escape sequences.
    """
    return _UNPRINTABLE.sub("\ufffd", " ".join(text.split()))


def shown_as(slot: int) -> str:
    """A candidate or an anchor (see ``Comparison``) in words."""
    return f"#{slot}" if slot >= 0 else f"anchor {-slot}"


def verdict_line(item: JudgedComparison, limit: int = 400) -> str:
    """One line: which candidates were shown in which slots, what the judge said, and (the end of) its reasoning."""
    shown = " ".join(map(shown_as, item.comparison.slots))
    match item.verdict.outcome:
        case Preference(p):
            said = " ".join(f"{value:.2f}" for value in p)
        case Grades(values):
            said = " ".join(f"{value:g}" if value == int(value) else f"{value:.2f}" for value in values)
        case RankOrder(tiers, strengths):
            named = [" = ".join(shown_as(item.comparison.slots[at]) for at in tier) for tier in tiers]
            steps = [f" {'>' * strength} " for strength in strengths or (1,) * (len(tiers) - 1)]
            said = "".join(part for pair in zip_longest(named, steps, fillvalue="") for part in pair)
        case Tie():
            said = "tie"
        case NoVerdict(reason, detail):
            said = f"failed: {reason}" + (f": {detail[:limit]}" if detail else "")
    if item.criterion:
        said = f"{item.criterion}: {said}"
    rationale = " ".join(item.verdict.rationale.split())
    if len(rationale) > limit:
        rationale = f"... {rationale[-limit:]}"
    return printable(f"[{shown}] {said}" + (f" | {rationale}" if rationale else ""))


def verdict_record(item: JudgedComparison) -> dict[str, Any]:
    """A verdict as plain values for JSON; -1 is the group's first anchor."""
    record: dict[str, Any] = {"candidates": list(item.comparison.slots)}
    if item.criterion:
        record["criterion"] = item.criterion
    match item.verdict.outcome:
        case Preference(p):
            record |= {"outcome": "scored", "probabilities": list(p)}
        case Grades(values):
            record |= {"outcome": "scored", "scores": list(values)}
        case RankOrder(tiers):
            record |= {"outcome": "scored", "order": [[item.comparison.slots[at] for at in tier] for tier in tiers]}
        case Tie():
            record |= {"outcome": "tie"}
        case NoVerdict(reason, detail):
            record |= {"outcome": "failed", "reason": reason, "detail": detail}
    return record | {"rationale": item.verdict.rationale}


def criterion_record(one: CriterionScores) -> dict[str, Any]:
    """What was found out about a criterion, as plain values for JSON."""
    return {
        "name": one.criterion.name, "weight": one.weight, "scores": list(one.scores_G), "comparisons": one.comparisons,
        "failed": one.failed,
    }  # fmt: skip
