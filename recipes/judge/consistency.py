"""A reader of a judge's reasoning, in reinforcement: does the reasoning support the verdict (R1-Reward, arXiv 2505.02835)?

    consistency:
      reader: {model: Qwen/Qwen2.5-7B-Instruct, base_url: http://localhost:8000/v1, verdict: generate}
      weight: 0.5

What is asked, and what it is worth, stands in ``mrjudge_reward.training.consistency``. Wrong verdicts are not read about,
because nothing depends on it. The reader may be on any engine; each rank asks about its own replies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.consistency import Question, question_on, read_answer, reasoning_of, supports
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import Group

_ASKED_HERE = (
    "format", "template", "labels", "grades", "tie_label", "schedule", "rating", "criteria", "rubric",
    "budget", "audit", "centre", "length_weight", "max_pixels",
)  # fmt: skip


class ConsistencyConfig(Settings):
    """Who reads, and what it bears on the reward.

    Args:
        reader: settings of ``JudgeConfig``: the model, its engine, how it writes. What it is asked is not among them.
        weight: what a consistent verdict gains and an inconsistent one loses, as a share of its accuracy.

    Raises:
        ConfigError: on construction.
    """

    where: ClassVar[str] = "consistency"

    reader: dict[str, Any]
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if strange := [name for name in self.reader if name in _ASKED_HERE]:
            raise ConfigError(
                f"consistency: what a reader is asked is given, of one text at a time; leave out {', '.join(strange)}"
            )
        if "model" not in self.reader:
            raise ConfigError("consistency: the reader needs a model")
        self.judge_config(Question())

    def judge_config(self, question: Question) -> JudgeConfig:
        """The reader as a judge that is asked this."""
        return JudgeConfig(**{**self.reader, "format": question})


@dataclass(frozen=True)
class Spent:
    """What reading took: calls of the reader, and tokens, both those it was sent and those it wrote."""

    calls: int = 0
    tokens: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.calls + other.calls, self.tokens + other.tokens)


class Reader:
    """Reads reasoning.

    Args:
        config: who reads.
        engine: use this one instead of building it.
    """

    def __init__(self, config: ConsistencyConfig, engine: Engine | None = None) -> None:
        self.config = config
        self._engine = engine
        self._judges: dict[Question, Judge] = {}

    def _judge(self, question: Question) -> Judge:
        """With the alarm of all of them, so that a reader that mostly fails stops the run."""
        config = self.config.judge_config(question)
        if self._engine is None:
            self._engine = config.build_engine()
        if question not in self._judges:
            alarm = next((judge.alarm for judge in self._judges.values()), None)
            judge = config.build(self._engine)
            judge.alarm = alarm or judge.alarm
            self._judges[question] = judge
        return self._judges[question]

    def __call__(self, replies: Sequence[tuple[Problem, str]]) -> tuple[list[float | None], Spent]:
        """``c`` of each reply with a verdict: 1, -1, or None where the reader said nothing; and what it took.

        A verdict without any reasoning is supported by none.

        Args:
            replies: problems that ``question_on`` has a question for, and what the judge wrote.

        Raises:
            JudgeUnreliableError: if the reader failed too often.
        """
        found: list[float | None] = [-1.0] * len(replies)
        waiting: dict[Question, list[tuple[int, Group]]] = {}
        for index, (problem, text) in enumerate(replies):
            question, reasoning = question_on(problem), reasoning_of(problem, text)
            if question is not None and reasoning:
                group = Group.of("", [reasoning], key=problem.item.group.key)
                waiting.setdefault(question, []).append((index, group))
        spent = Spent()
        for question, asked in waiting.items():
            judgements = self._judge(question).judge([group for _, group in asked])
            for (index, _), judgement in zip(asked, judgements, strict=True):
                problem, text = replies[index]
                slots = len(problem.slots)
                if judgement.played:  # an answer that says nothing is not shown to anybody
                    answer = read_answer([played.verdict.outcome for played in judgement.played], slots)
                    found[index] = supports(problem.format.parse(text, slots), answer, slots)
                usage = judgement.usage
                spent += Spent(judgement.calls, usage.prompt_tokens + usage.completion_tokens)
        return found, spent

    def close(self) -> None:
        """Release the engine, if one was built or given; safe to call twice."""
        if self._engine is not None:
            self._engine.close()
