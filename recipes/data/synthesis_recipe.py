"""Settings of the synthesis (``synthesize.py``): what is made, of what, by whom."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt

from mrjudge_reward.engines.engine_config import EngineConfig
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.prompting.formats import Choice
from mrjudge_reward.settings import Settings

from .synthesis_filters import Limits
from .synthesis_steps import FAMILIES, Plan
from .writer_prompts import FOLDER

VERSION = 2
"""Of what a row comes to; raised when steps or filters change, so that rows of two versions are not mixed."""

ROLES = ("writer", "describer", "reasoner", "editor")
_TEMPLATES = ("negative", "describe", "reason", "strip_hint", "align_style")
_NOT_OF_ROWS = {"count", "batch", "retries", "max_failed_fraction", "max_leak", "match_length"}
NOT_OF_REPLIES = {
    "api_key_env", "base_url", "extra_headers", "insecure_http", "max_concurrency", "deadline_s", "device", "batch_size",
    "batch_tokens", "turn_wait_s", "gpu_memory_utilization", "tensor_parallel_size", "colocated", "sleep_level",
}  # fmt: skip
"""Settings of an engine that say where and how fast it runs."""


class Role(Settings):
    """A model and how it writes.

    Args:
        engine: settings of ``EngineConfig``.
        temperature, top_p, max_tokens: of its sampling.
        opened: whether its turn begins with the opening mark: for a model that can write, but keeps to no marks. What it
            writes up to its end, or up to the closing mark, is taken. Needs an engine that continues a turn; not for the
            reasoner, whose turn begins with its thoughts.
    """

    engine: dict[str, Any] = Field(default_factory=dict)
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: PositiveInt = 1024
    opened: bool = False

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        EngineConfig(**self.engine)


class SynthesisRecipe(Settings):
    """What is made, of what, by whom.

    Args:
        source: a file (JSON lines, JSON, Parquet) or hub data set of samples.
        hub_split, hub_name: of a hub data set.
        prompt, answer: columns; where ``prompt`` is missing, ``messages`` that end in the answer. Images are in
            ``images`` or ``image``.
        count: samples at most, from the first; None for all. May be raised later, and the run goes on.
        writer: settings of ``Role``: writes negatives, from images too where samples have some.
        describer, reasoner, editor: settings of ``Role`` for these; None for the writer's. The reasoner reads text alone.
        families: which flaws; see ``FAMILIES``.
        negatives: least and most of an item, drawn evenly.
        length_ratio: least and greatest length of a negative, as a part of the reference's.
        max_similarity: greatest share of words that a negative has in common with the reference, in order; one with
            other numbers may be as near as it likes.
        match_length: whether items are left out so that the reference is the longest as often as a guess would have it.
        reasoning: whether traces are made; without, there are items alone.
        min_trace_words: of a trace.
        edit_ratio: least and greatest length of an edited trace, as a part of what it was.
        template, labels: of the ``choice`` format in which examples are.
        task: name of the examples' task.
        max_text_tokens: bound of a question and of an answer; samples with longer ones are left out.
        batch: samples that go through the steps together, so that each step is one call.
        retries: how often a request that failed for the moment is repeated at once.
        max_failed_fraction: of the requests of a call (of 8 and more); above it the run stops.
        max_leak: greatest accuracy of the leak test; None only reports it.
        seed: of all that is drawn.

    Raises:
        ConfigError: on construction.
    """

    source: str
    hub_split: str = "train"
    hub_name: str | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    count: PositiveInt | None = None
    writer: dict[str, Any]
    describer: dict[str, Any] | None = None
    reasoner: dict[str, Any] | None = None
    editor: dict[str, Any] | None = None
    families: list[str] = Field(default_factory=lambda: list(FAMILIES), min_length=1)
    negatives: list[PositiveInt] = Field(default_factory=lambda: [1, 3], min_length=2, max_length=2)
    length_ratio: list[float] = Field(default_factory=lambda: [0.6, 1.6], min_length=2, max_length=2)
    max_similarity: Annotated[float, Field(gt=0, le=1)] = 0.95
    match_length: bool = False
    reasoning: bool = True
    min_trace_words: PositiveInt = 20
    edit_ratio: list[float] = Field(default_factory=lambda: [0.5, 1.3], min_length=2, max_length=2)
    template: str = "choice"
    labels: list[str] = Field(default_factory=lambda: ["A", "B", "C", "D"], min_length=2)
    task: str = "synthetic"
    max_text_tokens: PositiveInt = 2048
    batch: PositiveInt = 256
    retries: NonNegativeInt = 1
    max_failed_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    max_leak: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if strange := [name for name in self.families if name not in FAMILIES]:
            raise ConfigError(f"no error family {strange[0]!r}; there are {', '.join(FAMILIES)}")
        least, most = self.negatives
        if not least <= most <= min(len(set(self.families)), len(self.labels) - 1):
            raise ConfigError(
                f"negatives {self.negatives} must be from less to more, at most one per error family "
                f"({len(set(self.families))}) and one less than there are labels ({len(self.labels)})"
            )
        for name in ("length_ratio", "edit_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= 1 <= high:
                raise ConfigError(f"{name} must go from a part of 1 to at least 1; got {[low, high]}")
        if self.reasoner is not None and Role(**self.reasoner).opened:
            raise ConfigError("the reasoner's turn begins with its thoughts, it cannot be opened")
        for name in ROLES:
            self.role(name)
        self.plan()

    def role(self, name: str) -> Role:
        """One of ``ROLES``."""
        own = getattr(self, name)
        role = Role(**(self.writer if own is None else own))
        return role.model_copy(update={"opened": False}) if name == "reasoner" else role

    def plan(self) -> Plan:
        """What the steps need."""
        return Plan(
            families=tuple(dict.fromkeys(self.families)),
            negatives=(self.negatives[0], self.negatives[1]),
            limits=Limits((self.length_ratio[0], self.length_ratio[1]), self.max_similarity),
            form=Choice(template=self.template, labels=tuple(self.labels)),
            domain=self.task,
            seed=self.seed,
            max_text_tokens=self.max_text_tokens,
            min_trace_words=self.min_trace_words,
            edit_ratio=(self.edit_ratio[0], self.edit_ratio[1]),
        )

    def of_rows(self) -> dict[str, Any]:
        """All that decides what a row comes to."""
        kept = self.model_dump(exclude=_NOT_OF_ROWS)
        for name in ROLES:
            role = self.role(name)
            kept[name] = role.model_dump() | {"engine": EngineConfig(**role.engine).model_dump(exclude=NOT_OF_REPLIES)}
        texts = "".join((FOLDER / f"{name}.txt").read_text(encoding="utf-8") for name in _TEMPLATES)
        return kept | {"version": VERSION, "templates": blake2b(texts.encode(), digest_size=8).hexdigest()}
