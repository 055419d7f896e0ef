"""The format of a rubric: criteria in one call, a verdict on each in the reply.

``<answer>1: A</answer><answer>2: tie</answer>``: an answer a criterion, led by its number, which may stand right before it
as well (``1: <answer>A</answer>``). Where there is one criterion the answer stands alone, and can be read from label
probabilities. How the verdict on a criterion is written (a label, an order, a grade) is a format of ``formats``.

A request asks about all its criteria, and :class:`ByCriterion` reads the verdict on one of them. So the comparisons of
several criteria render to the same request, which is asked once (``judging.comparisons.ask``), and each criterion has its
own verdicts: one that the reply leaves out or names twice fails alone.

>>> from dataclasses import replace
>>> both = ByCriterion((Choice(template="criteria_choice"),) * 2)
>>> said = "<answer>1: A</answer><answer>2: C</answer><answer>3: A</answer>"
>>> both.parse(said, 2)
Preference(probabilities_K=(1.0, 0.0), soft=False)
>>> replace(both, asked=1).parse(said, 2)
NoVerdict(reason='off-menu label', detail="'C' is none of A, B", transient=False)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.messages import Message
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.types import Group, NoVerdict, Outcome, VerdictForm

from .formats import Choice, Ranking, Score, listed
from .headings import heading
from .normalising import closed_before
from .parsing import answer_and_rest, no_verdict, split_answers
from .rendering import build_chat, load_template
from .sanitizing import Sanitizer

OneVerdict: TypeAlias = Choice | Ranking | Score
"""How the verdict on one criterion is written."""

_NUMBERED = re.compile(
    r"(?:^|[\n;,])\s*(?:[-+•*]\s+)?[*_`]*(?:criterion\s+)?[*_`]*[#(\[]?(\d{1,3})"
    r"(?:[)\]][*_`]*\s*[:.=]?|[*_`]*\s*(?::|\.(?!\d)|=)|[*_`]*\s+[-–—]\s)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ByCriterion:
    """Verdicts on several criteria in one reply, of which one is read.

    Args:
        each: how the verdict on each criterion of the group's rubric is written; all of one wording and pair of markers.
        asked: the criterion whose verdict is read, from 0.
    """

    each: tuple[OneVerdict, ...]
    asked: int = 0

    def __post_init__(self) -> None:
        if len({(one.template, one.answer_open, one.answer_close, one.max_slots) for one in self.each}) != 1:
            raise ConfigError("criteria of one call need one wording, one pair of markers and as many labels")
        if not 0 <= self.asked < len(self.each):
            raise ConfigError(f"of {len(self.each)} criteria, number {self.asked} is asked")

    @property
    def own(self) -> OneVerdict:
        """How the verdict that is read is written."""
        return self.each[self.asked]

    @property
    def grades(self) -> tuple[tuple[str, float], ...]:
        """Of the verdict that is read; AttributeError where it is no grade."""
        grades: tuple[tuple[str, float], ...] = getattr(self.own, "grades")  # noqa: B009  labels have none
        return grades

    @property
    def template(self) -> str:
        """Name of the wording."""
        return self.own.template

    @property
    def min_slots(self) -> int:
        """The fewest candidates one comparison may show."""
        return self.own.min_slots

    @property
    def max_slots(self) -> int:
        """The most candidates one comparison may show."""
        return self.own.max_slots

    @property
    def readable(self) -> bool:
        """Whether the verdict can be read from label probabilities, which is so for one criterion a call."""
        return len(self.each) == 1 and self.own.readable

    @property
    def answer_open(self) -> str:
        """What stands right before a verdict."""
        return self.own.answer_open

    @property
    def answer_close(self) -> str:
        """What stands right after a verdict."""
        return self.own.answer_close

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows these candidates, in slot order, and all criteria: the same for each that is asked."""
        rubric = group.rubric
        told = (
            tuple(one.told for one in rubric.criteria)
            if isinstance(rubric, Rubric)
            else (rubric or "",) * len(self.each)
        )
        first, slots = self.each[0], len(candidates)
        written = [_examples(one, slots) for one in self.each]
        if len(self.each) == 1:
            form = listed([[example] for example in written[0]], self.answer_open, self.answer_close)
        else:  # the labels take turns, so that none is shown more often
            turns = [f"{number}: {said[(number - 1) % len(said)]}" for number, said in enumerate(written, 1)]
            form = listed([turns], self.answer_open, self.answer_close)
        return build_chat(
            load_template(self.template), group, candidates,
            ("",) if isinstance(first, Score) else first.labels[:slots], guard,
            grades=_scales(self.each),
            tie_label=first.tie_label if isinstance(first, Choice) else "",
            marker=self.answer_open, form=form, criteria=told,
        )  # fmt: skip

    def parse(self, text: str, slots: int) -> Outcome:
        """The verdict on the criterion that is asked about, if there is exactly one."""
        if len(self.each) == 1:
            return self.own.parse(text, slots)
        parts = split_answers(text, self.answer_open, self.answer_close)
        if isinstance(parts, NoVerdict):
            return parts
        verdicts: list[tuple[int, str]] = []
        gap = parts[0]
        for part in parts[1:]:
            said, rest = answer_and_rest(gap, part, self.answer_close)
            verdicts += (_numbered(said) or self._headed(gap, said)) if self.answer_close in part else []
            gap = rest
        mine = [said for number, said in verdicts if number == self.asked + 1]
        if len(mine) == 1:
            return self.own.parse(f"{self.answer_open}{mine[0]}{self.answer_close}", slots)
        of = f"criterion {self.asked + 1} of {len(self.each)}"
        if mine:
            return no_verdict("duplicate criterion", " | ".join(mine), f"{of} has {len(mine)} verdicts: {mine!r:.100}")
        named = ", ".join(str(number) for number, _ in verdicts) or "none by its number"
        return no_verdict("missing criterion", text, f"{of} has no verdict; the reply names {named}")

    def _headed(self, gap: str, said: str) -> list[tuple[int, str]]:
        """An answer that its number stands right before: ``1: <answer>A</answer>``."""
        number = heading(gap, tuple(str(number) for number in range(1, len(self.each) + 1)), "criterion")
        return [] if number is None else [(number + 1, said)]

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """Labels whose probabilities make the verdict; ConfigError where it cannot be read."""
        if len(self.each) > 1:
            raise ConfigError(
                "verdicts on several criteria cannot be read in one go; use criteria_per_call=1 or verdict='generate'"
            )
        return self.own.read_labels(slots)

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """The verdict in those labels' log-probabilities."""
        return self.own.from_logprobs(logprobs, slots)

    def form(self, slots: int) -> VerdictForm | None:
        """As many numbered answers as there are criteria. That each is there once, the form does not say."""
        forms = [one.form(slots) for one in self.each]
        if len(forms) == 1 or None in forms:
            return forms[0] if len(forms) == 1 else None
        answers = tuple(
            f"{number}: {answer}" for number, form in enumerate(forms, 1) if form is not None for answer in form.answers
        )
        return VerdictForm(self.answer_open, self.answer_close, answers, len(forms))


def _numbered(said: str) -> list[tuple[int, str]]:
    """The verdicts in one answer: mostly one, of small judges all of them."""
    marks = list(_NUMBERED.finditer(said))
    ends = [mark.start() for mark in marks[1:]] + [len(said)]
    return [
        (int(mark[1]), closed_before(mark[0].strip(), said[mark.end() : end].strip()))
        for mark, end in zip(marks, ends, strict=False)
    ]


def _scales(each: Sequence[OneVerdict]) -> str:
    """The grades allowed for each criterion, said once where they are the same for all."""
    scales = [", ".join(_examples(one, 1)) for one in each if isinstance(one, Score)]
    if len(set(scales)) < 2:
        return "".join(scales[:1])
    return "; ".join(f"{scale} for criterion {number}" for number, scale in enumerate(scales, 1))


def _examples(one: OneVerdict, slots: int) -> list[str]:
    """Verdicts as they may be written: every label, or an order either way."""
    if isinstance(one, Ranking):
        labels = [label.strip() for label in one.labels[:slots]]
        return [" > ".join(labels), " > ".join(labels[::-1])]
    return [label.strip() for label in one.read_labels(slots)]
