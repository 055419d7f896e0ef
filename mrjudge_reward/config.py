"""All settings of a judge, once: validated, the same from YAML, keyword arguments and a framework's own config.

They stand in sections (prompt, verdict, schedule, rating, safety, engine), and are given flat. A setting that would do
nothing is refused by name (``ONLY``, ``engines.engine_config.ONLY``).

>>> JudgeSettings(model="Qwen/Qwen3-8B", shedule="ring")
Traceback (most recent call last):
    ...
mrjudge_reward.errors.ConfigError: unknown setting 'shedule'; did you mean 'schedule'?
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import BeforeValidator, Field, NonNegativeInt, PlainSerializer, PlainValidator, PositiveInt

from mrjudge_reward.engines.engine_config import SERVED, EngineConfig
from mrjudge_reward.engines.pace import Pace
from mrjudge_reward.prompting.criteria import ByCriterion
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.prompting.rendering import asks_for
from mrjudge_reward.rubrics.criteria import Rubric
from mrjudge_reward.rubrics.reading import load_rubric, read_rubric
from mrjudge_reward.scoring.ratings import RATINGS, Rating
from mrjudge_reward.scoring.rewards import RewardShape
from mrjudge_reward.scoring.schedules import SCHEDULES, Limits, Schedule

from .errors import ConfigError
from .images import MAX_PIXELS
from .settings import Settings
from .types import Sampling
from .yaml_files import read_yaml

FormatName: TypeAlias = Literal["auto", "choice", "ranking", "pair_scores", "score", "sentiment"]
VerdictMode: TypeAlias = Literal["generate", "logprobs", "cascade"]

_OLD_MODES = {"sampled": "generate", "read": "logprobs"}
"""Further names of modes."""


def _mode(value: Any) -> Any:
    return _OLD_MODES.get(value, value) if isinstance(value, str) else value


def _named(known: Mapping[str, object], kind: type, *more: str) -> PlainValidator:
    """A name out of several, or an object."""

    def check(value: Any) -> Any:
        if isinstance(value, kind) or value in (*more, *known):
            return value
        raise ValueError(f"there is no {value!r}; choose {', '.join((*more, *known))}, or give a {kind.__name__}")

    return PlainValidator(check)


def _format(value: Any) -> Any:
    an_object = not isinstance(value, type) and all(hasattr(value, name) for name in ("render", "parse", "max_slots"))
    if an_object or value in get_args(FormatName):
        return value
    raise ValueError(f"there is no {value!r}; choose {', '.join(get_args(FormatName))}, or give a Format")


_Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
_Weight: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _grades(value: Any) -> Any:
    """Refuse what YAML makes of a grade without quotes; ``str`` of it may be another text than what was written."""
    if isinstance(value, dict) and (unquoted := [name for name in value if not isinstance(name, str)]):
        raise ValueError(f"a grade is text: put it in quotes, as in {{'1': 1}}; without them is {unquoted[0]!r:.60}")
    return value


class PromptSettings(Settings):
    """What the judge is shown and asked."""

    format: Annotated[FormatName | Format, PlainValidator(_format)] = "auto"
    """What the judge is asked: a name, or a ``Format`` of one's own. ``auto`` is ``sentiment`` for the untrained embedded
    model, which does that well. Any other model chooses the best, after MR. Judge, where its verdict is read; where it
    writes it grades each response (``pair_scores``), because grades tell by how much. A ``template`` or ``tie_label`` of
    one's own is for ``choice``."""
    template: str | None = None
    """Name or path of another wording; None for the format's own."""
    labels: list[str] | None = None
    """Labels of the slots; None for A, B, C, ..."""
    grades: Annotated[dict[str, float] | None, BeforeValidator(_grades)] = None
    """Grades as they are written and what each is worth; None for 1 to 5 (``score``) or 1 to 10 (``pair_scores``)."""
    tie_label: str = ""
    """A further option, that none is better; none by default, because judges that may tie often do."""
    answer_open: str | None = None
    """What opens the verdict; None for ``<answer>``."""
    answer_close: str | None = None
    """What closes it, empty for the end of the line; None for ``</answer>``."""
    max_candidate_tokens: PositiveInt | None = None
    """Most tokens of each candidate, never more than the judge's context leaves; None for no bound but that."""
    max_pixels: Annotated[int, Field(ge=28 * 28)] = MAX_PIXELS
    """Most pixels of an image shown to the judge; larger ones are scaled down. About a megapixel, which models that see
    take in full."""


def _rubric(value: Any) -> Any:
    if value is None or isinstance(value, Rubric):
        return value
    return load_rubric(value) if isinstance(value, str | os.PathLike) else read_rubric(value)


def _as_given(rubric: Rubric | None) -> list[dict[str, Any]] | None:
    return None if rubric is None else [one.as_dict() for one in rubric.criteria]


class RubricSettings(Settings):
    """Judging by the criteria of a rubric."""

    criteria: Literal["comparative", "absolute", "implicit"] | None = None
    """How a rubric is judged by. ``comparative``: candidates are compared on each criterion, and graded on essential ones.
    ``absolute``: each candidate is graded on each criterion alone. ``implicit``: one verdict over all criteria, which the
    judge weighs itself. None shows a rubric as a text, if a prompt has one."""
    rubric: Annotated[Rubric | None, PlainValidator(_rubric), PlainSerializer(_as_given)] = None
    """Criteria for the whole run, or the YAML file that holds them; prompts that bring their own are judged by those."""
    criteria_per_call: PositiveInt = 1
    """Most criteria that a call asks about. Only one a call can be read from label probabilities."""
    contrast: bool = False
    """Weigh each criterion also by how far the group differs on it (after POW3R, arXiv 2605.20164)."""
    rubric_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the criteria that is left out, others for each group and step (arXiv 2608.11669); essential ones stay."""


class VerdictSettings(Settings):
    """How a verdict is reached."""

    verdict: Annotated[Literal["auto", VerdictMode], BeforeValidator(_mode)] = "auto"
    """``generate``: the judge writes, and is parsed. ``logprobs``: it thinks up to ``thinking_tokens``, and the label
    probabilities are read. ``cascade``: both orders are read without thinking, and the judge thinks as well where together
    they are closer than ``cascade_margin``. ``auto`` reads where engine and format can and ``votes`` is 1, because that
    orders best for its calls (``docs/results.md``), and has the judge write what could not be read; else it is ``generate``.
    A judge trained to reason is asked to by ``thinking_tokens`` or ``generate``."""
    temperature: Annotated[float, Field(ge=0, le=5)] = 0.6
    """Of what the judge writes; 0 is greedy. 0.6 is what reasoning models are published with."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus of what the judge writes, in (0, 1]."""
    max_tokens: PositiveInt = 1024
    """Cap on what the judge writes, reasoning included; a verdict that is cut off has failed. 1024 is MR. Judge's."""
    thinking_tokens: NonNegativeInt = 0
    """Cap on the reasoning before label probabilities are read; 0 to read at once."""
    cascade_margin: _Weight = 1.0
    """Log-odds between the two best, both orders together, below which quick reads are not enough."""
    min_label_mass: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    """Labels that have less probability together are no verdict: the judge was about to write something else."""
    votes: PositiveInt = 1
    """How often each comparison is asked, with different seeds."""
    retries: NonNegativeInt = 1
    """How often a failed comparison is asked again, where that can go differently. 0 also never opens the answer after
    what a judge wrote without a verdict."""
    seed: int = 0
    """Of slots, schedules and sampling."""


class ScheduleSettings(Settings):
    """Who meets."""

    schedule: Annotated[str | Schedule, _named(SCHEDULES, Schedule, "auto")] = "auto"
    """A name, or a ``Schedule`` of one's own. ``auto`` is ``pointwise`` for formats that grade alone; ``listwise`` for those
    that order all they show (``pair_scores``, ``ranking``); else ``adaptive``, by criteria ``ring``. Each orders groups best
    for its calls and tokens (``tests/benchmarks/schedules.py``, ``rubrics.py``)."""
    budget: PositiveInt | None = None
    """Most comparisons of a group (by each criterion), votes included; None for the schedule's own number. One is a request,
    two where the judge thinks before it is read, up to three in a cascade; retries come on top."""
    both_orders: bool | None = None
    """Show pairs in both slot orders; None for the schedule's habit."""
    max_slots: Annotated[int, Field(ge=2)] = 8
    """Most candidates of one comparison."""
    audit: bool = True
    """Show one comparison of a group in mirrored slots, where the schedule would mirror none, so that position consistency
    is always known. It is a game like any other, one of the schedule's own number; see ``scoring.schedules``."""


class RatingSettings(Settings):
    """How games become scores, and scores rewards."""

    rating: Annotated[str | Rating, _named(RATINGS, Rating)] = "log_odds"
    """A name, or a ``Rating`` of one's own. ``log_odds`` fits position bias out and takes any schedule."""
    centre: bool = False
    """Subtract the group's mean of known scores from rewards."""
    length_weight: _Weight = 0.0
    """Strength of a zero-centred length term in rewards; see ``RewardShape``."""


class SafetySettings(Settings):
    """What is kept, and when a run stops."""

    cache: str | None = None
    """File in which replies are kept; None for no file."""
    max_failed_fraction: _Fraction = 0.5
    """Stop when more of the latest comparisons failed; 1 never stops."""
    failure_window: PositiveInt = 256
    """How many of the latest comparisons count."""


SECTIONS: tuple[type[Settings], ...] = (
    PromptSettings, RubricSettings, VerdictSettings, ScheduleSettings, RatingSettings, SafetySettings, EngineConfig,
)  # fmt: skip


class JudgeSettings(
    PromptSettings, RubricSettings, VerdictSettings, ScheduleSettings, RatingSettings, SafetySettings, EngineConfig
):
    """Everything about a judge, as plain values; see ``SECTIONS``.

    Raises:
        ConfigError: on construction, for an unknown setting (naming the nearest known one), or a value that is of the
            wrong type, out of range, does nothing, or contradicts another.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        for name, (holds, where) in ONLY.items():
            if self.is_set(name) and not holds(self):
                raise ConfigError(f"{name} does nothing here: it is for {where}; remove it")
        _check_together(self)

    # -- reading ------------------------------------------------------------------------------------------------------

    @staticmethod
    def load_values(path: str | os.PathLike[str]) -> dict[str, Any]:
        """The settings in a YAML file, as they stand there.

        Raises:
            ConfigError: if the file is missing, not YAML, or not a mapping.
        """
        values = read_yaml(path)
        if not isinstance(values, Mapping | None):
            raise ConfigError(f"{path} must hold settings (key: value); got {type(values).__name__}")
        return {str(key): value for key, value in (values or {}).items()}

    # -- what it resolves to --------------------------------------------------------------------------------------------

    @property
    def sampling(self) -> Sampling:
        """How the judge writes."""
        return Sampling(self.temperature, self.top_p, self.max_tokens)

    @property
    def reward_shape(self) -> RewardShape:
        """How scores become rewards."""
        return RewardShape(self.centre, self.length_weight)

    @property
    def format_name(self) -> str:
        """Name of a built-in format, with ``auto`` resolved; empty for a format of one's own."""
        if not isinstance(self.format, str):
            return ""
        if self.format != "auto":
            return self.format
        if self.by_criterion:
            whole = self.schedule == "listwise" or getattr(self.schedule, "whole", False)
            # What is written orders totals best by whole lists, what is read by pairs (tests/benchmarks/rubrics.py).
            whole |= self.schedule == "auto" and (self.criteria_per_call > 1 or self.verdict == "generate")
            return "score" if self.criteria == "absolute" else "ranking" if whole else "choice"
        if self.embedded and not self.trained:
            return "sentiment"
        chooses = self.verdict_mode != "generate" or self.trained or self.template is not None or self.tie_label
        return "choice" if chooses else "pair_scores"

    @property
    def judge_format(self) -> Format:
        """The judge format."""
        if self.by_criterion:
            own = self.graded_by if self.criteria == "absolute" else self.compared_by
            return ByCriterion((own,) * min(2, self.criteria_per_call))
        return self.format if not isinstance(self.format, str) else self._format_named(self.format_name)

    @property
    def by_criterion(self) -> bool:
        """Whether there is a verdict on each criterion."""
        return self.criteria in ("comparative", "absolute")

    @property
    def compared_by(self) -> Choice | Ranking:
        """How candidates are compared on one criterion."""
        form: Choice | Ranking = self._format_named("ranking" if self.format_name == "ranking" else "choice")
        return form

    @property
    def graded_by(self) -> Score:
        """How a candidate is graded on one criterion that has no grades of its own."""
        form: Score = self._format_named("score")
        low, high = (bound(value for _, value in form.grades) for bound in (min, max))
        return dataclasses.replace(
            form, grades=tuple((word, (value - low) / (high - low)) for word, value in form.grades)
        )

    def _format_named(self, name: str) -> Any:
        base: Any = _BY_CRITERION[name] if self.by_criterion else _FORMATS[name]
        if self.trained and name == "choice" and not self.by_criterion:
            base = dataclasses.replace(base, template="glance", labels=("A", "B"))  # as it was trained
        given: dict[str, Any] = {
            "template": self.template,
            "labels": None if self.labels is None else tuple(self.labels),
            "grades": None if self.grades is None else tuple(self.grades.items()),
            "tie_label": self.tie_label or None,
            "answer_open": self.answer_open,
            "answer_close": self.answer_close,
        }
        own = {field.name for field in dataclasses.fields(base)}
        return dataclasses.replace(base, **{k: v for k, v in given.items() if v is not None and k in own})

    @property
    def judge_schedule(self) -> Schedule:
        """The schedule, with ``auto`` resolved."""
        if isinstance(self.schedule, Schedule):
            return self.schedule
        form = self.judge_format
        of_several = "adaptive" if form.readable or form.max_slots == 2 else "listwise"
        if self.by_criterion and self.format_name == "choice":
            of_several = "ring"  # a total needs by how much, adaptive asks who is better (tests/benchmarks/rubrics.py)
        auto = "pointwise" if form.max_slots == 1 else of_several
        return SCHEDULES[self.schedule if self.schedule != "auto" else auto]

    @property
    def judge_rating(self) -> Rating:
        """The rating; where each candidate is graded by criteria the mean grade, which has a level, unless one is chosen."""
        if self.criteria == "absolute" and not self.is_set("rating"):
            return RATINGS["mean_score"]
        return self.rating if isinstance(self.rating, Rating) else RATINGS[self.rating]

    @property
    def verdict_mode(self) -> VerdictMode:
        """How verdicts are taken, with ``auto`` resolved."""
        if self.verdict != "auto":
            return self.verdict
        form = self.format if not isinstance(self.format, str) else _FORMATS.get(self.format, _FORMATS["choice"])
        if self.by_criterion:
            form = self.judge_format
        reads = form.readable and (
            self.embedded or self.votes == 1 or self.thinking_tokens > 0
        )  # votes are on what it wrote
        return "logprobs" if reads else "generate"

    def settled(self, can_read: bool) -> Self:
        """These settings for an engine of which it is known whether it reads: there ``auto`` is what it is for it."""
        if can_read or self.verdict != "auto":
            return self
        return self.model_copy(update={"verdict": "generate"})

    @property
    def writes_unread(self) -> bool:
        """Whether the judge writes a verdict that could not be read."""
        at_once = self.verdict_mode == "logprobs" and self.thinking_tokens == 0
        return self.verdict == "auto" and at_once and not self.embedded and self.retries > 0

    @property
    def writes_verdicts(self) -> bool:
        """Whether the judge ever writes a verdict, and is parsed."""
        return self.verdict_mode != "logprobs" or self.writes_unread

    @property
    def may_write_verdicts(self) -> bool:
        """Whether it depends on the engine alone if the judge writes a verdict."""
        return self.writes_verdicts or (self.verdict == "auto" and not self.embedded)

    @property
    def reply_tokens(self) -> int:
        """The most tokens that the judge writes."""
        return self.max_tokens if self.writes_verdicts else self.thinking_tokens + 16

    @property
    def pace(self) -> Pace | None:
        """What the longest reply asks of the judge's server; None for a judge in this process."""
        if self.engine_name not in SERVED:
            return None
        tokens = self.max_tokens if self.may_write_verdicts else self.reply_tokens
        return Pace(tokens, self.deadline_s, self.max_concurrency)

    @property
    def limits(self) -> Limits:
        """What the schedule may spend."""
        slots = min(self.max_slots, self.judge_format.max_slots)
        budget = None if self.budget is None else self.budget // self.votes
        return Limits(budget, self.both_orders, slots, self.audit)


_FORMATS: dict[str, Format] = {
    "choice": Choice(), "ranking": Ranking(), "pair_scores": PairScores(), "score": Score(), "sentiment": SENTIMENT,
}  # fmt: skip

CRITERION_GRADES = (("not met", 0.0), ("partly", 0.5), ("met", 1.0))
"""How far a criterion without grades of its own is met."""

_BY_CRITERION: dict[str, Format] = {
    "choice": Choice("criteria_choice", tie_label="tie"),
    "ranking": Ranking("criteria_ranking"),
    "score": Score("criteria_score", CRITERION_GRADES),
}

Holds: TypeAlias = Callable[[JudgeSettings], bool]


def _built_in(*names: str) -> Holds:
    return lambda settings: settings.format_name in (names or tuple(_FORMATS))


def _samples(settings: JudgeSettings) -> bool:
    return settings.may_write_verdicts or settings.thinking_tokens > 0


_SAMPLES = "a judge that writes (verdict auto, generate or cascade, or thinking_tokens)"

_BY_CRITERIA = "criteria comparative or absolute"

ONLY: dict[str, tuple[Holds, str]] = {
    "rubric": (lambda it: it.criteria is not None, "judging by criteria; set criteria"),
    "criteria_per_call": (lambda it: it.by_criterion, _BY_CRITERIA),
    "contrast": (lambda it: it.by_criterion, _BY_CRITERIA),
    "rubric_dropout": (lambda it: it.criteria is not None, "judging by criteria; set criteria"),
    "template": (_built_in(), "formats of this package; a format of one's own has its own wording"),
    "labels": (_built_in("choice", "ranking", "pair_scores"), "formats choice, ranking and pair_scores"),
    "grades": (_built_in("score", "sentiment", "pair_scores"), "formats that grade"),
    "tie_label": (_built_in("choice"), "format choice"),
    "answer_open": (_built_in(), "formats of this package"),
    "answer_close": (_built_in(), "formats of this package"),
    "temperature": (_samples, _SAMPLES),
    "top_p": (_samples, _SAMPLES),
    "max_tokens": (
        lambda it: it.may_write_verdicts, "verdict auto, generate or cascade; with logprobs set thinking_tokens",
    ),
    "thinking_tokens": (
        lambda it: it.verdict_mode == "logprobs", "verdict logprobs; elsewhere reasoning is bounded by max_tokens",
    ),
    "cascade_margin": (lambda it: it.verdict_mode == "cascade", "verdict cascade"),
    "min_label_mass": (lambda it: it.verdict_mode != "generate", "verdict logprobs or cascade"),
    "audit": (lambda it: not it.judge_schedule.alone, "schedules in which candidates meet"),
    "both_orders": (lambda it: not it.judge_schedule.alone, "schedules in which candidates meet"),
    "top_logprobs": (lambda it: it.judge_format.readable, "formats of which labels are read"),
    "max_slots": (lambda it: it.judge_schedule.whole, "schedule listwise; the others show two candidates"),
}  # fmt: skip
"""Settings that hold for some judges only: for which, and how to say so."""


def _check_criteria(it: JudgeSettings) -> None:
    """Raise ConfigError where settings do not fit a verdict on each criterion."""
    if not it.by_criterion:
        return
    fitting = ("auto", "score") if it.criteria == "absolute" else ("auto", "choice", "ranking")
    if it.format not in fitting:
        raise ConfigError(f"criteria {it.criteria!r} go with format {' or '.join(fitting)}; got {it.format!r:.100}")
    if it.criteria_per_call > 1 and it.judge_schedule.looks:
        raise ConfigError(
            f"schedule {it.judge_schedule.name!r} lets other candidates meet for each criterion, and one call asks about "
            f"{it.criteria_per_call}; use ring, all_pairs or listwise, or criteria_per_call=1"
        )
    if it.verdict == "cascade":
        raise ConfigError("a cascade gives one verdict, not one on each criterion; use generate or logprobs")


def _check_together(it: JudgeSettings) -> None:
    """Raise ConfigError where settings contradict each other."""
    _check_criteria(it)
    form: Any = it.judge_format
    schedule, mode, name = it.judge_schedule, it.verdict_mode, type(form).__name__
    if schedule.alone != (form.max_slots == 1):
        raise ConfigError(
            f"schedule {schedule.name!r} does not fit format {name}: a format that grades one response alone goes with "
            "schedule 'pointwise', and only that one"
        )
    if not schedule.whole and form.max_slots > 1 and form.min_slots > 2:
        raise ConfigError(f"format {name} needs {form.min_slots} candidates; use 'listwise'")
    if mode != "generate":
        form.read_labels(form.min_slots)  # raises where the format cannot be read
    if mode == "cascade" and form.max_slots == 1:
        raise ConfigError("a cascade compares both orders of candidates; a format that grades alone has no order")
    if it.judge_rating.neutral is None and not hasattr(form, "grades"):
        raise ConfigError(f"rating {it.judge_rating.name!r} needs a format that grades; {name} does not")
    if (it.answer_open is None) != (it.answer_close is None):
        raise ConfigError("answer_open and answer_close go together: the verdict stands between them")
    if it.answer_open is not None and it.writes_verdicts and not asks_for(form.template, it.answer_open):
        raise ConfigError(
            f"the wording {form.template!r} does not ask the judge to write {it.answer_open!r}, so no verdict would be "
            "found: give a template that does"
        )
    if it.structured_output is not None:
        if not it.writes_verdicts:
            raise ConfigError(
                "structured_output does nothing with verdict logprobs, where no verdict is written; remove it"
            )
        shown = it.limits.max_slots if schedule.whole else form.min_slots
        made = getattr(form, "form", None)  # a format of one's own may lack it
        if made is None or made(shown) is None:
            raise ConfigError(
                f"structured_output needs a format that can list its verdicts; {name} cannot for {shown} candidates "
                "(rankings can of 5: set max_slots)"
            )
    if it.votes > 1 and mode != "logprobs" and it.temperature == 0:
        raise ConfigError("votes > 1 at temperature 0 would ask the very same thing again; raise the temperature")
    if it.votes > 1 and mode == "logprobs" and (it.thinking_tokens == 0 or it.temperature == 0):
        raise ConfigError("votes > 1 need sampled reasoning: set thinking_tokens and temperature above 0")
    for setting, value, least in (("budget", it.budget, it.votes), ("max_slots", it.max_slots, form.min_slots)):
        if value is not None and value < least:
            raise ConfigError(f"{setting} must be at least {least}; got {value}")
