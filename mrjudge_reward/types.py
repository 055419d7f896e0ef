"""The data that flows through a judgement; frozen dataclasses only, no behaviour beyond construction.

::

    Group → Comparison → Request → Reply | EngineFailure → Verdict → Tally → Judgement → GroupReward

Suffixes name shapes: ``_G`` one entry per candidate of a group, ``_K`` one per slot of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from typing import Any, Literal, TypeAlias

from .completions import Candidate, candidate_of, plain
from .errors import InputError
from .fields import Shown, numbered, shown_text, texts_of
from .messages import ImagePart, Message, Part, as_messages
from .rubrics.criteria import Criterion, Rubric
from .rubrics.reading import own_rubric


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt.

    A candidate may show images, calls of tools and their results, which stand as marks in its text (see ``completions``).
    So candidates stay texts: two are the same if they say the same and show the same files, bytes or pixels, as they were
    given.

    Attributes:
        prompt: chat messages the candidates answer.
        candidates: final answers or transcripts, G of them; a policy's own reasoning is removed before (see
            ``completions.judged``).
        key: identity given by the framework. Two groups with the same prompt text are still two groups.
        reference: one or several answers known to be good, as the judge is shown them; None for none.
        rubric: extra criteria: a text as the judge is shown it, or a ``Rubric``; None for none.
        names: identities of the candidates, given by the framework, G of them. With names, who meets whom is decided
            by these instead of by the texts, so that comparisons can begin before all texts are there.
        images: what the marks in the candidates stand for, by number.
        anchors: answers that are judged along with the candidates and are none: scores are then relative to theirs, so
            that 0 is as good as the anchors (see ``scoring.levels``). None for scores without a level; empty where a level
            is wanted and there is nothing to take it from, so that no score is known. One that the reference tells is left
            out, because the judge would know which response it is.
    """

    prompt: tuple[Message, ...]
    candidates: tuple[str, ...]
    key: str
    reference: str | None = None
    rubric: str | Rubric | None = None
    names: tuple[str, ...] | None = None
    images: tuple[tuple[str, ImagePart], ...] = ()
    anchors: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.anchors and self.reference is not None:
            told = {plain(text).text.strip() for text in (self.reference, *numbered(self.reference, "reference"))}
            object.__setattr__(self, "anchors", tuple(text for text in self.anchors if text.strip() not in told))

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[Mapping[str, Any] | Message],
        candidates: Sequence[str | Candidate | Sequence[Mapping[str, Any] | Part | Message]],
        key: str = "0",
        reference: Shown = None,
        rubric: Any = None,
        names: Sequence[str] | None = None,
        anchors: Shown = None,
    ) -> Group:
        """Build a group from plain Python values.

        Args:
            prompt: text or chat messages.
            candidates: texts, lists of text and image parts for those that show images, or transcripts as lists of
                messages.
            reference: text or a number, or a list of these: several references (see ``fields``).
            rubric: the same, several criteria; or a rubric of objects, as ``rubrics.reading.read_rubric`` reads it.
            key, names: see the class.
            anchors: text or a number, or a list of these, each an anchor; what says nothing, what is there already and
                what the reference tells is left out.

        Raises:
            InputError: if the prompt is not text or messages, a candidate neither text nor parts, the reference or an anchor
                neither text nor number, the rubric neither these nor criteria, or the names are not as many as the
                candidates, all different.
        """
        if isinstance(candidates, str):
            raise InputError("candidates must be a list of texts; got one text")
        made: list[Candidate] = []
        for index, given in enumerate(candidates):
            try:
                made.append(candidate_of(given))
            except InputError as error:
                raise InputError(f"candidate {index} {error}") from None
        images: dict[str, ImagePart] = {}
        for number, part in (image for one in made for image in one.images):
            images.setdefault(number, part)
        if names is not None and (len(names) != len(candidates) or len(set(names)) != len(names)):
            raise InputError(f"{len(candidates)} candidates need as many different names; got {list(names)!r:.200}")
        named = None if names is None else tuple(names)
        texts = tuple(one.text for one in made)
        shown = shown_text(reference, "reference"), own_rubric(rubric, f"rubric of group {key!r}")
        beside = None if anchors is None else tuple(plain(text).text for text in texts_of(anchors, "anchor"))
        return cls(as_messages(prompt, unshown=True), texts, key, *shown, named, tuple(images.items()), beside)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidates shown in one judge call.

    Attributes:
        slots: candidate indices in the order shown, K of them, all different. In a ``Judgement`` -1 is the group's first
            anchor, -2 its second.
        repeat: which vote this is, for comparisons asked more than once.
    """

    slots: tuple[int, ...]
    repeat: int = 0

    def swap(self) -> Comparison:
        """The same candidates in the opposite order."""
        return Comparison(self.slots[::-1], self.repeat)


@dataclass(frozen=True, slots=True)
class Preference:
    """Scored: how likely each slot is the best one.

    Attributes:
        probabilities_K: sums to 1; one-hot when sampled. Shape (K,).
        soft: whether it was read from label probabilities rather than sampled.
    """

    probabilities_K: tuple[float, ...]
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Grades:
    """Scored: a grade per slot.

    Attributes:
        values_K: the grade, or its expectation when read.
        grades_K: per slot, the distribution over grades as (grade, probability) pairs; one-hot when sampled.
    """

    values_K: tuple[float, ...]
    grades_K: tuple[tuple[tuple[float, float], ...], ...]

    @classmethod
    def sampled(cls, values_K: Sequence[float]) -> Grades:
        """Grades that were written out, so each is certain."""
        return cls(tuple(values_K), tuple(((value, 1.0),) for value in values_K))


@dataclass(frozen=True, slots=True)
class RankOrder:
    """Scored: slot positions (0..K-1) best first; positions in one tier are tied.

    Attributes:
        tiers: best first.
        strengths: how much better each tier is than the next, 1 to 3 (``>``, ``>>``, ``>>>``); empty if all are 1.
    """

    tiers: tuple[tuple[int, ...], ...]
    strengths: tuple[int, ...] = ()


def steps_between(order: RankOrder) -> list[list[int]]:
    """The strongest step between each two slots: positive where the row stands above the column, negative below, 0 where
    they are tied. Shape (K, K).

    The steps are not added up: an order that grades nothing says nothing of margins.

    >>> steps_between(RankOrder(((0,), (1,), (2,)), (2, 1)))
    [[0, 2, 2], [-2, 0, 1], [-2, -1, 0]]
    """
    size, count = sum(map(len, order.tiers)), len(order.tiers)
    steps_KK = [[0] * size for _ in range(size)]
    for place, tier in enumerate(order.tiers):
        strongest = accumulate(order.strengths[place:] or (1,) * (count - 1 - place), max)
        for step, below in zip(strongest, order.tiers[place + 1 :], strict=True):
            for a, b in product(tier, below):
                steps_KK[a][b], steps_KK[b][a] = step, -step
    return steps_KK


@dataclass(frozen=True, slots=True)
class Tie:
    """The judge said that no slot is better than another."""


@dataclass(frozen=True, slots=True)
class NoVerdict:
    """No verdict. It says nothing about the candidates.

    Attributes:
        reason: short and countable, e.g. ``"truncated"``, ``"no verdict"``, ``"timeout"``.
        detail: what was seen, for a human.
        transient: whether asking again could go differently: the engine says so, or the judge samples what it writes.
        rejected: a short excerpt of what the judge said instead of a verdict, to be counted.
    """

    reason: str
    detail: str = ""
    transient: bool = False
    rejected: str = field(default="", repr=False, compare=False)


Outcome: TypeAlias = Preference | Grades | RankOrder | Tie | NoVerdict


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or several judge calls."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison came to: scored, tie or failed, always with the judge's own text and its cost.

    Attributes:
        outcome: what the judge says.
        rationale: what it wrote.
        usage: tokens.
        label_mass: where labels were read, their probability together, 0..1; None where nothing was read.
        likeliest: where labels were read, the judge's likeliest token in their place, if the engine tells.
        opened: the judge wrote no verdict; its answer was opened after what it wrote, and read.
    """

    outcome: Outcome
    rationale: str = ""
    usage: Usage = Usage()
    label_mass: float | None = None
    likeliest: str = ""
    opened: bool = False

    @property
    def failed(self) -> bool:
        """Whether there is no verdict."""
        return isinstance(self.outcome, NoVerdict)


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """A comparison of a group together with its verdict.

    Attributes:
        comparison, verdict: what was compared, and what came of it.
        criterion: name of the rubric's criterion that it is about; empty for the whole.
    """

    comparison: Comparison
    verdict: Verdict
    criterion: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a judge writes.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        max_tokens: cap on what is written.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class VerdictForm:
    """Which verdicts can be read, for engines that can hold a judge to them.

    Attributes:
        opening: stands before an answer.
        closing: stands after it; empty for the end of the line.
        answers: all that an answer may be.
        count: how many answers there are, one after the other.
    """

    opening: str
    closing: str
    answers: tuple[str, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """One judge call, complete: an engine needs nothing else, and a cache key is made of nothing else.

    Attributes:
        messages: the rendered chat.
        prefill: text with which the judge's own turn already begins.
        labels: for ``label_logprobs``, the continuations whose probabilities are read.
        sampling: for ``generate``.
        stop: for ``generate``, strings that end the writing (not part of the text returned).
        seed: for ``generate`` at a temperature above 0.
        form: for ``generate``, the verdicts that can be read; None where none is asked for.
    """

    messages: tuple[Message, ...]
    prefill: str = ""
    labels: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    form: VerdictForm | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What an engine returns for one request.

    Attributes:
        text: what was written, without the prefill; where labels were read, the likeliest token, if the engine tells.
        finish: ``"stop"`` if the judge ended by itself (or at a stop string), ``"length"`` at the cap.
        label_logprobs: log-probability of each requested label as the next token(s), with or without a space before it
            (see ``engines.label_tokens``); not renormalised.
        usage: tokens.
    """

    text: str = ""
    finish: Literal["stop", "length"] = "stop"
    label_logprobs: tuple[float, ...] | None = None
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class EngineFailure:
    """What an engine returns in the place of a request it could not serve.

    Attributes:
        reason: short and countable, e.g. ``"timeout"`` or ``"http 500"``.
        detail: for a human.
        transient: whether asking the very same thing again could go differently.
    """

    reason: str
    detail: str = ""
    transient: bool = True


@dataclass(frozen=True, slots=True)
class CriterionScores:
    """What the judge found out about one criterion of a group's rubric.

    Attributes:
        criterion: what was asked.
        scores_G: how far each candidate meets it, as rated; None where unknown. Of a pitfall, too, more is higher.
        grades_G: its mean grade where it was graded alone, 0 (worst) to 1; None where not.
        comparisons, failed: verdicts that were asked for, and those that failed.
        weight: what it counts in the total, of a pitfall negative.
    """

    criterion: Criterion
    scores_G: tuple[float | None, ...]
    grades_G: tuple[float | None, ...]
    comparisons: int = 0
    failed: int = 0
    weight: float = 1.0

    @property
    def rewards_G(self) -> tuple[float | None, ...]:
        """The scores with a pitfall's sign turned, so that more is better."""
        sign = -1.0 if self.criterion.weight < 0 else 1.0
        return tuple(None if score is None else sign * score for score in self.scores_G)


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything the judge found out about one group.

    Attributes:
        group: what was judged.
        scores_G: a score per candidate; None for a candidate about which nothing is known.
        games_G: games each candidate took part in (soft and shared games count fractionally).
        played: comparisons in the indices of ``group.candidates``, with verdicts, in the order asked.
        quick_reads: cheap reads that a cascade took; those it acted on are in ``played`` as well.
        forfeits: indices of degenerate candidates, which lose without being shown to the judge.
        calls: requests sent to the engine for this group, retries and quick reads included, cache hits not.
        cache_hits: requests answered without the engine.
        usage: tokens of those calls.
        cyclic_triads: triples in which each beats the next, a sign of an inconsistent judge.
        sanitized: indices of candidates that held a marker of ours, or of the judge's chat template, which had to be made
            harmless before the judge saw it (see ``Sanitizer``). Quoted code does so now and then; a share that grows
            over a run is a policy that tries to speak for the judge.
        cut: indices of candidates of which, or of whose question, reference or rubric, the judge was not shown the whole in
            some comparison, because it was too long for the judge's context or for ``max_candidate_tokens``.
        seconds: wall time of the whole batch this group was judged in.
        grades_G: mean grade of each candidate, where it was graded; None where not.
        criteria: of a group that was judged by criteria, what was found out about each that was asked about; the scores are
            then totals over these (see ``scoring.criteria``).
        anchors_A: of a group with anchors, a score per anchor, so that their mean is 0; None where unknown, as of several
            where the scores are totals over criteria. The candidates' scores are relative to them.
        level: what the anchors were rated with, on average; None where that is unknown, or the scores are totals.
    """

    group: Group
    scores_G: tuple[float | None, ...]
    games_G: tuple[float, ...]
    played: tuple[JudgedComparison, ...]
    quick_reads: tuple[JudgedComparison, ...] = ()
    forfeits: tuple[int, ...] = ()
    calls: int = 0
    cache_hits: int = 0
    usage: Usage = Usage()
    cyclic_triads: int = 0
    seconds: float = 0.0
    sanitized: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    grades_G: tuple[float | None, ...] = ()
    criteria: tuple[CriterionScores, ...] = ()
    anchors_A: tuple[float | None, ...] = ()
    level: float | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """Scored candidates, best first; ties in input order."""
        scored = [(index, score) for index, score in enumerate(self.scores_G) if score is not None]
        return tuple(index for index, _ in sorted(scored, key=lambda item: -item[1]))

    @property
    def best(self) -> int | None:
        """Index of the best candidate; None if nothing is known, or if different candidates tie for the best."""
        top = [index for index in self.order if self.scores_G[index] == self.scores_G[self.order[0]]]
        return top[0] if len({self.group.candidates[index] for index in top}) == 1 else None


@dataclass(frozen=True, slots=True)
class GroupReward:
    """Rewards of one group, ready for a trainer.

    Attributes:
        rewards_G: a reward per candidate; None where the framework's own "no signal" must stand.
        judgement: what they come from.
        abstained: indices of candidates whose score is unknown.
    """

    rewards_G: tuple[float | None, ...]
    judgement: Judgement
    abstained: tuple[int, ...] = field(default=())
