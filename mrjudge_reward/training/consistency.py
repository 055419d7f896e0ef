"""Whether a judge's reasoning supports its verdict: what a reader is asked, and what the answer is worth (R1-Reward).

A reader, another model, sees the reasoning without the verdict and says which response it finds the best. It reads the
reasoning alone, so it cannot say who is right.

``reward = 0.9 accuracy (1 + weight c) + 0.1 format``, with ``c = 1`` where the reasoning finds that response the best which
the verdict names, and ``c = -1`` where it finds another, or none. R1-Reward (arXiv 2505.02835, section on the reward; its
``math_verifier_mllm.py``) has ``accuracy (1 + 0.5 c) + 0.5 format``. So consistency multiplies: a wrong verdict earns
nothing by it, and need not be read.

A reader that failed says nothing: ``c`` is then the mean of what was read of the other right replies to the same prompt, and
0 if nothing was. R1-Reward takes 0, which beside consistent replies would be a loss.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mrjudge_reward.prompting.formats import PairScores, Score
from mrjudge_reward.prompting.normalising import label_meant
from mrjudge_reward.prompting.parsing import answers_in, split_answers
from mrjudge_reward.reasoning import thoughts_in
from mrjudge_reward.scoring.tally import favoured
from mrjudge_reward.types import Grades, NoVerdict, Outcome

from .tasks import Problem

NONE = "none"
"""What a reader says of reasoning that finds no response the best."""


@dataclass(frozen=True)
class Question(Score):
    """Which label a text favours, or ``NONE``: a score whose grades are labels, and read like labels."""

    template: str = "favoured"

    def parse(self, text: str, slots: int) -> Outcome:
        """The last label, also as "Response A"."""
        answers = answers_in(text, self.answer_open, self.answer_close)
        if isinstance(answers, NoVerdict):
            return answers
        meant = label_meant(answers[-1], [label for label, _ in self.grades])
        return super().parse(text, slots) if meant is None else Grades.sampled([float(meant)])


def question_on(problem: Problem) -> Question | None:
    """What a reader of a reply's reasoning is asked: to give one text one of the labels, or ``NONE``.

    None for a problem that shows one response alone, of which no reasoning could favour another.
    """
    slots = len(problem.slots)
    labels = tuple(label.strip() for label in getattr(problem.format, "labels", ())[:slots])
    if slots < 2 or len(labels) < slots:
        return None
    return Question(grades=tuple((label, float(n)) for n, label in enumerate((*labels, NONE))))


def reasoning_of(problem: Problem, text: str) -> str:
    """What a judge wrote before its verdict, without the marks of reasoning; empty if it wrote none, or no verdict."""
    form = problem.format
    parts = split_answers(text, form.answer_open, getattr(form, "answer_close", ""))
    if isinstance(parts, NoVerdict):
        return ""
    verdicts = min(len(problem.slots), len(parts) - 1) if isinstance(form, PairScores) else 1
    said = [thoughts_in(text), form.answer_open.join(parts[:-verdicts])]
    return "\n\n".join(filter(None, map(str.strip, said)))


def read_answer(outcomes: Sequence[Outcome], labels: int) -> int | None:
    """The slot that a reader's answers favour, or ``labels`` for none of them; None if no answer can be read.

    Args:
        outcomes: its answers to ``question_on``, a vote each.
        labels: how many responses there are.
    """
    votes = [0.0] * (labels + 1)
    for outcome in outcomes:
        if isinstance(outcome, Grades):
            for number, share in outcome.grades_K[0]:
                votes[round(number)] += share
    top = [slot for slot, share in enumerate(votes) if share == max(votes)]
    return top[0] if len(top) == 1 else None


def supports(verdict: Outcome, answer: int | None, slots: int) -> float | None:
    """``c`` of a verdict: 1, -1, or None where the reader said nothing.

    Args:
        verdict: of the judge that is trained.
        answer: see ``read_answer``.
        slots: how many responses there are.
    """
    if answer is None:
        return None
    best = favoured(verdict)
    agrees = len(best) != 1 if answer == slots else answer in best
    return 1.0 if agrees else -1.0


def filled(read: Sequence[tuple[int, float | None]]) -> dict[int, float]:
    """Prompt → what ``c`` is taken for where a reader failed: the mean of what was read of this prompt's replies.

    Args:
        read: prompt and ``c`` of each reply that was to be read.
    """
    known: dict[int, list[float]] = defaultdict(list)
    for prompt, value in read:
        known[prompt] += [] if value is None else [value]
    return {prompt: fmean(values) if values else 0.0 for prompt, values in known.items()}
