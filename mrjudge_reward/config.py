"""One validated configuration, the same from YAML, keyword arguments and a framework's own config.

>>> JudgeConfig(model="Qwen/Qwen3-8B", shedule="ring")
Traceback (most recent call last):
    ...
mrjudge_reward.errors.ConfigError: unknown setting 'shedule'; did you mean 'schedule'?
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)

from mrjudge_reward.engines.engine_config import EngineConfig
from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judging.comparisons import VerdictMode
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.scoring.ratings import RATINGS
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.scoring.schedules import SCHEDULES
from mrjudge_reward.scoring.stats import FailureAlarm

from .cache import ReplyCache
from .errors import ConfigError
from .images import MAX_PIXELS
from .judge import Judge
from .types import Engine, Sampling

FormatName = Literal["auto", "choice", "ranking", "pair_scores", "score", "sentiment"]


def _one_of(names: Mapping[str, object], *more: str) -> AfterValidator:
    known = (*more, *names)

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"there is no {value!r}; choose {', '.join(known)}")
        return value

    return AfterValidator(check)


class JudgeConfig(EngineConfig):
    """Everything about a judge, as plain values: the settings of ``EngineConfig``, and these.

    With the default ``model="embedded"`` the untrained 135M model is read pointwise for sentiment, because that is what
    it does well; with ``adapter="embedded"`` it is trained to choose between two, and is read as it was trained. Any other
    model chooses among candidates, after the papers.

    Args:
        format: what the judge is asked; ``"auto"`` is ``sentiment`` for the untrained embedded model, else ``choice``.
        template: name or path of another wording.
        labels: labels of the slots (choice, ranking, pair_scores), or label → value (score).
        tie_label: a further option of ``choice``.
        schedule: who meets; ``"auto"`` is ``pointwise`` for formats that grade alone, else ``adaptive``.
        rating: how games become scores.
        budget, both_orders, max_slots: limits of the schedule.
        verdict: ``"auto"`` is ``read`` for the embedded model or where ``thinking_tokens`` is set, else ``sampled``.
        temperature, top_p, max_tokens: of what the judge writes. ``max_tokens`` 1024 is MR. Judge's cap.
        thinking_tokens: cap on the reasoning before a read.
        cascade_margin: log-odds below which a cascade lets the judge think.
        votes, retries, seed: see ``Judge``.
        max_candidate_tokens: bound of a candidate; None to share out the judge's context.
        max_pixels: most pixels of an image shown to the judge; larger ones are scaled down.
        min_label_mass: least probability that the labels of a read must have together.
        audit: mirror one comparison per group where the schedule mirrors none, so that position consistency is known.
        cache: file in which replies are kept.
        max_failed_fraction, failure_window: when a run stops because judgements fail.
        centre, length_weight: see ``RewardShape``.

    Raises:
        ConfigError: on construction, for an unknown setting (naming the nearest known one), or a value that is of the
            wrong type, out of range, or contradicts another.
    """

    format: FormatName = "auto"
    template: str | None = None
    labels: list[str] | dict[str, float] | None = None
    tie_label: str = ""
    schedule: Annotated[str, _one_of(SCHEDULES, "auto")] = "auto"
    rating: Annotated[str, _one_of(RATINGS)] = "log_odds"
    budget: PositiveInt | None = None
    both_orders: bool | None = None
    max_slots: Annotated[int, Field(ge=2)] = 8
    verdict: Literal["auto", "sampled", "read", "cascade"] = "auto"
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.6
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_tokens: PositiveInt = 1024
    thinking_tokens: NonNegativeInt = 0
    cascade_margin: NonNegativeFloat = 1.0
    votes: PositiveInt = 1
    retries: NonNegativeInt = 1
    seed: int = 0
    max_candidate_tokens: PositiveInt | None = None
    max_pixels: Annotated[int, Field(ge=28 * 28)] = MAX_PIXELS
    min_label_mass: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    audit: bool = True
    cache: str | None = None
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5
    failure_window: PositiveInt = 256
    centre: bool = False
    length_weight: NonNegativeFloat = 0.0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._judge(ScriptedEngine(lambda _: ""))  # says what contradicts before any model is loaded

    # -- reading ------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str], **overrides: Any) -> JudgeConfig:
        """Read a YAML file; keyword arguments override its values.

        Raises:
            ConfigError: if the file is missing, not YAML, or not a mapping of known settings.
        """
        return cls(**{**cls.load_values(path), **overrides})

    @staticmethod
    def load_values(path: str | os.PathLike[str]) -> dict[str, Any]:
        """The settings in a YAML file, as they stand there.

        Raises:
            ConfigError: if the file is missing, not YAML, or not a mapping.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(values, Mapping | None):
            raise ConfigError(f"{path} must hold settings (key: value); got {type(values).__name__}")
        return {str(key): value for key, value in (values or {}).items()}

    # -- what it resolves to --------------------------------------------------------------------------------------------

    @property
    def reward_shape(self) -> RewardShape:
        """How scores become rewards."""
        return RewardShape(self.centre, self.length_weight)

    @property
    def verdict_mode(self) -> VerdictMode:
        """How verdicts are taken, with ``auto`` resolved."""
        if self.verdict != "auto":
            return self.verdict
        reads = self.build_format().readable and (self.embedded or self.thinking_tokens > 0)
        return "read" if reads else "sampled"

    def build_format(self) -> Format:
        """The judge format."""
        untrained = self.embedded and not self.trained
        name = self.format if self.format != "auto" else ("sentiment" if untrained else "choice")
        wording: dict[str, Any] = (
            {"template": "glance", "labels": ("A", "B")} if self.trained and name == "choice" else {}
        )
        if self.template:
            wording["template"] = self.template
        if self.tie_label and name != "choice":
            raise ConfigError("tie_label belongs to format 'choice'")
        if name in ("score", "sentiment"):
            if isinstance(self.labels, list):
                raise ConfigError(f"labels of format {name} must map each label to its value; got a list")
            if self.labels is not None:
                wording["grades"] = tuple(self.labels.items())
            return dataclasses.replace(SENTIMENT if name == "sentiment" else Score(), **wording)
        if isinstance(self.labels, dict):
            raise ConfigError(f"labels of format {name} must be a list; got a mapping")
        if self.labels is not None:
            wording["labels"] = tuple(self.labels)
        if name == "choice":
            return Choice(**wording, tie_label=self.tie_label)
        return Ranking(**wording) if name == "ranking" else PairScores(**wording)

    def build(self, engine: Engine | None = None) -> Judge:
        """The judge.

        Args:
            engine: use this one instead of building it.
        """
        cache = ReplyCache(self.cache) if self.cache else None
        return self._judge(engine if engine is not None else self.build_engine(), cache)

    def _judge(self, engine: Engine, cache: ReplyCache | None = None) -> Judge:
        judge_format = self.build_format()
        alone = judge_format.max_slots == 1
        return Judge(
            engine,
            judge_format,
            schedule=self.schedule if self.schedule != "auto" else ("pointwise" if alone else "adaptive"),
            rating=self.rating,
            verdict=self.verdict_mode,
            sampling=Sampling(self.temperature, self.top_p, self.max_tokens),
            thinking_tokens=self.thinking_tokens,
            cascade_margin=self.cascade_margin,
            budget=self.budget,
            both_orders=self.both_orders,
            max_slots=self.max_slots,
            votes=self.votes,
            retries=self.retries,
            seed=self.seed,
            cache=cache,
            max_candidate_tokens=self.max_candidate_tokens,
            min_label_mass=self.min_label_mass,
            audit=self.audit,
            max_pixels=self.max_pixels,
            alarm=FailureAlarm(self.max_failed_fraction, self.failure_window),
        )
