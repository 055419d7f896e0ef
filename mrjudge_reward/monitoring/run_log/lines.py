"""What a line of a run's log holds: sums over rewards, and groups as far as a reader can take them in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrjudge_reward.completions import readable
from mrjudge_reward.judging.anchors import as_players
from mrjudge_reward.monitoring.explain import criterion_record, verdict_record
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.scoring.ratings import bradley_terry_fit
from mrjudge_reward.scoring.tally import count_games
from mrjudge_reward.types import JudgedComparison, Judgement

MAX_CHARS = 4000
"""Longest text that is logged; of a longer one the middle is cut."""

MAX_CANDIDATES = 16
"""Candidates of a group that are logged, the first ones."""

MAX_VERDICTS = 64
"""Verdicts of a group that are logged, the first ones."""

MAX_FITTED = 128
"""Largest group to which Bradley-Terry strengths are fitted for the log."""


@dataclass(frozen=True)
class RewardSums:
    """Sums over the rewards of a batch, from which means over several ranks can be taken.

    Attributes:
        known, total, squares: rewards that are not None; their sum, and that of their squares.
        groups, spread: groups with two known rewards or more; sum of their standard deviations.
        lengths, length: how many lengths, and their sum.
    """

    known: int = 0
    total: float = 0.0
    squares: float = 0.0
    groups: int = 0
    spread: float = 0.0
    lengths: int = 0
    length: float = 0.0

    @classmethod
    def of(cls, rewards: Sequence[Sequence[float | None]], lengths: Sequence[Sequence[int]]) -> RewardSums:
        """Sum up a batch: per group, a reward and a length per candidate."""
        known = [[value for value in rewards_G if value is not None] for rewards_G in rewards]
        several = [values for values in known if len(values) > 1]
        flat = [value for values in known for value in values]
        sizes = [size for lengths_G in lengths for size in lengths_G]
        return cls(
            len(flat), math.fsum(flat), math.fsum(value * value for value in flat), len(several),
            math.fsum(float(np.std(values)) for values in several), len(sizes), float(sum(sizes)),
        )  # fmt: skip

    def __add__(self, other: RewardSums) -> RewardSums:
        return RewardSums(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """``reward``, its standard deviation over all (``reward_std``) and inside groups (``spread``), ``length``."""
        mean = self.total / self.known if self.known else math.nan
        variance = self.squares / self.known - mean * mean if self.known else math.nan
        return {
            "reward": mean,
            "reward_std": math.sqrt(max(0.0, variance)) if self.known else math.nan,
            "spread": self.spread / self.groups if self.groups else math.nan,
            "length": self.length / self.lengths if self.lengths else math.nan,
        }


@dataclass(frozen=True)
class LoggedCandidate:
    """A candidate as it is logged.

    Attributes:
        text: bounded; ``chars`` is how long it was.
        length: in the adapter's unit, tokens where these are known.
        score, reward: None where unknown.
        games: it took part in.
        strength, error: Bradley-Terry log-odds from the group's games, and the standard error; None without a game, and in
            groups above ``MAX_FITTED``.
        marks: of ``"sanitized"``, ``"cut"`` and ``"forfeit"``, those that hold.
    """

    text: str
    chars: int
    length: int
    score: float | None
    reward: float | None
    games: float
    strength: float | None
    error: float | None
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoggedGroup:
    """A group as it is logged.

    Attributes:
        key, prompt, reference, rubric: of the group, texts bounded.
        size: how many candidates there were; at most ``MAX_CANDIDATES`` of them are in ``candidates``.
        wins, games: matrices over the logged candidates, row's wins over column.
        verdicts: as ``explain.verdict_record`` gives them, at most ``MAX_VERDICTS`` of ``judged``.
        criteria: as ``explain.criterion_record`` gives them, with the scores of the logged candidates. Games by different
            criteria do not add up, so of such a group there are no wins, games and strengths.
        anchors: texts, bounded, and scores of the group's anchors, the first ones. Strengths are fitted with them.
        level: what the anchors were rated with.
    """

    key: str
    prompt: str
    size: int
    candidates: tuple[LoggedCandidate, ...]
    wins: tuple[tuple[float, ...], ...]
    games: tuple[tuple[float, ...], ...]
    verdicts: tuple[Mapping[str, Any], ...]
    judged: int
    reference: str | None = None
    rubric: str | None = None
    criteria: tuple[Mapping[str, Any], ...] = ()
    anchors: tuple[Mapping[str, Any], ...] = ()
    level: float | None = None

    @classmethod
    def of(cls, judgement: Judgement, rewards_G: Sequence[float | None], lengths_G: Sequence[int]) -> LoggedGroup:
        """Keep of a judgement what a reader can take in."""
        group, size = judgement.group, len(judgement.group.candidates)
        tally = count_games(size + len(judgement.anchors_A), () if judgement.criteria else _all_numbered(judgement))
        fitted = size <= MAX_FITTED
        strengths_G, errors_G = bradley_terry_fit(tally) if fitted else (tally.games_G, tally.games_G)
        met = (tally.games_G > 0) & fitted
        kept = min(size, MAX_CANDIDATES)
        candidates = tuple(
            LoggedCandidate(
                text=bounded(text),
                chars=len(text),
                length=int(lengths_G[i]),
                score=judgement.scores_G[i],
                reward=rewards_G[i],
                games=round(judgement.games_G[i], 6),
                strength=round(float(strengths_G[i]), 6) if met[i] else None,
                error=round(float(errors_G[i]), 6) if met[i] else None,
                marks=tuple(
                    mark
                    for mark, of in (
                        ("sanitized", judgement.sanitized),
                        ("cut", judgement.cut),
                        ("forfeit", judgement.forfeits),
                    )
                    if i in of
                ),
            )
            for i, text in enumerate(map(readable, group.candidates[:kept]))
        )
        return cls(
            key=bounded(group.key),
            prompt=bounded(conversation_text(group.prompt)),
            size=size,
            candidates=candidates,
            wins=_rows(tally.wins_GG[:kept, :kept]),
            games=_rows(tally.games_GG[:kept, :kept]),
            verdicts=tuple(_verdict(item) for item in judgement.played[:MAX_VERDICTS]),
            judged=len(judgement.played),
            reference=None if group.reference is None else bounded(group.reference),
            rubric=None if group.rubric is None else bounded(str(group.rubric)),
            criteria=tuple(
                {**record, "name": bounded(record["name"], 200), "scores": record["scores"][:kept]}
                for record in map(criterion_record, judgement.criteria)
            ),
            anchors=tuple(
                {"text": bounded(readable(text)), "score": score}
                for text, score in zip(group.anchors or (), judgement.anchors_A, strict=False)
            )[:MAX_CANDIDATES],
            level=judgement.level,
        )

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> LoggedGroup:
        """The group of a line."""
        candidates = tuple(
            LoggedCandidate(**{**candidate, "marks": tuple(candidate["marks"])}) for candidate in record["candidates"]
        )
        matrices = {name: tuple(tuple(map(float, row)) for row in record[name]) for name in ("wins", "games")}
        lists = {name: tuple(record.get(name, ())) for name in ("verdicts", "criteria", "anchors")}
        return cls(**{**record, **matrices, **lists, "candidates": candidates})


def bounded(text: str, most: int = MAX_CHARS) -> str:
    """A text of at most about ``most`` characters, its middle cut with a mark that says so."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]}\n(... {len(text) - most} characters cut here ...)\n{text[len(text) - (most - head) :]}"


def _all_numbered(judgement: Judgement) -> Iterator[JudgedComparison]:
    """What was played, anchors numbered behind the candidates."""
    for item in judgement.played:
        slots = as_players(judgement.group, item.comparison.slots)
        yield dataclasses.replace(item, comparison=dataclasses.replace(item.comparison, slots=slots))


def _verdict(item: JudgedComparison) -> dict[str, Any]:
    record = verdict_record(item)
    return {**record, "rationale": bounded(record["rationale"]), "detail": bounded(str(record.get("detail", "")), 400)}


def _rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(float(value), 6) for value in row) for row in matrix)
