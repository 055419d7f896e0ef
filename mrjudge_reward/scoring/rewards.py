"""From scores to rewards: what to do about candidates nothing is known about, centring, and length.

An unknown score never becomes a number of its own. It stays None (the framework leaves the row out), or takes the mean
of the known ones in its group, whose advantage is zero. A group of which nothing is known gets the same value for
everyone, so its advantages are zero as well. Scores relative to anchors keep their level: only ``centre`` takes it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mrjudge_reward.completions import own_words
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.types import GroupReward, Judgement

OnAbstain: TypeAlias = Literal["none", "group_mean"]


@dataclass(frozen=True)
class RewardShape:
    """How scores become rewards.

    Args:
        centre: subtract the group's mean of known scores.
        length_weight: strength of a zero-centred length term over the known candidates of a group:
            ``-length_weight * (length - mean) / max(mean, largest deviation)``, so within ±length_weight. It moves
            reward between short and long answers of a group and adds none (the idea of Nemotron's group-relative length
            term).
    """

    centre: bool = False
    length_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.length_weight < 0:
            raise ConfigError(f"length_weight must not be negative; got {self.length_weight}")


def check_anchors(setting: str, anchors: str | None, reference: str | None, shape: RewardShape) -> None:
    """Whether rewards relative to anchors make sense.

    Args:
        setting: what names the anchors, as it was given.
        anchors, reference: where a row keeps them; None for none.
        shape: of the rewards.

    Raises:
        ConfigError: if the level that anchors give is taken out again, or the judge would be told which response is one.
    """
    if anchors is not None and shape.centre:
        raise ConfigError(f"{setting} gives rewards a level, and centre takes it out again: leave out one of them")
    inside = anchors is not None and reference is not None and (f"{anchors}.", f"{reference}.")
    if inside and (inside[0].startswith(inside[1]) or inside[1].startswith(inside[0])):
        raise ConfigError(
            f"{setting} is also shown as the reference, so that the judge would know which response it is: leave out one "
            "of them"
        )


def reward_group(
    judgement: Judgement,
    shape: RewardShape = RewardShape(),
    on_abstain: OnAbstain = "none",
    lengths_G: Sequence[int] | None = None,
    neutral: float = 0.0,
) -> GroupReward:
    """Turn a judgement into rewards.

    Args:
        judgement: a judged group of size G.
        shape: centring and length.
        on_abstain: what stands for an unknown score.
        lengths_G: length of each candidate, in tokens if known; characters of the final answers by default.
        neutral: with ``group_mean``, the value of a group about which nothing is known; of one with anchors that is 0.

    Raises:
        InputError: if ``lengths_G`` is not G long.
    """
    scores_G = judgement.scores_G
    known = {index: score for index, score in enumerate(scores_G) if score is not None}
    abstained = tuple(index for index in range(len(scores_G)) if index not in known)
    lengths = (
        list(lengths_G) if lengths_G is not None else [len(own_words(text)) for text in judgement.group.candidates]
    )
    if len(lengths) != len(scores_G):
        raise InputError(f"{len(lengths)} lengths for {len(scores_G)} candidates")
    real = {index: score for index, score in known.items() if index not in judgement.forfeits}
    if real and shape.length_weight > 0:
        shaped = _with_length(real, lengths, shape.length_weight)
        # Being short must not make up for saying nothing: a degenerate answer stays at the bottom.
        bottom = min(shaped.values())
        known = {index: shaped.get(index, min(score, bottom)) for index, score in known.items()}
    nothing = neutral if judgement.group.anchors is None else 0.0
    mean = sum(known.values()) / len(known) if known else nothing
    offset = mean if shape.centre else 0.0
    unknown = None if on_abstain == "none" else mean - offset
    rewards_G = tuple(known[i] - offset if i in known else unknown for i in range(len(scores_G)))
    return GroupReward(rewards_G, judgement, abstained)


def _with_length(known: dict[int, float], lengths: Sequence[int], weight: float) -> dict[int, float]:
    mean = sum(lengths[i] for i in known) / len(known)
    if mean == 0:
        return known
    # Scaled rather than clipped where one answer is far longer than the rest: clipping would add reward.
    scale = max(mean, *(abs(lengths[i] - mean) for i in known))
    return {i: score - weight * (lengths[i] - mean) / scale for i, score in known.items()}
