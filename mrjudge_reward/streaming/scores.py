"""What goes into a group that arrives and what comes out: samples, and their rewards from what the judge found."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mrjudge_reward.completions import plain
from mrjudge_reward.config import JudgeSettings
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.early import EarlyComparisons
from mrjudge_reward.messages import ImagePart, Message
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.scoring.criteria import component
from mrjudge_reward.scoring.rewards import RewardShape, reward_group
from mrjudge_reward.scoring.stats import JudgeStats, asked_of
from mrjudge_reward.scoring.tally import position_consistency
from mrjudge_reward.types import Group, Judgement, NoVerdict

from .queue import JudgingQueue

logger = logging.getLogger(__name__)

INFO_KEYS = (
    "judge_reward",
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
"""What is told of every row, always all of it, each a float: the judge's reward (always a number; the mean of its group
where nothing is known), its score (NaN where nothing is known), games it took part in, share of mirrored comparisons of its
group that agree (NaN where none was mirrored), share of its group's comparisons that failed, whether (1 or 0) its score is
unknown, whether its group was not whole, whether the answer held markers that had to be made harmless, whether the judge was
not shown all of it or of what it answers, seconds of judging."""


@dataclass(frozen=True)
class Sample:
    """One completion on its way to its group.

    Attributes:
        group: identity of the group.
        member: identity within the group; None where the framework gives none.
        size: how many belong to the group.
        prompt, reference, rubric: as in ``Group``; those of the first sample count.
        answer: what of the completion is judged, with marks (see ``completions``).
        length: what the policy wrote of it, in tokens.
        lasting: whether the identity belongs to this group alone. One made of the prompt does not: the same prompt may
            come again.
        images: what the answer's marks of images stand for.
        validation: whether it is of a validation, which is counted apart.
        anchors: texts, as in ``Group.of``; samples of a group that bring different ones leave its level unknown.
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
    images: tuple[tuple[str, ImagePart], ...] = ()
    validation: bool = False
    anchors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Scored:
    """A reward, and the values of ``INFO_KEYS``; of a judge that judges all prompts by the same criteria also those of
    ``criterion_keys``."""

    reward: float
    info: dict[str, float]


def criterion_keys(settings: JudgeSettings) -> dict[str, str]:
    """Criterion → the key of a row's reward by it, of a judge that has criteria for the whole run."""
    rubric = settings.rubric
    if rubric is None or settings.criteria == "implicit":
        return {}
    return {name: f"judge_criterion_{key}" for name, key in zip(rubric.names, rubric.keys, strict=True)}


def unjudged(settings: JudgeSettings) -> Scored:
    """What is told of a row that no judge is asked about."""
    unknown = ("judge_score", "judge_position_consistency")
    info = {key: math.nan if key in unknown else 0.0 for key in INFO_KEYS}
    return Scored(0.0, info | dict.fromkeys(criterion_keys(settings).values(), 0.0))


def prompt_bytes(prompt: Sequence[Message]) -> int:
    """About what a prompt takes in memory: its texts, and its images as they were given (decoded ones by their pixels)."""
    return sum(len(message.text) + sum(map(image_bytes, message.images)) for message in prompt)


def image_bytes(part: ImagePart) -> int:
    """About what an image takes in memory, as it was given."""
    if (taken := getattr(part.image, "nbytes", None)) is not None:  # an array, a tensor
        return int(taken)
    image = getattr(part.image, "data", part.image)
    if isinstance(image, bytes | str):
        return len(image)
    return image.width * image.height * len(image.getbands()) if hasattr(image, "getbands") else 0


def group_of(key: str, samples: Sequence[Sample], names: Sequence[str] | None = None) -> Group:
    """The group that samples form, in their order."""
    head, answers = samples[0], tuple(sample.answer for sample in samples)
    images = {number: part for sample in reversed(samples) for number, part in sample.images}
    named = None if names is None else tuple(names)
    anchors = None if head.anchors is None else tuple(plain(text).text for text in head.anchors)
    if any(sample.anchors != head.anchors for sample in samples):
        logger.warning("group %s: its samples bring different anchors, so that its level is unknown", key)
        anchors = ()
    return Group(head.prompt, answers, key, head.reference, head.rubric, named, tuple(images.items()), anchors)


class Scorer:
    """Has groups judged and turns what the judge found into rewards.

    Args:
        queue: judges.
        shape: how scores become rewards; None for what the judge's settings say.
    """

    def __init__(self, queue: JudgingQueue, shape: RewardShape | None) -> None:
        self._queue, self._log = queue, queue.log
        self._shape = shape

    @property
    def stats(self) -> JudgeStats:
        """See ``StreamMonitor.stats``."""
        return self._log.stats

    async def score(
        self,
        groups: Sequence[Group],
        lengths: Sequence[Sequence[int]],
        partial: Sequence[bool],
        validation: Sequence[bool],
        early: Sequence[EarlyComparisons | None] | None = None,
    ) -> list[list[Scored]]:
        """A reward per candidate of each group.

        Args:
            groups: judged in one batch.
            lengths: per group, of its candidates.
            partial: per group, whether it is not whole.
            validation: per group, whether it is of a validation.
            early: as in ``Judge.judge``.

        Raises:
            MRJudgeError: if the judge raised.
        """
        judge, judgements = await self._queue.judge_groups(groups, early)
        scored = [self._scored(*of_group, judge) for of_group in zip(judgements, lengths, partial, strict=True)]
        rewards = [[one.reward for one in group] for group in scored]
        self._log.judged(judge, judgements, rewards, lengths, validation)
        return scored

    def _scored(self, judgement: Judgement, lengths_G: Sequence[int], partial: bool, judge: Judge) -> list[Scored]:
        self._shape = self._shape or judge.settings.reward_shape
        rewards = reward_group(judgement, self._shape, "group_mean", lengths_G, judge.rating.neutral or 0.0)
        found = {one.criterion.name: component(one, judgement.forfeits, as_mean=True) for one in judgement.criteria}
        by_criterion = {key: found.get(name) for name, key in criterion_keys(judge.settings).items()}
        failed = sum(isinstance(item.verdict.outcome, NoVerdict) for item in judgement.played)
        agreeing, mirrored = position_consistency(asked_of(judgement))
        scored = []
        for index, (reward, score) in enumerate(zip(rewards.rewards_G, judgement.scores_G, strict=True)):
            assert reward is not None
            values = (
                reward,
                math.nan if score is None else score,
                judgement.games_G[index],
                agreeing / mirrored if mirrored else math.nan,
                failed / max(1, len(judgement.played)),
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
