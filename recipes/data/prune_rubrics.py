"""Drop the criteria of rubrics that never tell answers apart: each costs calls and gives no gradient.

    python -m recipes.data.prune_rubrics recipes/data/prune_rubrics.yaml --out runs/pruned

A judge grades given answers by each criterion alone (``criteria: absolute``). A criterion tells two answers to one prompt
apart where their grades differ by ``margin``. One that does so nowhere is dropped, if enough is known of it:

* a rubric for the whole run (``rubric``, a YAML file) is looked at over all prompts that have answers. ``min_prompts`` of
  them must have ``min_answers`` with a known grade;
* a prompt's own rubric (``rubrics``, rows of ``write_rubrics``) is looked at over the answers to that prompt, of which
  ``min_answers`` must have a known grade.

A failed verdict is no grade, and prunes nothing. An essential criterion stays: it is a gate, for answers that have not come
yet. Take answers of the policy that is to be trained. What tells answers apart differs from policy to policy (POW3R,
arXiv 2605.20164, weighs criteria by it while it trains).

=====================================  ================================================================================
file in ``--out``                      what
=====================================  ================================================================================
``rubrics.jsonl`` or ``rubric.yaml``   what came in, with the criteria that are left. A row of which none is left is left
                                       out; one without enough answers stays as it is
``report.json``                        how many criteria stayed and went for which reason, and of a run's rubric each one
``progress.jsonl``, ``replies.sqlite``  grades of finished prompts, and all replies: interrupted, the same command goes on
=====================================  ================================================================================
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveInt

from mrjudge_reward.cache import ReplyCache
from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError, InputError, MRJudgeError
from mrjudge_reward.judge import Judge
from mrjudge_reward.judging.tournament import is_degenerate
from mrjudge_reward.messages import Message, final_answer
from mrjudge_reward.prompting.sanitizing import visible
from mrjudge_reward.rubrics.criteria import Criterion, Rubric
from mrjudge_reward.rubrics.reading import load_rubric, read_rubric
from mrjudge_reward.scoring.tally import MAX_GROUP
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import with_images
from mrjudge_reward.types import Group
from mrjudge_reward.yaml_files import WordLoader
from recipes.common.config import command_line, read_config
from recipes.common.resumable import ResumableRows, batches, not_overwritten, write_lines, write_report, write_text
from recipes.common.rows import placed_rows

from .criterion_grades import Known, graded, grading, of_grades
from .synthesis_rows import images_of, prompt_key

VERSION = 1
"""Of what a prompt's grades come to; raised when that changes, so that those of two versions are not mixed."""
TELLS, UNKNOWN, ESSENTIAL = "tells answers apart", "too little is known", "essential"
"""Why a criterion stays."""


class PruneRecipe(Settings):
    """Which rubrics are pruned, by which answers.

    Args:
        rubric: YAML file with one for the whole run; or
        rubrics: file of rows (JSON lines, JSON, Parquet) with a ``prompt`` and its rubric.
        column: of those rows, that holds the rubric.
        answers: file or hub data set of rows with a ``prompt`` and ``candidates`` (texts); rows of one prompt are put
            together.
        hub_split, hub_name: of a hub data set of answers.
        judge: settings of ``JudgeConfig``: who grades.
        min_answers: fewest different answers to a prompt, with a known grade, that say that a criterion does not tell them
            apart.
        min_prompts: fewest prompts with so many that say so of a rubric for the whole run.
        margin: least difference of two grades that counts. Grades lie between 0 and 1; those that are written are a step
            apart, those that are read hardly ever the same.
        batch: prompts that are graded together, and lost together when interrupted.
    """

    rubric: str | None = None
    rubrics: str | None = None
    column: str = "rubric"
    answers: str
    hub_split: str = "train"
    hub_name: str | None = None
    judge: dict[str, Any]
    min_answers: Annotated[int, Field(ge=2)] = 4
    min_prompts: PositiveInt = 8
    margin: Annotated[float, Field(gt=0, le=1)] = 0.1
    batch: PositiveInt = 64

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if (self.rubric is None) == (self.rubrics is None):
            raise ConfigError(
                "give rubric (a YAML file, for the whole run) or rubrics (rows, a rubric for each prompt)"
            )
        for name, of in (("column", "rubrics"), ("min_prompts", "rubric")):
            if self.is_set(name) and getattr(self, of) is None:
                raise ConfigError(f"{name} does nothing without {of}; remove it")
        grading(self.judge)

    def of_rows(self) -> dict[str, Any]:
        """All that decides which grades a prompt's answers get."""
        return {"version": VERSION, "judge": of_grades(grading(self.judge))}


# -- who stays ----------------------------------------------------------------------------------------------------------


def decided(grades: Sequence[Known], margin: float, min_answers: int, min_prompts: int) -> str:
    """Whether a criterion stays (``TELLS``, ``UNKNOWN``) or why it goes.

    Args:
        grades: of each prompt's answers.
        margin, min_answers, min_prompts: see ``PruneRecipe``.

    >>> decided([[1.0, 0.5, None]], 0.1, 3, 1), decided([[1.0, 1.0, None]], 0.1, 3, 1), decided([[1.0, 1.0]], 0.1, 2, 1)
    ('tells answers apart', 'too little is known', 'all meet it')
    """
    saying: list[list[float]] = []
    for of_prompt in grades:
        known = [grade for grade in of_prompt if grade is not None]
        if known and max(known) - min(known) >= margin - 1e-9:
            return TELLS
        if len(known) >= min_answers:
            saying.append(known)
    if len(saying) < min_prompts:
        return UNKNOWN
    least, most = min(map(min, saying)), max(map(max, saying))
    # Between prompts it may differ, which says nothing about the answers to one.
    return "all meet it" if least > 1 - margin else "none meets it" if most < margin else "alike for each prompt"


# -- what comes in ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Graded:
    """A prompt whose answers are graded.

    Attributes:
        row: its number, from 1.
        prompt: messages.
        rubric: its criteria.
        columns: of the row that holds the rubric; empty if it is the run's.
        answers: different ones.
    """

    row: int
    prompt: tuple[Message, ...]
    rubric: Rubric
    columns: Mapping[str, Any]
    answers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Of all that is graded."""
        content = repr((prompt_key(self.prompt), self.rubric.as_json(), self.answers))
        return blake2b(content.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _prompt_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if not row.get("prompt"):
        raise InputError(f"there is no prompt; it has {', '.join(map(str, row)) or 'nothing'}")
    return with_images(row["prompt"], images_of(row))


def _answers_of(recipe: PruneRecipe, counts: Counter[str]) -> dict[str, tuple[tuple[Message, ...], dict[str, str]]]:
    """Prompt → itself and its different answers, by what is seen of them."""
    found: dict[str, tuple[tuple[Message, ...], dict[str, str]]] = {}
    faults: list[str] = []
    for place, row in placed_rows(recipe.answers, recipe.hub_split, recipe.hub_name):
        try:
            prompt, given = _prompt_of(row), row.get("candidates")
            if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
                raise InputError(f"candidates must be a list of texts; got {given!r:.60}")
        except (ValueError, TypeError) as error:
            faults.append(f"{place}: {error}")
            continue
        _, mine = found.setdefault(prompt_key(prompt), (prompt, {}))
        for answer in map(final_answer, given):
            if is_degenerate(answer):
                counts["empty"] += 1
            elif visible(answer) in mine:
                counts["duplicate"] += 1
            elif len(mine) == MAX_GROUP:
                counts["too many"] += 1
            else:
                mine[visible(answer)] = answer
    _say(recipe.answers, faults)
    if not any(mine for _, mine in found.values()):
        raise InputError(f"{recipe.answers} has no row with a prompt and candidates that are not empty")
    return found


def _say(path: str, faults: Sequence[str]) -> None:
    if faults:
        print(f"{path}: {len(faults)} rows are left out; first {faults[0]}", file=sys.stderr)


def _graded(recipe: PruneRecipe, answers: Counter[str], rows: Counter[str]) -> list[Graded]:
    answered = _answers_of(recipe, answers)
    if recipe.rubric is not None:
        rubric = load_rubric(recipe.rubric)
        return [
            Graded(n, prompt, rubric, {}, tuple(mine.values())) for n, (prompt, mine) in enumerate(answered.values(), 1)
        ]
    assert recipe.rubrics is not None
    found: list[Graded] = []
    faults: list[str] = []
    for number, (place, row) in enumerate(placed_rows(recipe.rubrics), 1):
        try:
            prompt, rubric = _prompt_of(row), read_rubric(row.get(recipe.column), recipe.column)
            json.dumps(row)
        except (ValueError, TypeError) as error:
            rows["malformed"] += 1
            faults.append(f"{place}: {error}")
            continue
        _, mine = answered.get(prompt_key(prompt), (prompt, {}))
        found.append(Graded(number, prompt, rubric, row, tuple(mine.values())))
    _say(recipe.rubrics, faults)
    if not found:
        raise InputError(f"{recipe.rubrics} has no row with a prompt and a rubric")
    return found


# -- the whole ----------------------------------------------------------------------------------------------------------


def prune(recipe: PruneRecipe, out: Path, engine: Engine | None = None) -> dict[str, Any]:
    """Grade what is not graded yet, prune, and write.

    Args:
        recipe: what is pruned, by what.
        out: folder of the run.
        engine: of the judge, instead of building it.

    Returns:
        The report.

    Raises:
        ConfigError: if the folder holds a run with other settings or rows, or what would be overwritten.
        InputError: if there are no rubrics or no answers, or no criterion of a run's rubric tells answers apart.
        JudgeUnreliableError: if too many verdicts fail.
    """
    written = "rubrics.jsonl" if recipe.rubric is None else "rubric.yaml"
    not_overwritten(out, [written], recipe.rubric, recipe.rubrics, recipe.answers)
    dropped, rows = Counter[str](), Counter[str]()
    all_graded = _graded(recipe, dropped, rows)
    with ExitStack() as stack:
        progress = ResumableRows(out, recipe.of_rows())
        stack.callback(progress.close)
        asked = [one for one in all_graded if len(one.answers) > 1]
        left = progress.todo(all_graded, ", or its answers,")
        if todo := [one for one in left if len(one.answers) > 1]:
            config = grading(recipe.judge)
            cache = None if config.cache else ReplyCache(out / "replies.sqlite")
            judge = Judge(engine or config.build_engine(), settings=config, cache=cache)
            if engine is None:
                stack.callback(judge.engine.close)
            if judge.cache is not None:
                stack.callback(judge.cache.close)
            for batch in batches(todo, len(asked), recipe.batch, "prompts"):
                groups = [Group(one.prompt, one.answers, one.key, rubric=one.rubric) for one in batch]
                progress.add(
                    {"row": one.row, "key": one.key, "grades": grades, "again": unserved}
                    for one, (grades, unserved) in zip(batch, graded(judge, groups), strict=True)
                )
        return _finish(recipe, out, all_graded, progress.entries, dropped, rows)


def _finish(
    recipe: PruneRecipe,
    out: Path,
    all_graded: Sequence[Graded],
    entries: Mapping[int, Mapping[str, Any]],
    dropped: Counter[str],
    rows: Counter[str],
) -> dict[str, Any]:
    """Write all files from the grades; nothing else decides what is in them."""
    grades_of = [entries[one.row]["grades"] if one.row in entries else {} for one in all_graded]
    known = [grade for grades in grades_of for of_answers in grades.values() for grade in of_answers]
    report: dict[str, Any] = {
        "prompts": {"all": len(all_graded), "graded": sum(map(bool, grades_of))},
        "answers": {"kept": sum(len(one.answers) for one in all_graded), "dropped": dict(dropped.most_common())},
        "grades": {"asked": len(known), "unknown": known.count(None)},
    }
    counts: Counter[str] = Counter()
    if recipe.rubric is not None:
        rubric = all_graded[0].rubric
        reasons = _reasons(rubric, grades_of, recipe, recipe.min_prompts)
        counts.update(reasons.values())
        report["by criterion"] = reasons
        left = _left(rubric.criteria, reasons)
        (out / "rubric.yaml").unlink(missing_ok=True)  # of a run with another margin
        if left:
            write_text(out / "rubric.yaml", _yaml(left))
    else:
        made = []
        for one, grades in zip(all_graded, grades_of, strict=True):
            reasons = _reasons(one.rubric, [grades], recipe, 1)
            counts.update(reasons.values())
            if (row := _row(one, reasons, recipe)) is not None:
                made.append(row)
            else:
                rows["no criterion left"] += 1
        report["rows"] = {
            "all": len(all_graded) + rows["malformed"], "written": len(made), "dropped": dict(rows.most_common()),
        }  # fmt: skip
        write_lines(out / "rubrics.jsonl", made)
    stays = {reason: counts.pop(reason) for reason in (TELLS, UNKNOWN, ESSENTIAL) if counts[reason]}
    report["criteria"] = {
        "all": sum(stays.values()) + counts.total(), "kept": stays, "pruned": dict(counts.most_common()),
    }  # fmt: skip
    again = sum(entries[one.row]["again"] for one in all_graded if one.row in entries)
    report["failed for the moment"] = again
    write_report(out, report)
    if again:
        print(f"{again} prompts failed for the moment; the same command asks for them again")
    if recipe.rubric is not None and not left:
        raise InputError(
            f"no criterion of {recipe.rubric} tells answers apart: {report['by criterion']}; nothing is left"
        )
    return report


def _reasons(
    rubric: Rubric, grades_of: Sequence[Mapping[str, Known]], recipe: PruneRecipe, min_prompts: int
) -> dict[str, str]:
    """Criterion → why it stays or goes."""
    reasons: dict[str, str] = {}
    for one in rubric.criteria:
        reason = decided(
            [grades.get(one.name, ()) for grades in grades_of], recipe.margin, recipe.min_answers, min_prompts
        )
        reasons[one.name] = ESSENTIAL if one.essential and reason not in (TELLS, UNKNOWN) else reason
    return reasons


def _left(criteria: Sequence[Criterion], reasons: Mapping[str, str]) -> list[Criterion]:
    return [one for one in criteria if reasons[one.name] in (TELLS, UNKNOWN, ESSENTIAL)]


def _row(one: Graded, reasons: Mapping[str, str], recipe: PruneRecipe) -> dict[str, Any] | None:
    """A row as it came, but for the criteria that are gone and a word of where they went; None if none is left."""
    left = _left(one.rubric.criteria, reasons)
    if not left:
        return None
    rubric: Any = one.columns[recipe.column]
    if isinstance(rubric, list):
        rubric = [entry for entry, own in zip(rubric, one.rubric.criteria, strict=True) if own in left]
    elif len(left) < len(one.rubric.criteria):
        rubric = Rubric(tuple(left)).as_json() if isinstance(rubric, str) else [kept.as_dict() for kept in left]
    before = one.columns.get("provenance")
    provenance = (dict(before) if isinstance(before, Mapping) else {}) | {
        "pruned": [f"{own.name}: {reasons[own.name]}" for own in one.rubric.criteria if own not in left],
        "pruned by": {"answers": recipe.answers, "judge": grading(recipe.judge).model},
    }
    return {**one.columns, recipe.column: rubric, "provenance": provenance}


class _WordDumper(yaml.SafeDumper):
    """Puts quotes where ``WordLoader`` would read something else than a text."""


_WordDumper.yaml_implicit_resolvers = WordLoader.yaml_implicit_resolvers


def _yaml(criteria: Sequence[Criterion]) -> str:
    values = {"criteria": [one.as_dict() for one in criteria]}
    return str(yaml.dump(values, Dumper=_WordDumper, sort_keys=False, allow_unicode=True, width=100))


def main() -> None:
    """Prune."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    args = parser.parse_args()
    try:
        prune(PruneRecipe(**read_config(args.config, args.overrides)), args.out)
    except MRJudgeError as error:
        raise SystemExit(f"prune_rubrics: {error}") from error


if __name__ == "__main__":
    main()
