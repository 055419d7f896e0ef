"""What a batch of judgements looked like: the numbers every adapter logs."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from mrjudge_reward.completions import own_words
from mrjudge_reward.types import JudgedComparison, Judgement, NoVerdict, RankOrder, Tie, Usage

from .cures import cure_of
from .tally import debiased_consistency, position_consistency

METRICS = (
    "position_consistency",
    "position_consistency_debiased",
    "tie_rate",
    "failed_rate",
    "abstained_rate",
    "calls",
    "tokens",
    "seconds",
    "zero_spread_groups",
    "length_correlation",
    "sanitized_rate",
    "cut_rate",
    "label_mass",
    "opened_rate",
)
"""Names of the metrics, the same on every rank at every step."""

ANCHOR_WIN_RATE = "anchor_win_rate"
"""Name of a metric that is there only where groups have anchors."""

MOST_KEPT = 32
"""Rejected texts that are told apart."""


@dataclass(frozen=True)
class CriterionStats:
    """Counts over a batch of groups that were judged by a criterion; they can be added.

    Attributes:
        groups: in which it was asked about.
        known, rewards: candidates with a reward by it, and the sum of these rewards (``CriterionScores.rewards_G``).
        spreads: sum over groups of the rewards' standard deviation.
        comparisons, failed: verdicts, and those that failed.
        agreeing, mirrored: as in ``JudgeStats``.
    """

    groups: int = 0
    known: int = 0
    rewards: float = 0.0
    spreads: float = 0.0
    comparisons: int = 0
    failed: int = 0
    agreeing: int = 0
    mirrored: int = 0

    @classmethod
    def of(cls, judgement: Judgement) -> dict[str, CriterionStats]:
        """Criterion → its counts in one group; empty for a group that was not judged by criteria."""
        played: dict[str, list[JudgedComparison]] = {}
        for item in judgement.played:
            played.setdefault(item.criterion, []).append(item)
        found = {}
        for one in judgement.criteria:
            name = one.criterion.name
            known = [reward for reward in one.rewards_G if reward is not None]
            agreeing, mirrored = position_consistency(played.get(name, ()))
            spread = statistics.pstdev(known) if known else 0.0
            counts = (len(known), math.fsum(known), spread, one.comparisons, one.failed, agreeing, mirrored)
            found[name] = cls(1, *counts)
        return found

    def __add__(self, other: CriterionStats) -> CriterionStats:
        return CriterionStats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """``reward``, ``spread`` (inside groups), ``failed_rate`` and ``position_consistency``; NaN where there is none."""
        return {
            "reward": self.rewards / self.known if self.known else math.nan,
            "spread": self.spreads / self.groups if self.groups else math.nan,
            "failed_rate": self.failed / max(1, self.comparisons),
            "position_consistency": self.agreeing / self.mirrored if self.mirrored else math.nan,
        }


@dataclass(frozen=True)
class JudgeStats:
    """Counts over a batch of groups; rates are derived, so stats of several ranks can be added.

    Attributes:
        groups, candidates, comparisons: how many.
        failed, tied: comparisons without a verdict; with a verdict that none is better.
        agreeing, mirrored: pairs of comparisons in mirrored slots with the same winner, and all such pairs.
        debiased_agreeing, debiased_mirrored: the same of pairs that were read, with the bias all reads share taken out.
        abstained: candidates without a score.
        zero_spread_groups: groups whose known scores are all equal, or unknown: they teach a policy nothing.
        calls, cache_hits: requests that reached the engine, and that did not have to.
        usage: tokens of ``calls``.
        seconds: wall time.
        length_correlations, length_groups: sum over groups of the correlation of reward with length, and how many groups
            have one (both vary).
        sanitized: candidates that held a marker which had to be made harmless (``Judgement.sanitized``).
        cut: candidates of which the judge was not shown all (``Judgement.cut``).
        reads: verdicts read from label probabilities.
        label_masses: sum over these of the probability of the labels together.
        opened: verdicts that the judge did not come to write, and that were read after what it wrote.
        reasons: failures by reason.
        rejected: what the judge said instead of a verdict (``NoVerdict.rejected``), how often; of a sum, the
            ``MOST_KEPT`` most frequent texts.
        details: failures by reason and what was seen, the most frequent of each group, as ``"reason: detail"``; bounded as
            ``rejected`` is.
        criteria: counts by criterion, of the first ``MOST_KEPT`` names that came.
        against_anchors, anchor_wins: candidates with a score relative to anchors; those above 0, of which one at 0 is half.
    """

    groups: int = 0
    candidates: int = 0
    comparisons: int = 0
    failed: int = 0
    tied: int = 0
    agreeing: int = 0
    mirrored: int = 0
    debiased_agreeing: int = 0
    debiased_mirrored: int = 0
    abstained: int = 0
    zero_spread_groups: int = 0
    calls: int = 0
    cache_hits: int = 0
    usage: Usage = Usage()
    seconds: float = 0.0
    length_correlations: float = 0.0
    length_groups: int = 0
    sanitized: int = 0
    cut: int = 0
    reads: int = 0
    label_masses: float = 0.0
    opened: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    criteria: dict[str, CriterionStats] = field(default_factory=dict)
    against_anchors: int = 0
    anchor_wins: float = 0.0

    @classmethod
    def of(
        cls,
        judgements: Sequence[Judgement],
        rewards: Sequence[Sequence[float | None]] | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
    ) -> JudgeStats:
        """Count a batch that was judged together.

        Args:
            judgements: of the batch.
            rewards: per group, a reward per candidate; the scores by default.
            lengths: per group, of its candidates; characters of the final answers by default.
        """
        agreeing, mirrored = debiased_consistency([asked_of(judgement) for judgement in judgements])
        stats = cls(
            groups=len(judgements),
            debiased_agreeing=agreeing,
            debiased_mirrored=mirrored,
            seconds=max((judgement.seconds for judgement in judgements), default=0.0),
        )
        for index, judgement in enumerate(judgements):
            rewards_G = judgement.scores_G if rewards is None else rewards[index]
            lengths_G = (
                [len(own_words(text)) for text in judgement.group.candidates] if lengths is None else lengths[index]
            )
            stats += _count(judgement, length_correlation(rewards_G, lengths_G))
        return stats

    def record(self) -> dict[str, Any]:
        """As plain values for JSON."""
        counts = {"reasons": dict(self.reasons)}
        counts |= {name: dict(getattr(self, name).most_common(10)) for name in ("rejected", "details")}
        criteria = {name: asdict(one) for name, one in self.criteria.items()}
        return {**vars(self), "usage": asdict(self.usage), **counts, "criteria": criteria}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> JudgeStats:
        """Stats from their ``record``, also by way of JSON."""
        counts = {name: Counter(record.get(name, {})) for name in ("reasons", "rejected", "details")}
        criteria = {name: CriterionStats(**one) for name, one in record.get("criteria", {}).items()}
        return cls(**{**record, "usage": Usage(**record["usage"]), **counts, "criteria": criteria})

    @property
    def failures(self) -> str:
        """The most frequent reasons for failures, and texts that were no verdict; empty without a failure."""
        return most_frequent(self.reasons, self.rejected)

    @property
    def advice(self) -> str:
        """The commonest failure in the server's or the parser's own words, and what to do; empty without a failure."""
        if not self.reasons:
            return ""
        reason = self.reasons.most_common(1)[0][0]
        seen = (seen for seen, _ in self.details.most_common() if seen.startswith(f"{reason}: "))
        detail = next(seen, "").removeprefix(f"{reason}: ")
        return "; ".join(filter(None, (detail, cure_of(reason, detail))))

    def __add__(self, other: JudgeStats) -> JudgeStats:
        added = self.__dataclass_fields__.keys() - {"criteria"}
        values = {name: getattr(self, name) + getattr(other, name) for name in added}
        criteria = dict(self.criteria)
        for name, one in other.criteria.items():
            if name in criteria or len(criteria) < MOST_KEPT:
                criteria[name] = criteria.get(name, CriterionStats()) + one
        values["criteria"] = criteria
        for name in ("rejected", "details"):
            if len(values[name]) > MOST_KEPT:  # the sum over a run must not hold all that was ever said
                values[name] = Counter(dict(values[name].most_common(MOST_KEPT)))
        values["seconds"] = max(self.seconds, other.seconds)  # batches of several ranks run side by side
        return JudgeStats(**values)

    def metrics(self) -> dict[str, float]:
        """The values of ``METRICS``. A rate over nothing is 0.

        Consistency is 0 where the slot alone decides, .5 for a coin and 1 where it does not matter. It is NaN where no
        comparison was mirrored, as where every candidate was judged alone: then it was not measured. The correlation
        with length is a mean over groups, NaN where no group has one.

        Where candidates have a score relative to anchors, ``ANCHOR_WIN_RATE`` is there as well: the share of them that are
        better, ties half.
        """
        beside = {ANCHOR_WIN_RATE: self.anchor_wins / self.against_anchors} if self.against_anchors else {}
        return beside | {
            "position_consistency": self.agreeing / self.mirrored if self.mirrored else math.nan,
            "position_consistency_debiased": (
                self.debiased_agreeing / self.debiased_mirrored if self.debiased_mirrored else math.nan
            ),
            "tie_rate": self.tied / max(1, self.comparisons - self.failed),
            "failed_rate": self.failed / max(1, self.comparisons),
            "abstained_rate": self.abstained / max(1, self.candidates),
            "calls": float(self.calls),
            "tokens": float(self.usage.prompt_tokens + self.usage.completion_tokens),
            "seconds": self.seconds,
            "zero_spread_groups": float(self.zero_spread_groups),
            "length_correlation": self.length_correlations / self.length_groups if self.length_groups else math.nan,
            "sanitized_rate": self.sanitized / max(1, self.candidates),
            "cut_rate": self.cut / max(1, self.candidates),
            "label_mass": self.label_masses / self.reads if self.reads else math.nan,
            "opened_rate": self.opened / max(1, self.comparisons),
        }


def most_frequent(reasons: Counter[str], rejected: Counter[str]) -> str:
    """Counted reasons and rejected texts in words.

    >>> most_frequent(Counter({"off-menu label": 12}), Counter({"I prefer B.": 12}))
    "off-menu label (12); most often rejected: 'I prefer B.' (12)"
    """
    said = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
    texts = ", ".join(f"{text!r} ({count})" for text, count in rejected.most_common(3))
    return f"{said}; most often rejected: {texts}" if texts else said


def is_tie(item: JudgedComparison) -> bool:
    """Whether a verdict says that no candidate it looked at is better than another."""
    match item.verdict.outcome:
        case Tie():
            return True
        case RankOrder(tiers):
            return len(tiers) == 1
        case NoVerdict():
            return False
        case outcome:
            values = outcome.probabilities_K if hasattr(outcome, "probabilities_K") else outcome.values_K
            return len(values) > 1 and max(values) == min(values)


def length_correlation(rewards_G: Sequence[float | None], lengths_G: Sequence[int]) -> float | None:
    """Pearson's correlation of reward with length within a group; None where either is the same for all known ones.

    A judge that likes long answers shows here before answers grow. Over groups take the mean: within a group the prompt
    is the same, so that hard questions with long answers do not look like a bias.

    >>> length_correlation([0.1, 0.2, None, 0.3], [10, 20, 500, 30])
    1.0
    """
    known = [(reward, length) for reward, length in zip(rewards_G, lengths_G, strict=True) if reward is not None]
    values, sizes = [float(reward) for reward, _ in known], [float(length) for _, length in known]
    try:
        return round(statistics.correlation(values, sizes), 9)
    except statistics.StatisticsError:  # fewer than two, or constant
        return None


def asked_of(judgement: Judgement) -> Sequence[JudgedComparison]:
    """What tells about slots: of a cascade its reads, which are of both orders."""
    return judgement.quick_reads or judgement.played


def _count(judgement: Judgement, correlation: float | None) -> JudgeStats:
    agreeing, mirrored = position_consistency(asked_of(judgement))
    scores = [score for score in judgement.scores_G if score is not None]
    masses = [item.verdict.label_mass for item in asked_of(judgement) if item.verdict.label_mass is not None]
    failed = [item.verdict.outcome for item in judgement.played if isinstance(item.verdict.outcome, NoVerdict)]
    levelled = scores if judgement.group.anchors else []
    details = Counter(f"{outcome.reason}: {outcome.detail[:300]}" for outcome in failed if outcome.detail)
    return JudgeStats(
        candidates=len(judgement.scores_G),
        comparisons=len(judgement.played),
        failed=len(failed),
        tied=sum(is_tie(item) for item in judgement.played),
        agreeing=agreeing,
        mirrored=mirrored,
        abstained=len(judgement.scores_G) - len(scores),
        zero_spread_groups=int(not scores or max(scores) - min(scores) < 1e-9),
        calls=judgement.calls,
        cache_hits=judgement.cache_hits,
        usage=judgement.usage,
        length_correlations=correlation or 0.0,
        length_groups=int(correlation is not None),
        sanitized=len(judgement.sanitized),
        cut=len(judgement.cut),
        reads=len(masses),
        label_masses=sum(masses),
        opened=sum(item.verdict.opened for item in judgement.played),
        reasons=Counter(outcome.reason for outcome in failed),
        rejected=Counter(outcome.rejected for outcome in failed if outcome.rejected),
        details=Counter(dict(details.most_common(3))),
        criteria=CriterionStats.of(judgement),
        against_anchors=len(levelled),
        anchor_wins=sum((score > 0) + (score == 0) / 2 for score in levelled),
    )
