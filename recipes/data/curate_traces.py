"""Choose a small set to warm a judge up with from traces that a judge has written: Flex-Judge's curation.

    python -m recipes.evaluate.judged_traces recipes/evaluate/traces_flex.yaml --out runs/traces   # writes them
    python -m recipes.data.synthesize recipes/data/curate.yaml --out runs/curated                 # mode: curate

A row has ``messages`` (the judge's prompt), ``trace`` (its reasoning, with or without the think tags), ``verdict`` and
``gold`` (what stands in the answer marks: a label, a ranking, a grade, or a list of grades), ``format`` (``choice``,
``ranking``, ``pair_scores`` or ``score``), and where it is not two, ``slots`` (candidates shown; a list of grades tells).
``judge`` may hold the settings of ``JudgeConfig`` by which the judge was asked: its labels and grades.

Flex-Judge (arXiv 2505.18601v4, section 3.1, and its ``utils/lrm_process.py``): keep a trace if its scores equal the
annotated ones; of these 500 single ones (more than 375 tokens) and the longest 500 pairwise (more than 750): 1K, text only.
Ours: any of the four formats, the longest of singles too, a quota for batches; a verdict is read by the format's own parser;
grades of several are right in the gold's order, as in the reward, or only traces that hit two grades of ten would be left;
traces with the judge's marks in them and duplicates (of a prompt or trace) are dropped; without a tokenizer lengths are in
words. Not done: turning pairs into singles by taking an answer out, and halving scales of 1 to 10 at random.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import Message, as_messages
from mrjudge_reward.prompting.formats import Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.prompting.sanitizing import neutralise
from mrjudge_reward.reasoning import THINK_CLOSE, THINK_OPEN
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import from_ratings
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import Grades, NoVerdict, Outcome, Preference, RankOrder
from recipes.common.resumable import not_overwritten, write_lines, write_text
from recipes.common.rows import placed_rows

from .synthesis_filters import normalised
from .synthesis_rows import plain_messages

Kind = Literal["single", "pair", "batch"]
VERSION = 1
QUOTA: dict[Kind, int] = {"single": 500, "pair": 500, "batch": 0}
FLOOR: dict[Kind, int] = {"single": 375, "pair": 750, "batch": 750}
"""Those of Flex-Judge, which are in tokens; for batches ours."""


class CurationRecipe(Settings):
    """What is chosen, from what.

    Args:
        source: a file (JSON lines, JSON, Parquet) or hub data set of judged traces.
        hub_split, hub_name: of a hub data set.
        quota: kind (single, pair, batch) → how many at most.
        floor: kind → the least length of a trace.
        tokenizer: hub name or path, ``"embedded"``, or None to count words.
        grades: kind → labels of the grades of that kind's scores; 1 to 5 for singles and 1 to 10 for others, if not named.
        task: name of the examples' task, where a row has none.
        pictures: keep traces about images too; the paper's are of text alone.
        even_verdicts: of choices, keep as many traces for each label. A judge that mostly names the first slot is right
            mostly where that is best, and what is right of it would teach the next one to name the first slot.
    """

    source: str
    hub_split: str = "train"
    hub_name: str | None = None
    quota: dict[Kind, NonNegativeInt] = Field(default_factory=lambda: dict(QUOTA))
    floor: dict[Kind, NonNegativeInt] = Field(default_factory=lambda: dict(FLOOR))
    tokenizer: str | None = None
    grades: dict[Kind, list[str]] = Field(default_factory=dict)
    task: str = "curated"
    pictures: bool = False
    even_verdicts: bool = False


@dataclass(frozen=True)
class Trace:
    """A judged row that may be chosen.

    ``chosen`` is the slot that a choice names; None for a tie, and for other formats.
    """

    row: int
    kind: Kind
    messages: tuple[Message, ...]
    answer: str
    trace: str
    length: int
    task: str
    format: str
    slots: int
    chosen: int | None


def _format(name: Any, kind: Kind, recipe: CurationRecipe) -> Format:
    labels = recipe.grades.get(kind)
    try:
        grades = tuple((label, float(label)) for label in labels) if labels else None
    except ValueError as error:
        raise ConfigError(f"grades must be numbers; got {labels}") from error
    match name:
        case "choice":
            return Choice()
        case "ranking":
            return Ranking()
        case "pair_scores":
            return PairScores(grades=grades) if grades else PairScores()
        case "score":
            return Score(grades=grades) if grades else Score()
    raise InputError(f"format must be choice, ranking, pair_scores or score; got {name!r:.60}")


def _said(verdict: Any, form: Format) -> str:
    """A verdict as a judge writes it."""
    closing = getattr(form, "answer_close", "</answer>")
    values = verdict if isinstance(verdict, list | tuple) else [verdict]
    return "".join(f"{form.answer_open}{value}{closing}" for value in values)


def agrees(outcome: Outcome, right: Outcome, form: Format) -> bool:
    """Whether a verdict is as right as another: grades and orders of several have the same order, as the reward of a judge
    counts it (``mrjudge_reward.training.tasks``), all else is the same."""
    match right:
        case Grades(worth_K) if len(worth_K) > 1:
            pass
        case RankOrder(tiers):
            tier = {slot: place for place, slots in enumerate(tiers) for slot in slots}
            worth_K = tuple(-float(tier[slot]) for slot in range(len(tier)))
        case _:
            return outcome == right
    item = from_ratings("", [""] * len(worth_K), worth_K, scale=(min(worth_K), max(worth_K) + 1))
    return Problem(item, tuple(range(len(worth_K))), form).accuracy(outcome) == 1


def trace_of(row: Mapping[str, Any], number: int, recipe: CurationRecipe, length: Callable[[str], int]) -> Trace | str:
    """A trace, or why it is not to be chosen.

    Raises:
        InputError: if the row is no judged trace.
    """
    if missing := [name for name in ("messages", "trace", "verdict", "gold", "format") if row.get(name) is None]:
        raise InputError(f"a judged trace needs {', '.join(missing)}")
    grades = row["gold"] if isinstance(row["gold"], list | tuple) else ()
    slots = row.get("slots") or (1 if row["format"] == "score" else len(grades) or 2)
    if not isinstance(slots, int) or (slots == 1) != (row["format"] == "score"):
        raise InputError(f"format {row['format']!r:.60} does not show {slots!r:.60} candidates")
    kind: Kind = "single" if slots == 1 else "pair" if slots == 2 else "batch"
    asked = row.get("judge")
    form = JudgeConfig(**asked).judge_format if asked else _format(row["format"], kind, recipe)
    messages, trace = as_messages(row["messages"]), row["trace"]
    if not isinstance(trace, str):
        raise InputError(f"a trace must be text; got {type(trace).__name__}")
    trace = trace.strip().removeprefix(THINK_OPEN).removesuffix(THINK_CLOSE).strip()
    if not recipe.pictures and any(message.images for message in messages):
        return "images"
    right = form.parse(_said(row["gold"], form), slots)
    if isinstance(right, NoVerdict):
        return f"gold: {right.reason}"
    answer = f"{THINK_OPEN}{trace}{THINK_CLOSE}{_said(row['verdict'], form)}"
    outcome = form.parse(answer, slots)
    if isinstance(outcome, NoVerdict):
        return f"verdict: {outcome.reason}"
    if not agrees(outcome, right, form):
        return "wrong verdict"
    if neutralise(trace, frozenset({form.answer_open})) != trace:
        return "markers"
    count = length(trace)
    if count < recipe.floor.get(kind, 0):
        return "too short"
    shares = outcome.probabilities_K if isinstance(outcome, Preference) else ()
    chosen = shares.index(1.0) if 1.0 in shares else None
    return Trace(
        number, kind, messages, answer, trace, count, str(row.get("task") or recipe.task), str(row["format"]), slots,
        chosen,
    )  # fmt: skip


def evened(traces: list[Trace]) -> list[Trace]:
    """As many choices for each slot, of each task and number of slots; the first of them. Others stay as they are."""
    found: dict[tuple[str, int], dict[int, list[Trace]]] = defaultdict(lambda: defaultdict(list))
    for trace in traces:
        if trace.chosen is not None:
            found[trace.task, trace.slots][trace.chosen].append(trace)
    kept = {
        id(trace)
        for (_, slots), said in found.items()
        for some in said.values()
        for trace in some[: min(map(len, said.values())) if len(said) >= slots else 0]
    }
    return [trace for trace in traces if trace.chosen is None or id(trace) in kept]


def _length(tokenizer: str | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: len(text.split())
    from transformers import AutoTokenizer

    from mrjudge_reward.engines.embedded import embedded_model_path

    loaded = AutoTokenizer.from_pretrained(str(embedded_model_path()) if tokenizer == "embedded" else tokenizer)
    return lambda text: len(loaded.encode(text, add_special_tokens=False))


def curate(recipe: CurationRecipe, out: Path) -> dict[str, Any]:
    """Choose and write ``examples.jsonl`` and ``report.json``.

    Returns:
        The report.

    Raises:
        ConfigError: if the source would be overwritten.
        InputError: if no row is a judged trace.
    """
    not_overwritten(out, ["examples.jsonl"], recipe.source)
    length = _length(recipe.tokenizer)
    rows = placed_rows(recipe.source, recipe.hub_split, recipe.hub_name)
    dropped: Counter[str] = Counter()
    found: list[Trace] = []
    first = "there are no rows"
    for number, (place, row) in enumerate(rows, 1):
        try:
            trace = trace_of(row, number, recipe, length)
        except (InputError, TypeError) as error:
            dropped["malformed"] += 1
            first = f"{place}: {error}" if dropped["malformed"] == 1 else first
            continue
        if isinstance(trace, str):
            dropped[trace] += 1
        else:
            found.append(trace)
    if dropped["malformed"] == len(rows):
        raise InputError(f"{recipe.source} has no judged trace; {first}")
    if dropped["malformed"]:
        print(
            f"{recipe.source}: {dropped['malformed']} of {len(rows)} rows are no traces; first {first}", file=sys.stderr
        )
    chosen: dict[str, list[Trace]] = defaultdict(list)
    seen: set[str] = set()
    for trace in sorted(found, key=lambda one: (-one.length, one.row)):  # so the longest of duplicates stays
        contents = {normalised(" ".join(f"{m.role} {m.text}" for m in trace.messages)), normalised(trace.trace)}
        if contents & seen:
            dropped["duplicate"] += 1
        elif len(chosen[trace.kind]) >= recipe.quota.get(trace.kind, 0):
            dropped["beyond the quota"] += 1
        else:
            seen |= contents
            chosen[trace.kind].append(trace)
    if recipe.even_verdicts:
        for kind, traces in chosen.items():
            chosen[kind] = evened(traces)
            if gone := len(traces) - len(chosen[kind]):
                dropped["more of a verdict than of another"] += gone
    made = sorted((trace for traces in chosen.values() for trace in traces), key=lambda one: one.row)
    out.mkdir(parents=True, exist_ok=True)
    write_lines(
        out / "examples.jsonl",
        (
            {
                "messages": plain_messages(trace.messages, out / "images"),
                "answer": trace.answer,
                "task": trace.task,
                "provenance": {
                    "source": recipe.source, "row": trace.row, "kind": trace.kind, "format": trace.format,
                    "length": trace.length, "recipe": VERSION,
                },
            }
            for trace in made
        ),
    )  # fmt: skip
    report = {
        "rows": len(rows), "kept": len(made), "by kind": {kind: len(traces) for kind, traces in chosen.items() if traces},
        "dropped": dict(dropped.most_common()), "lengths in": "tokens" if recipe.tokenizer else "words",
    }  # fmt: skip
    write_text(out / "report.json", json.dumps(report, indent=2))
    print(", ".join(f"{name} {value}" for name, value in report.items()))
    return report
