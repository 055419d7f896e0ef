"""What goes into a group that arrives and what comes out: samples, and their rewards from what the judge found."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.early import EarlyComparisons
from mrjudge_reward.messages import Message
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.scoring.criteria import component
from mrjudge_reward.scoring.rewards import RewardShape, reward_group
from mrjudge_reward.scoring.stats import JudgeStats
from mrjudge_reward.scoring.tally import position_consistency
from mrjudge_reward.types import Group, Judgement

from .queue import JudgingQueue

logger = logging.getLogger(__name__)

INFO_KEYS = (
    "judge_score",
    "judge_games",
    "judge_position_consistency",
    "judge_failed",
    "judge_abstained",
    "judge_partial",
    "judge_sanitized",
    "judge_cut",
    "judge_seconds",
)
"""What is told of every row, always all of it, each a float: its score (NaN where nothing is known), games it
took part in, share of mirrored comparisons of its group that agree (NaN where none was mirrored), share of its group's
comparisons that failed, whether (1 or 0) its score is unknown, whether its group was not whole, whether
the answer held markers that had to be made harmless, whether the judge was not shown all of it or of what it
answers, seconds of judging."""


REPORT_S = 60.0
"""Seconds between two reports in the log."""


@dataclass(frozen=True)
class Sample:
    """One completion on its way to its group.

    Attributes:
        group: identity of the group.
        member: identity within the group; None where the framework gives none.
        size: how many belong to the group.
        prompt, reference, rubric: as in ``Group``; those of the first sample count.
        answer: the final answer.
        length: of the completion, in tokens.
        lasting: whether the identity belongs to this group alone. One made of the prompt does not: the same prompt may
            come again.
    """

    group: str
    member: str | None
    size: int
    prompt: tuple[Message, ...]
    answer: str
    length: int
    reference: str | None = None
    rubric: str | Rubric | None = None
    lasting: bool = True


@dataclass(frozen=True)
class Scored:
    """A reward, and the values of ``INFO_KEYS``; of a judge that judges all prompts by the same criteria also those of
    ``criterion_keys``."""

    reward: float
    info: dict[str, float]


def criterion_keys(settings: JudgeSettings) -> dict[str, str]:
    """Criterion → the key of a row's reward by it, of a judge that has criteria for the whole run."""
    rubric = settings.rubric if settings.by_criterion else None
    if rubric is None:
        return {}
    return {name: f"judge_criterion_{key}" for name, key in zip(rubric.names, rubric.keys, strict=True)}


def unjudged(settings: JudgeSettings) -> Scored:
    """What is told of a row that no judge is asked about."""
    unknown = ("judge_score", "judge_position_consistency")
    info = {key: math.nan if key in unknown else 0.0 for key in INFO_KEYS}
    return Scored(0.0, info | dict.fromkeys(criterion_keys(settings).values(), 0.0))


def prompt_bytes(prompt: Sequence[Message]) -> int:
    """About what a prompt takes in memory: its texts, and its images as they were given (decoded ones by their pixels)."""
    size = 0
    for message in prompt:
        size += len(message.text)
        for part in message.images:
            image = getattr(part.image, "data", part.image)
            if isinstance(image, bytes | str):
                size += len(image)
            elif hasattr(image, "getbands"):
                size += image.width * image.height * len(image.getbands())
    return size


def group_of(key: str, samples: Sequence[Sample], names: Sequence[str] | None = None) -> Group:
    """The group that samples form, in their order."""
    head, answers = samples[0], tuple(sample.answer for sample in samples)
    return Group(head.prompt, answers, key, head.reference, head.rubric, None if names is None else tuple(names))


class Scorer:
    """Has groups judged and turns what the judge found into rewards.

    Args:
        queue: judges.
        shape: how scores become rewards.

    Attributes:
        stats: of everything judged.
    """

    def __init__(self, queue: JudgingQueue, shape: RewardShape) -> None:
        self.stats = JudgeStats()
        self._unreported = JudgeStats()
        self._next_report = -math.inf
        self._queue, self._log = queue, queue.log
        self._shape = shape

    async def score(
        self,
        groups: Sequence[Group],
        lengths: Sequence[Sequence[int]],
        partial: Sequence[bool],
        early: Sequence[EarlyComparisons | None] | None = None,
    ) -> list[list[Scored]]:
        """A reward per candidate of each group.

        Args:
            groups: judged in one batch.
            lengths: per group, of its candidates.
            partial: per group, whether it is not whole.
            early: as in ``Judge.judge``.

        Raises:
            MRJudgeError: if the judge raised.
        """
        judge, judgements = await self._queue.judge_groups(groups, early)
        scored = [self._scored(*of_group, judge) for of_group in zip(judgements, lengths, partial, strict=True)]
        self._log.judged(judge, judgements, [[one.reward for one in group] for group in scored], lengths)
        return scored

    def _scored(self, judgement: Judgement, lengths_G: Sequence[int], partial: bool, judge: Judge) -> list[Scored]:
        rewards = reward_group(judgement, self._shape, "group_mean", lengths_G, judge.rating.neutral or 0.0)
        found = {one.criterion.name: component(one, judgement.forfeits, as_mean=True) for one in judgement.criteria}
        by_criterion = {key: found.get(name) for name, key in criterion_keys(judge.settings).items()}
        stats = JudgeStats.of([judgement], [rewards.rewards_G], [lengths_G])
        self.stats += stats
        agreeing, mirrored = position_consistency(judgement.quick_reads or judgement.played)
        self._report(stats)
        scored = []
        for index, (reward, score) in enumerate(zip(rewards.rewards_G, judgement.scores_G, strict=True)):
            assert reward is not None
            values = (
                math.nan if score is None else score,
                judgement.games_G[index],
                agreeing / mirrored if mirrored else math.nan,
                stats.failed / max(1, stats.comparisons),
                float(index in rewards.abstained),
                float(partial),
                float(index in judgement.sanitized),
                float(index in judgement.cut),
                judgement.seconds,
            )
            # A criterion that was left out of a group is worth the same to all of it.
            parts = {key: (of[index] or 0.0) if of is not None else 0.0 for key, of in by_criterion.items()}
            scored.append(Scored(reward, dict(zip(INFO_KEYS, values, strict=True)) | parts))
        return scored

    def _report(self, stats: JudgeStats) -> None:
        """Log what was judged since the last report, at most every ``REPORT_S`` seconds."""
        self._unreported += stats
        if time.monotonic() < self._next_report:
            return
        recent, self._unreported = self._unreported, JudgeStats()
        self._next_report = time.monotonic() + REPORT_S
        rates = recent.metrics()
        why = f" ({recent.failures}; {recent.advice})" if recent.failures else ""
        logger.log(
            logging.WARNING if recent.failed else logging.INFO,
            "judged %d groups: %d of %d judgements failed%s; %d of %d completions without a score; position consistency "
            "%.2f, ties %.2f, %d groups without spread, %d calls, %d tokens",
            recent.groups, recent.failed, recent.comparisons, why, recent.abstained, recent.candidates,
            rates["position_consistency"], rates["tie_rate"], recent.zero_spread_groups, recent.calls, rates["tokens"],
        )  # fmt: skip
