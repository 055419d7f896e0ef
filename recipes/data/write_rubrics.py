"""Write a rubric for each prompt out of answers that are known: good ones, or a better and a worse one.

    python -m recipes.data.write_rubrics recipes/data/write_rubrics.yaml --out runs/rubrics
    python -m recipes.data.write_rubrics recipes/data/write_rubrics_cpu.yaml --set source=pairs.jsonl --out runs/rubrics-cpu

A writer reads the question and the answers, and writes a few criteria with weights, negative for pitfalls. Its reply is read
strictly (``rubric_filters``): one that is no rubric is asked for again, ``tries`` times in all, and then its row is dropped;
one bad criterion leaves alone. With ``check``, a judge grades the better and the worse answer by each criterion, and one on
which the better does not win is dropped; where a grade is unknown it stays. ``prune_rubrics`` drops what never tells answers
apart.

==================  =================================================================================================
file in ``--out``   what
==================  =================================================================================================
``rubrics.jsonl``   ``prompt``, ``rubric``, ``reference`` (or ``better`` and ``worse``), ``provenance``: for TRL
                    (``rubric_column``), verl (``rubric_field``), ``policy/train.py`` (``prompts``) and ``prune_rubrics``
``report.json``     how many rows, replies and criteria there were, and were dropped for which reason
``progress.jsonl``  one line per finished row; interrupted, the same command goes on from there
``replies.sqlite``  all replies of the models, so that no finished call is made again
==================  =================================================================================================

A call that failed drops its row, is counted, and is made again when the same command is run again.

After Rubrics as Rewards (arXiv 2507.17746): criteria from references, each with a weight, pitfalls among them. Ours: the
wording, numbers for its words of importance, the better and the worse answer, all filters, the check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.engines.engine_config import EngineConfig
from mrjudge_reward.errors import ConfigError, MRJudgeError
from mrjudge_reward.judge import Judge
from mrjudge_reward.messages import Message
from mrjudge_reward.prompting.rendering import conversation_text
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.settings import Settings
from mrjudge_reward.types import EngineFailure, Group, NoVerdict, Sampling
from recipes.common.config import command_line, read_config
from recipes.common.resumable import ResumableRows, batches, not_overwritten, write_lines, write_report
from recipes.common.rows import placed_rows

from .criterion_grades import graded, grading, of_grades
from .rubric_filters import CRITERION_FILTERS, RubricLimits, filtered, read_criteria, rubric_fault
from .rubric_material import Material, fault_of, material_of
from .synthesis_recipe import NOT_OF_REPLIES, Role
from .synthesis_rows import different, plain_messages
from .synthesis_steps import Speaker
from .writer_prompts import FOLDER, Wording, chat, load_wording, writer_guard, written

VERSION = 2
"""Of what a row comes to; raised when steps or filters change, so that rows of two versions are not mixed."""
NOT_WON = "the better answer does not win"
_NOT_OF_ROWS = {"count", "batch", "retries", "max_failed_fraction"}


class RubricRecipe(Settings):
    """Which rubrics are written, out of what, by whom.

    Args:
        source: a file (JSON lines, JSON, Parquet) or hub data set.
        hub_split, hub_name: of a hub data set.
        material: ``references``: answers known to be good; ``preference``: a better and a worse one, in any layout that
            preference sets have (of a longer list the best and the worst).
        prompt: column; where it is missing, ``messages`` that end in the answer. Images are in ``images`` or ``image``.
        answer: column of references, or path to a field in it: a text or a list of them.
        count: rows at most, from the first; None for all. May be raised later, and the run goes on.
        writer: settings of ``Role``.
        check: settings of ``JudgeConfig`` for the judge that grades the better and the worse answer; None for no check.
        margin: least difference of their grades, between 0 and 1, by which the better wins.
        criteria: fewest and most of a rubric.
        max_weight: heaviest that a criterion may be.
        max_overlap: share of words that say what is asked, from which on two criteria ask the same.
        quote_words: run of an answer's words that a criterion must not repeat.
        tries: replies that are asked for until one is a rubric.
        max_text_tokens: bound of a question and its answers together; rows with longer ones are left out.
        batch: rows that go through the steps together.
        retries: how often a request that failed for the moment is repeated at once.
        max_failed_fraction: of the writer's requests in a call (of 8 and more); above it the run stops.
        seed: of all that is sampled.

    Raises:
        ConfigError: on construction.
    """

    source: str
    hub_split: str = "train"
    hub_name: str | None = None
    material: Literal["references", "preference"] = "references"
    prompt: str = "prompt"
    answer: str = "answer"
    count: PositiveInt | None = None
    writer: dict[str, Any]
    check: dict[str, Any] | None = None
    margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    criteria: list[PositiveInt] = Field(default_factory=lambda: [3, 8], min_length=2, max_length=2)
    max_weight: PositiveInt = 10
    max_overlap: Annotated[float, Field(gt=0, le=1)] = 0.6
    quote_words: Annotated[int, Field(ge=4)] = 8
    tries: PositiveInt = 3
    max_text_tokens: PositiveInt = 4096
    batch: PositiveInt = 64
    retries: NonNegativeInt = 1
    max_failed_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    seed: int = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.criteria[0] > self.criteria[1]:
            raise ConfigError(f"criteria must be the fewest and the most of a rubric; got {self.criteria}")
        if self.material == "preference" and (self.is_set("prompt") or self.is_set("answer")):
            raise ConfigError(
                "a preference row is read by its layout (mrjudge_reward/training/layouts.py): remove prompt and answer"
            )
        if self.check is not None:
            if self.material != "preference":
                raise ConfigError("check grades a better and a worse answer: set material: preference, or remove it")
            grading(self.check)
        elif self.is_set("margin"):
            raise ConfigError("margin does nothing without check; remove it")
        if self.role.temperature == 0 and self.is_set("tries") and self.tries > 1:
            raise ConfigError(
                "at temperature 0 a writer repeats itself: set tries to 1, or raise the writer's temperature"
            )

    @property
    def role(self) -> Role:
        """The writer."""
        return Role(**self.writer)

    @property
    def limits(self) -> RubricLimits:
        """What a rubric may be."""
        return RubricLimits((self.criteria[0], self.criteria[1]), self.max_weight, self.max_overlap, self.quote_words)

    def of_rows(self) -> dict[str, Any]:
        """All that decides what a row comes to."""
        kept = self.model_dump(exclude=_NOT_OF_ROWS)
        engine = EngineConfig(**self.role.engine).model_dump(exclude=NOT_OF_REPLIES)
        kept["writer"] = self.role.model_dump() | {"engine": engine}
        kept["check"] = None if self.check is None else of_grades(grading(self.check))
        return kept | {"version": VERSION, "template": template_digest()}


def template_digest() -> str:
    """Of the wording; part of a rubric's provenance."""
    return blake2b((FOLDER / "rubric.txt").read_bytes(), digest_size=8).hexdigest()


# -- writing ------------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """A row on its way.

    Attributes:
        replies: why each that was no rubric was none.
        read: whether one was.
        criteria: as far as they have come.
        written: how many there were, malformed ones included.
        dropped: reason → how many of them.
        ungraded: criteria of which the check says nothing.
        fault: why there is no rubric.
        again: whether that is so, or the check not known, because an engine failed for the moment.
    """

    material: Material
    replies: list[str] = field(default_factory=list)
    read: bool = False
    criteria: list[Criterion] = field(default_factory=list)
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    ungraded: int = 0
    fault: str = ""
    again: bool = False


def rubric_chat(material: Material, recipe: RubricRecipe, guard: Sanitizer) -> tuple[Message, ...]:
    """What a writer sees: the question and each answer in a section of its own."""
    sections = load_wording("rubric").sections
    block = sections[recipe.material]
    if recipe.material == "preference":
        outside = dict(zip(("answer", "worse"), material.answers, strict=True))
    else:
        outside = {f"answer{number}": text for number, text in enumerate(material.answers, 1)}
        block = "\n".join(block.replace("{answer}", f"{{{name}}}") for name in outside)
    user = sections["user"].replace("{answers}", block).replace("{basis}", sections[f"{recipe.material}_basis"])
    least, most = recipe.criteria
    return chat(
        Wording("rubric", {"system": sections["system"], "user": user}),
        {"question": conversation_text(material.prompt), **outside},
        guard,
        {"least": str(least), "most": str(most), "heaviest": str(recipe.max_weight)},
        tuple(image for message in material.prompt for image in message.images),
    )


def write_criteria(works: Sequence[Work], writer: Speaker, recipe: RubricRecipe) -> None:
    """Ask for rubrics until each row has one, or has been asked for often enough; then filter."""
    # Twice the bound: a text loses no word for a mark that was neutralised, which takes more tokens.
    guard = writer_guard(Sanitizer(writer.engine.count_tokens, 2 * recipe.max_text_tokens, writer.engine.reserved))
    for work in works:
        texts = (conversation_text(work.material.prompt), *work.material.answers)
        if sum(map(writer.engine.count_tokens, texts)) > recipe.max_text_tokens:
            work.fault = "too long"  # a writer who sees half of an answer asks for half of it
    for attempt in range(recipe.tries if recipe.role.temperature > 0 else 1):
        asked = [work for work in works if not work.fault and not work.read]
        chats = [(f"{work.material.key} {attempt}", rubric_chat(work.material, recipe, guard)) for work in asked]
        for work, reply in zip(asked, writer.ask(chats), strict=True):
            text = written(reply)
            if not isinstance(text, NoVerdict):
                _read(work, text, recipe)
            else:
                work.replies.append(text.reason)
                if isinstance(reply, EngineFailure):  # it has had its retries
                    work.fault, work.again = text.reason, text.transient
    for work in works:
        if not work.fault:
            work.fault = rubric_fault(work.criteria, recipe.limits) if work.read else f"no rubric: {work.replies[-1]}"


def _read(work: Work, text: str, recipe: RubricRecipe) -> None:
    found = read_criteria(text)
    if not any(found):
        work.replies.append("no criterion")
        return
    work.read, work.written = True, len(found)
    question = conversation_text(work.material.prompt)
    work.criteria, work.dropped = filtered(found, question, work.material.answers, recipe.limits)


def check_criteria(works: Sequence[Work], judge: Judge, recipe: RubricRecipe) -> None:
    """Drop criteria on which the better answer does not win; where a grade is unknown nothing is known."""
    asked = [work for work in works if not work.fault]
    groups = [
        Group(work.material.prompt, work.material.answers, work.material.key, rubric=Rubric(tuple(work.criteria)))
        for work in asked
    ]
    for work, (grades, unserved) in zip(asked, graded(judge, groups), strict=True):
        work.again = unserved
        kept: list[Criterion] = []
        for one in work.criteria:
            better, worse = grades[one.name]
            if better is None or worse is None:
                work.ungraded += 1
            elif (better - worse) * (1 if one.weight > 0 else -1) < recipe.margin - 1e-9:
                work.dropped[NOT_WON] += 1
                continue
            kept.append(one)
        work.criteria = kept
        work.fault = rubric_fault(kept, recipe.limits)


def _entry_of(work: Work, recipe: RubricRecipe, writer: Speaker, judge: Judge | None, out: Path) -> dict[str, Any]:
    """The line of a finished row in ``progress.jsonl``."""
    material = work.material
    entry: dict[str, Any] = {
        "row": material.row, "key": material.key, "fault": work.fault, "again": work.again, "replies": work.replies,
        "read": work.read, "written": work.written, "dropped": work.dropped, "left": len(work.criteria),
        "ungraded": work.ungraded, "made": None,
    }  # fmt: skip
    if work.fault:
        return entry
    prompt = material.as_text if material.as_text is not None else plain_messages(material.prompt, out / "images")
    answers = material.answers
    entry["made"] = {
        "prompt": prompt,
        "rubric": [replace(one, weight=float(one.weight)).as_dict() for one in work.criteria],
        **({"reference": answers} if recipe.material == "references" else {"better": answers[0], "worse": answers[1]}),
        "provenance": {
            "source": recipe.source, "row": material.row, "key": material.key, "material": recipe.material,
            "writer": writer.engine.name, "reply": len(work.replies) + 1, "seed": recipe.seed,
            "template": f"rubric {template_digest()}", "recipe": VERSION, "filters": CRITERION_FILTERS,
            "check": None if judge is None else judge.engine.name,
        },
    }  # fmt: skip
    return entry


# -- the whole ----------------------------------------------------------------------------------------------------------


def write_rubrics(
    recipe: RubricRecipe, out: Path, writer: Engine | None = None, checker: Engine | None = None
) -> dict[str, Any]:
    """Write the rubrics, or those that are still missing.

    Args:
        recipe: what to write.
        out: folder of the run.
        writer, checker: engines of the writer and of the judge that checks, instead of building them.

    Returns:
        The report.

    Raises:
        ConfigError: if the folder holds a run with other settings or rows, or the source where it would be overwritten.
        EngineError: if most of the writer's requests in a call fail.
        InputError: if there is no row to write a rubric for.
        JudgeUnreliableError: if too many verdicts of the check fail.
    """
    not_overwritten(out, ["rubrics.jsonl"], recipe.source)
    rows = placed_rows(recipe.source, recipe.hub_split, recipe.hub_name)[: recipe.count]
    read = partial(material_of, kind=recipe.material, prompt=recipe.prompt, answer=recipe.answer)
    materials, dropped = different(recipe.source, rows, read, fault_of)
    with ExitStack() as stack:
        progress = ResumableRows(out, recipe.of_rows())
        stack.callback(progress.close)
        if todo := progress.todo(materials, f" of {recipe.source}"):
            speaker, judge = _models(recipe, out, writer, checker, stack)
            for batch in batches(todo, len(materials), recipe.batch, "rubrics"):
                works = [Work(one) for one in batch]
                write_criteria(works, speaker, recipe)
                if judge is not None:
                    check_criteria(works, judge, recipe)
                progress.add(_entry_of(work, recipe, speaker, judge, out) for work in works)
        return _finish(recipe, out, materials, dropped, progress.entries)


def _models(
    recipe: RubricRecipe, out: Path, writer: Engine | None, checker: Engine | None, stack: ExitStack
) -> tuple[Speaker, Judge | None]:
    """The writer, and the judge that checks; one engine if they have the same settings."""
    cache = ReplyCache(out / "replies.sqlite")
    stack.callback(cache.close)
    role, config = recipe.role, EngineConfig(**recipe.role.engine)
    if writer is None:
        writer = config.build_engine()
        stack.callback(writer.close)
    speaker = Speaker(
        "writer", writer, Sampling(role.temperature, role.top_p, role.max_tokens), cache, recipe.seed, recipe.retries,
        recipe.max_failed_fraction, role.opened,
    )  # fmt: skip
    if recipe.check is None:
        return speaker, None
    settings = grading(recipe.check)
    if checker is None:
        if all(getattr(settings, name) == getattr(config, name) for name in EngineConfig.model_fields):
            checker = writer
        else:
            checker = settings.build_engine()
            stack.callback(checker.close)
    judge = Judge(checker, settings=settings, cache=None if settings.cache else cache)
    if settings.cache and judge.cache is not None:
        stack.callback(judge.cache.close)
    return speaker, judge


def _finish(
    recipe: RubricRecipe, out: Path, materials: Sequence[Material], dropped: Counter[str], entries: Mapping[int, Any]
) -> dict[str, Any]:
    """Write all files from the finished rows; nothing else decides what is in them."""
    rows, replies, criteria = Counter(dropped), Counter[str](), Counter[str]()
    finished = [entries[one.row] for one in materials]
    made = [entry["made"] for entry in finished if entry["made"] is not None]
    for entry in finished:
        replies.update(entry["replies"])
        criteria.update(entry["dropped"])
        if entry["made"] is None:
            rows[entry["fault"]] += 1
            criteria["of a rubric that was dropped"] += entry["left"]
    write_lines(out / "rubrics.jsonl", made)
    read = sum(entry["read"] for entry in finished)
    report: dict[str, Any] = {
        "rows": {"all": len(materials) + dropped.total(), "rubrics": len(made), "dropped": dict((+rows).most_common())},
        "replies": {"all": read + replies.total(), "read": read, "dropped": dict((+replies).most_common())},
        "criteria": {
            "written": sum(entry["written"] for entry in finished),
            "kept": sum(len(row["rubric"]) for row in made),
            "dropped": dict((+criteria).most_common()),
        },
        **({} if recipe.check is None else {"unknown in the check": sum(entry["ungraded"] for entry in finished)}),
        "failed for the moment": sum(entry["again"] for entry in finished),
    }
    write_report(out, report)
    if report["failed for the moment"]:
        print("the same command asks again for what failed for the moment")
    return report


def main() -> None:
    """Write the rubrics."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    args = parser.parse_args()
    try:
        write_rubrics(RubricRecipe(**read_config(args.config, args.overrides)), args.out)
    except MRJudgeError as error:
        raise SystemExit(f"write_rubrics: {error}") from error


if __name__ == "__main__":
    main()
