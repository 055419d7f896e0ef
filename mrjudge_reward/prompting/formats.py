"""Judge formats: each renders a comparison for a judge and parses what the judge wrote.

A verdict is reached in one of two ways (design: sampled and read):

* *sampled*: the judge writes reasoning and a verdict; :func:`read_reply` parses it strictly. The reasoning is dropped
  (``reasoning``); the **last** labelled verdict counts and is validated, after one closed normalisation (``normalising``),
  against the labels that were offered. Anything else is :class:`~mrjudge_reward.types.NoVerdict`: no repair of short
  rankings, no stray letter, no falling back to an earlier mention. A judge that failed says nothing about the response.
* *read*: the answer is opened for the judge and the probabilities of the offered labels are taken from it, which gives
  a soft verdict that needs no parsing.

===========  =====  ==========================================  ======  =======================================
format       slots  what the judge writes                       read    source
===========  =====  ==========================================  ======  =======================================
Choice       2..K   ``<answer>B</answer>``                      yes     MR. Judge, arXiv 2505.13403
Ranking      2..K   ``<answer>B > A = C</answer>``              no      listwise extension of MR. Judge
PairScores   2..K   ``<answer>3</answer><answer>8</answer>``    no      Flex-Judge, arXiv 2505.18601, pair/batch
Score        1      ``<answer>4</answer>``                      yes     Flex-Judge, single
===========  =====  ==========================================  ======  =======================================

>>> Choice().parse("<think>A looks fine <answer>A</answer>. No.</think><answer>B</answer>", 2)
Preference(probabilities_K=(0.0, 1.0), soft=False)
>>> Choice().parse("<answer>A</answer> or rather <answer>C</answer>", 2)
NoVerdict(reason='off-menu label', detail="'C' is none of A, B", transient=False)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_uppercase
from typing import ClassVar, Protocol, TypeAlias

from mrjudge_reward.errors import ConfigError
from mrjudge_reward.messages import Message
from mrjudge_reward.types import (
    Grades,
    Group,
    NoVerdict,
    Outcome,
    Preference,
    RankOrder,
    Reply,
    Tie,
    Verdict,
    VerdictForm,
)

from .headings import owners
from .normalising import grade_meant, label_meant, peeled
from .parsing import answers_and_gaps, answers_in, check_labels, check_markers, no_verdict, softmax
from .rendering import ALONE, build_chat, load_template
from .sanitizing import Sanitizer


class Format(Protocol):
    """What the judge needs from a format. Each is a frozen dataclass, so it is part of a cache key as it stands."""

    @property
    def min_slots(self) -> int:
        """The fewest candidates one comparison may show."""
        ...

    @property
    def readable(self) -> bool:
        """Whether verdicts can be read from label probabilities."""
        ...

    @property
    def max_slots(self) -> int:
        """The most candidates one comparison may show."""
        ...

    @property
    def answer_open(self) -> str:
        """What stands right before the verdict, opened for the judge when it is read."""
        ...

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows these candidates, in slot order."""
        ...

    def parse(self, text: str, slots: int) -> Outcome:
        """The verdict in what the judge wrote about this many slots."""
        ...

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """Labels whose probabilities make the verdict; ConfigError where the format cannot be read."""
        ...

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """The verdict in those labels' log-probabilities."""
        ...

    def form(self, slots: int) -> VerdictForm | None:
        """All verdicts that ``parse`` reads of this many slots; None where there are too many to list."""
        ...


def read_reply(format: Format, reply: Reply, slots: int) -> Verdict:
    """Turn what the judge wrote into a verdict.

    Args:
        format: the format that was rendered.
        reply: the engine's reply; one that ran into its token cap has no verdict, whatever it mentions.
        slots: how many candidates were shown.
    """
    text = reply.text
    if reply.finish == "length":
        return Verdict(NoVerdict("truncated", f"after {reply.usage.completion_tokens} tokens"), text, reply.usage)
    return Verdict(format.parse(text, slots), text, reply.usage)


def _check_wording(name: str) -> None:
    """Raise ConfigError unless the wording is there and shows the question, or is meant not to."""
    template = load_template(name)
    if not template.alone and "{question}" not in template.user:
        raise ConfigError(
            f"template {name!r} lacks {{question}} in section user: the judge would not see what is answered. If it is "
            f"not to, say so in a line above the sections: {ALONE}"
        )


def _stripped(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(label.strip() for label in labels)


def listed(alternatives: Sequence[Sequence[str]], opening: str, closing: str) -> str:
    """Verdicts as a judge is to write them: ``<answer> A </answer> or <answer> B </answer>``; of very many only the ends.

    With spaces, because that is how instruct models write them: so shown, nearly all of the probability is on labels.
    """
    written = [
        "".join(f"{opening.rstrip()} {answer.strip()} {closing}".rstrip() for answer in answers)
        for answers in alternatives
    ]
    if len(written) > _MOST_LISTED:
        written = [*written[:2], "...", written[-1]]
    return " or ".join(filter(None, (", ".join(written[:-1]), written[-1])))


_MOST_LISTED = 20


@dataclass(frozen=True)
class Choice:
    """Pick the best of K: one label after reasoning (MR. Judge).

    Args:
        template: name of a built-in template or path of a file.
        labels: label of each slot; their number is the most candidates a comparison can show.
        answer_open: opens the verdict.
        answer_close: closes it; empty for "end of line".
        tie_label: if set, a further option meaning that none is better.
    """

    template: str = "choice"
    labels: tuple[str, ...] = tuple(ascii_uppercase[:16])
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    tie_label: str = ""
    min_slots: ClassVar[int] = 2
    readable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_labels(self.labels, 2)
        check_labels((*self.labels, *self._tie), 2)
        check_markers(self.answer_open, self.answer_close, (*self.labels, *self._tie))
        _check_wording(self.template)

    @property
    def _tie(self) -> tuple[str, ...]:
        return (self.tie_label,) if self.tie_label else ()

    @property
    def max_slots(self) -> int:
        """The most candidates one comparison may show."""
        return len(self.labels)

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows these candidates, in slot order."""
        return build_chat(
            load_template(self.template), group, candidates, self.labels[: len(candidates)], guard,
            tie_label=self.tie_label, marker=self.answer_open,
            form=listed([[label] for label in self.read_labels(len(candidates))], self.answer_open, self.answer_close),
        )  # fmt: skip

    def parse(self, text: str, slots: int) -> Outcome:
        """The last label, if it was offered."""
        answers = answers_in(text, self.answer_open, self.answer_close)
        if isinstance(answers, NoVerdict):
            return answers
        offered = [label.strip() for label in self.labels[:slots]]
        chosen = label_meant(answers[-1], [*offered, *(tie.strip() for tie in self._tie)])
        if chosen is None:
            return _off_menu(answers[-1], offered)
        return Tie() if chosen == slots else Preference(tuple(float(slot == chosen) for slot in range(slots)))

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """The labels offered, and the tie label last where there is one."""
        return (*self.labels[:slots], *self._tie)

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """Probability of each slot; what falls on the tie label is shared out evenly."""
        probabilities = softmax(logprobs)
        if isinstance(probabilities, NoVerdict):
            return probabilities
        shared = sum(probabilities[slots:]) / slots
        return Preference(tuple(value + shared for value in probabilities[:slots]), soft=True)

    def form(self, slots: int) -> VerdictForm:
        """One label, or the tie label."""
        return VerdictForm(self.answer_open, self.answer_close, _stripped(self.read_labels(slots)))


@dataclass(frozen=True)
class Ranking:
    """Order all K, best first; ``=`` joins equals, ``>>`` and ``>>>`` are stronger steps (Arena-Hard, arXiv 2406.11939).

    >>> Ranking(answer_open="[[", answer_close="]]").parse("My final verdict is: [[A>>B]]", 2)
    RankOrder(tiers=((0,), (1,)), strengths=(2,))
    """

    template: str = "ranking"
    labels: tuple[str, ...] = tuple(ascii_uppercase[:16])
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    min_slots: ClassVar[int] = 2
    readable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_labels(self.labels, 2)
        if any(mark in label for label in self.labels for mark in ">="):
            raise ConfigError(f"ranking labels must not contain > or =; got {self.labels!r:.200}")
        check_markers(self.answer_open, self.answer_close, self.labels)
        _check_wording(self.template)

    @property
    def max_slots(self) -> int:
        """The most candidates one comparison may show."""
        return len(self.labels)

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows these candidates, in slot order."""
        labels = self.labels[: len(candidates)]
        orders = [[" > ".join(_stripped(order))] for order in (labels, labels[::-1])]  # each label first or last once
        return build_chat(
            load_template(self.template), group, candidates, labels, guard,
            marker=self.answer_open, form=listed(orders, self.answer_open, self.answer_close),
        )  # fmt: skip

    def parse(self, text: str, slots: int) -> Outcome:
        """The last ranking, if it names every offered label exactly once."""
        answers = answers_in(text, self.answer_open, self.answer_close)
        if isinstance(answers, NoVerdict):
            return answers
        offered = [label.strip() for label in self.labels[:slots]]
        if len(answers[-1]) > 100 * slots + sum(map(len, offered)):
            return _off_menu(answers[-1], offered)
        # What stands around the whole is dropped only where it cannot belong to a label: "(A) > (B)".
        outcomes = [_order(said, offered) for said in peeled(answers[-1])]
        return next((outcome for outcome in outcomes if not isinstance(outcome, NoVerdict)), outcomes[0])

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """Not readable."""
        raise ConfigError(
            "a ranking cannot be read from label probabilities; use verdict='generate' or format 'choice'"
        )

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """Not readable."""
        raise ConfigError("a ranking cannot be read from label probabilities")

    def form(self, slots: int) -> VerdictForm | None:
        """Every order, with and without equals: 541 of five, and 4,683 of six."""
        if slots > 5:
            return None
        orders = tuple(
            " > ".join(" = ".join(tier) for tier in order) for order in _orders(_stripped(self.labels[:slots]))
        )
        return VerdictForm(self.answer_open, self.answer_close, orders)


def _orders(labels: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """All orders of labels, best tier first."""
    if not labels:
        yield ()
    for size in range(1, len(labels) + 1):
        for tier in combinations(labels, size):
            for rest in _orders(tuple(label for label in labels if label not in tier)):
                yield (tier, *rest)


def _off_menu(said: str, offered: Sequence[str]) -> NoVerdict:
    return no_verdict("off-menu label", said, f"{said!r:.60} is none of {', '.join(offered)}")


_STEP = re.compile(r"(>+|=)")


def _order(said: str, offered: Sequence[str]) -> Outcome:
    """The order in a text of labels and signs; commas alone stand for ``>``."""
    commas = said.count(",") == len(offered) - 1 and not _STEP.search(said)
    pieces = _STEP.split(said.replace(",", ">") if commas else said)
    labels, steps = pieces[::2], pieces[1::2]
    if len(labels) > len(offered):
        return no_verdict("wrong count", said, f"{len(labels)} labels, {len(offered)} were offered")
    named = [label_meant(label, offered) for label in labels]
    if None in named or any(len(step) > 3 for step in steps):
        strange = next((label.strip() for label, slot in zip(labels, named, strict=True) if slot is None), said)
        return no_verdict("off-menu label", said, f"{strange!r:.60} is none of {', '.join(offered)}")
    slots = [slot for slot in named if slot is not None]
    if len(slots) != len(offered) or len(set(slots)) != len(slots):
        return no_verdict(
            "wrong count", said, f"{len(slots)} labels, {len(set(slots))} different, {len(offered)} were offered"
        )
    tiers, strengths = [[slots[0]]], []
    for step, slot in zip(steps, slots[1:], strict=True):
        if step == "=":
            tiers[-1].append(slot)
        else:
            tiers.append([slot])
            strengths.append(len(step))
    if not strengths:
        return Tie()
    graded = any(strength > 1 for strength in strengths)
    return RankOrder(tuple(map(tuple, tiers)), tuple(strengths) if graded else ())


_Grades: TypeAlias = tuple[tuple[str, float], ...]


def grade_scale(low: int, high: int) -> _Grades:
    """Integer grades ``low..high``, each written as its numeral."""
    return tuple((str(value), float(value)) for value in range(low, high + 1))


_ONE_TO_FIVE, _ONE_TO_TEN = grade_scale(1, 5), grade_scale(1, 10)


def _check_grades(grades: _Grades, opening: str, closing: str) -> None:
    labels = tuple(label for label, _ in grades)
    check_labels(labels, 2)
    check_markers(opening, closing, labels)
    if not all(math.isfinite(value) for _, value in grades):
        raise ConfigError(f"grades must have finite values; got {grades!r:.200}")
    if len({value for _, value in grades}) < 2:
        raise ConfigError(f"grades that are all worth the same tell nothing apart; got {grades!r:.200}")


@dataclass(frozen=True)
class PairScores:
    """Grade each of K responses, one tag each, in order or headed by its label (Flex-Judge pair and batch)."""

    template: str = "pair_scores"
    labels: tuple[str, ...] = tuple(ascii_uppercase[:16])
    grades: _Grades = _ONE_TO_TEN
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    min_slots: ClassVar[int] = 2
    readable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_labels(self.labels, 2)
        _check_grades(self.grades, self.answer_open, self.answer_close)
        _check_wording(self.template)

    @property
    def max_slots(self) -> int:
        """The most candidates one comparison may show."""
        return len(self.labels)

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows these candidates, in slot order."""
        steps, slots = len(self.grades) - 1, len(candidates)
        spread = [self.grades[round(slot * steps / max(1, slots - 1))][0] for slot in range(slots)]
        return build_chat(
            load_template(self.template), group, candidates, self.labels[:slots], guard,
            grades=", ".join(_names(self.grades)), marker=self.answer_open,
            form=listed([spread, spread[::-1]], self.answer_open, self.answer_close),
        )  # fmt: skip

    def parse(self, text: str, slots: int) -> Outcome:
        """One allowed grade per slot, no more and no fewer; or the label of the best one, which is a verdict as well.

        Grades are in the order of the slots, unless each is headed by its label (``headings``).
        """
        found = answers_and_gaps(text, self.answer_open, self.answer_close, every=True)
        if isinstance(found, NoVerdict):
            return found
        (answers, gaps), offered = found, _stripped(self.labels[:slots])
        if len(answers) == 1 and isinstance(_graded(answers, self.grades), NoVerdict):
            best = label_meant(answers[0], offered)
            if best is not None:
                return Preference(tuple(float(slot == best) for slot in range(slots)))
        if len(answers) != slots:
            return no_verdict("wrong count", " | ".join(answers), f"{len(answers)} scores for {slots} responses")
        whose = owners(gaps, offered)
        if isinstance(whose, str):
            return no_verdict("unclear order", text, f"{slots} scores for {', '.join(offered)}; {whose}")
        if whose is not None:
            answers = [answers[whose.index(slot)] for slot in range(slots)]
        values = _graded(answers, self.grades)
        return values if isinstance(values, NoVerdict) else Grades.sampled(values)

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """Not readable."""
        raise ConfigError("scores of several responses cannot be read in one go; use verdict='generate' or 'score'")

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """Not readable."""
        raise ConfigError("scores of several responses cannot be read in one go")

    def form(self, slots: int) -> VerdictForm:
        """A grade for each."""
        return VerdictForm(self.answer_open, self.answer_close, _names(self.grades), slots)


def _names(grades: _Grades) -> tuple[str, ...]:
    return _stripped([label for label, _ in grades])


def _graded(answers: Sequence[str], grades: _Grades) -> list[float] | NoVerdict:
    labels = [label.strip() for label, _ in grades]
    meant = [grade_meant(answer, labels) for answer in answers]
    strange = [answer for answer, grade in zip(answers, meant, strict=True) if grade is None]
    return _off_menu(strange[0], labels) if strange else [grades[grade][1] for grade in meant if grade is not None]


@dataclass(frozen=True)
class Score:
    """Grade one response on its own (Flex-Judge single; also the embedded default's sentiment read).

    Args:
        grades: (label, value) pairs. When read, labels must differ in their first token for the judge's tokenizer,
            which "1" and "10" may not.
    """

    template: str = "score"
    grades: _Grades = _ONE_TO_FIVE
    answer_open: str = "<answer>"
    answer_close: str = "</answer>"
    min_slots: ClassVar[int] = 1
    readable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_grades(self.grades, self.answer_open, self.answer_close)
        _check_wording(self.template)

    @property
    def max_slots(self) -> int:
        """A score looks at one response at a time."""
        return 1

    def render(self, group: Group, candidates: tuple[str, ...], guard: Sanitizer) -> tuple[Message, ...]:
        """The chat that shows this candidate."""
        return build_chat(
            load_template(self.template), group, candidates, ("",), guard,
            grades=", ".join(_names(self.grades)), marker=self.answer_open,
            form=listed([[label] for label, _ in self.grades], self.answer_open, self.answer_close),
        )  # fmt: skip

    def parse(self, text: str, slots: int) -> Outcome:
        """The last grade, if it is on the scale."""
        answers = answers_in(text, self.answer_open, self.answer_close)
        if isinstance(answers, NoVerdict):
            return answers
        values = _graded(answers[-1:], self.grades)
        return values if isinstance(values, NoVerdict) else Grades.sampled(values)

    def read_labels(self, slots: int) -> tuple[str, ...]:
        """The grades as they are written."""
        return tuple(label for label, _ in self.grades)

    def from_logprobs(self, logprobs: Sequence[float], slots: int) -> Outcome:
        """The distribution over grades and its mean."""
        probabilities = softmax(logprobs)
        if isinstance(probabilities, NoVerdict):
            return probabilities
        spread = tuple((value, p) for (_, value), p in zip(self.grades, probabilities, strict=True))
        return Grades((sum(value * p for value, p in spread),), (spread,))

    def form(self, slots: int) -> VerdictForm:
        """One grade."""
        return VerdictForm(self.answer_open, self.answer_close, _names(self.grades))


SENTIMENT = Score(
    template="sentiment",
    grades=((" negative", 0.0), (" positive", 1.0)),
    answer_open="Sentiment:",
    answer_close="",
)
"""What the untrained embedded model does well: read pointwise whether a text is positive."""
