"""Grades of given answers by each criterion of their prompt's rubric, for ``write_rubrics`` and ``prune_rubrics``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.types import Group, Judgement, NoVerdict, Usage

from .synthesis_recipe import NOT_OF_REPLIES

Known = Sequence[float | None]
"""Grades of the answers to one prompt, 0 to 1; None where there is no verdict."""


def grading(judge: Mapping[str, Any]) -> JudgeConfig:
    """A judge that grades each answer by each criterion of its prompt's rubric.

    Raises:
        ConfigError: if its settings say otherwise.
    """
    for name in ("rubric", "rubric_dropout", "contrast"):
        if name in judge:
            raise ConfigError(f"judge: all criteria of each prompt's rubric are graded; remove {name}")
    if (criteria := judge.get("criteria", "absolute")) != "absolute":
        raise ConfigError(f"judge: answers are graded one by one, so criteria is absolute; got {criteria!r}")
    return JudgeConfig(**{**judge, "criteria": "absolute"})


def of_grades(config: JudgeConfig) -> dict[str, Any]:
    """The settings of a judge that decide its grades."""
    return config.model_dump(mode="json", exclude=NOT_OF_REPLIES | {"cache", "max_failed_fraction", "failure_window"})


def graded(judge: Judge, groups: Sequence[Group]) -> list[tuple[dict[str, Known], bool]]:
    """Per group: criterion → grades of its candidates, and whether an engine failed for the moment."""
    return [
        ({one.criterion.name: one.grades_G for one in judgement.criteria}, _unserved(judgement))
        for judgement in judge.judge(groups)
    ]


def _unserved(judgement: Judgement) -> bool:
    """Whether a verdict is missing because the judge was not served, rather than because it wrote none."""
    verdicts = (item.verdict for item in judgement.played)
    return any(
        isinstance(one.outcome, NoVerdict) and one.outcome.transient and one.usage == Usage() and not one.rationale
        for one in verdicts
    )
