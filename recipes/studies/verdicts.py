"""What a judge makes of a wording: how often it answers as asked, how likely the labels are, how often it is right.

    python -m recipes.studies.verdicts recipes/studies/verdicts.yaml --out runs/verdicts
    python -m recipes.studies.verdicts CONFIG --set judge.model=NAME --set judge.base_url=URL --out DIR

Asks about pairs of which one is right, each in both orders (``score`` grades each alone), in every format, way to a verdict
and wording of the config that go together. An interrupted study goes on where it was.

===========  ========================================================================================================
failed       share of verdicts that are none, and why
mass         probability of the labels together, where they are read: the median
one          share of comparisons that are right
both         share of pairs that are right in both orders
decided      share of pairs that are right when both orders are put together; a tie is not
tied         share of pairs for which that is a tie: in bfloat16 many, because the two orders' reads are rounded
consistent   share of pairs whose orders name the same candidate; a failure or a tie is inconsistent
tokens       written per comparison
seconds      per comparison, of those asked together
===========  ========================================================================================================

Shares have 95 % intervals from a bootstrap over pairs. Writes ``report.json`` and ``report.md`` beside ``progress.jsonl``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import Field, PositiveInt

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import Item
from mrjudge_reward.types import Comparison, NoVerdict
from recipes.common.config import command_line, read_config
from recipes.common.intervals import interval, table
from recipes.common.resumable import write_text
from recipes.data.judge_data import TaskConfig, check_tasks, items

from .asking import finished, sides


class VerdictStudy(Settings):
    """What is asked, and how.

    Args:
        judge: settings of ``JudgeConfig`` that hold for all: the model and where it runs.
        formats: asked one after the other.
        verdicts: name → settings that say how verdicts are reached.
        wordings: name → format → template; a format that is not named has its own.
        tasks: name → settings of ``TaskConfig``, of pairs.
        split: ``dev`` to choose a wording, ``test`` to report one.
        chunk: pairs that are asked together, and kept.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    judge: dict[str, Any] = Field(default_factory=dict)
    formats: list[str] = Field(default_factory=lambda: ["choice"], min_length=1)
    verdicts: dict[str, dict[str, Any]] = Field(min_length=1)
    wordings: dict[str, dict[str, str]] = Field(default={"own": {}}, min_length=1)
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    split: str = "test"
    chunk: PositiveInt = 10
    resamples: PositiveInt = 2000
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    task: str
    format: str
    verdict: str
    wording: str


def cells_of(study: VerdictStudy) -> dict[Cell, JudgeConfig]:
    """Every row with its judge; what does not go together is left out, with a line that says why.

    Raises:
        ConfigError: if nothing is left.
    """
    found: dict[Cell, JudgeConfig] = {}
    for wording, templates in study.wordings.items():
        for form in study.formats:
            for verdict, how in study.verdicts.items():
                template = {"template": templates[form]} if form in templates else {}
                try:
                    config = JudgeConfig(**{**study.judge, **how, "format": form, **template})
                except ConfigError as error:
                    print(f"left out: {form}, {verdict}, {wording}: {error}", flush=True)
                    continue
                found |= {Cell(task, form, verdict, wording): config for task in study.tasks}
    if not found:
        raise ConfigError("no format goes with any way to a verdict")
    return found


def asked(judge: Judge, pairs: Sequence[Item]) -> dict[str, Any]:
    """What is kept of some pairs."""
    alone = judge.format.max_slots == 1
    orders = [Comparison((0,)), Comparison((1,))] if alone else [Comparison((0, 1)), Comparison((1, 0))]
    started = time.perf_counter()
    verdicts = judge.compare([(pair.group, order) for pair in pairs for order in orders])
    seconds = time.perf_counter() - started
    outcomes = [verdict.outcome for verdict in verdicts]
    right = [pair.gold_G[0] > pair.gold_G[1] for pair in pairs]
    return {
        "right": [
            [
                None if p is None else round(p if right[i] else 1 - p, 9)
                for p in sides(verdicts[2 * i : 2 * i + 2], orders)
            ]
            for i in range(len(pairs))
        ],
        "reasons": Counter(outcome.reason for outcome in outcomes if isinstance(outcome, NoVerdict)),
        "verdicts": len(verdicts),
        "masses": [verdict.label_mass for verdict in verdicts if verdict.label_mass is not None],
        "tokens": sum(verdict.usage.completion_tokens for verdict in verdicts),
        "seconds": seconds,
    }


def measures(entries: Sequence[Mapping[str, Any]], resamples: int, seed: int) -> dict[str, Any]:
    """A row of the table out of what was kept of it."""

    def share(values: Sequence[Sequence[bool]]) -> Any:
        return interval([[float(value) for value in row] for row in values], resamples, seed)

    pairs: list[list[float | None]] = [pair for entry in entries for pair in entry["right"]]
    masses = [mass for entry in entries for mass in entry["masses"]]
    count = sum(entry["verdicts"] for entry in entries)
    reasons = sum((Counter(entry["reasons"]) for entry in entries), Counter[str]())
    known = [[p for p in pair if p is not None] for pair in pairs]
    row: dict[str, Any] = {
        "pairs": len(pairs),
        "failed": sum(reasons.values()) / count,
        "why": ", ".join(f"{reason} {number}" for reason, number in reasons.most_common()) or None,
        "mass": median(masses) if masses else None,
        "one": share([[p is not None and p > 0.5 for p in pair] for pair in pairs]),
    }
    if len(pairs[0]) > 1:
        row["both"] = share([[all(p is not None and p > 0.5 for p in pair)] for pair in pairs])
        row["decided"] = share([[bool(found) and fmean(found) > 0.5] for found in known])
        row["tied"] = fmean(bool(found) and round(fmean(found), 8) == 0.5 for found in known)
        agree = [[len(found) == 2 and (found[0] - 0.5) * (found[1] - 0.5) > 0] for found in known]
        row["consistent"] = share(agree)
    return row | {
        "tokens": sum(entry["tokens"] for entry in entries) / count,
        "seconds": sum(entry["seconds"] for entry in entries) / count,
    }


def run(study: VerdictStudy, folder: Path, engine: Engine | None = None) -> dict[str, Any]:
    """Ask what is left to ask, and report on all of it.

    Args:
        study: what is asked.
        folder: of the finished rows.
        engine: use this one instead of building it.

    Raises:
        ConfigError: if the settings contradict each other or those of the folder, or a task has no pairs.
    """
    if study.split not in ("dev", "test"):
        raise ConfigError(f"wordings are measured on dev or test; got {study.split!r}")
    tasks = {name: TaskConfig(**values) for name, values in study.tasks.items()}
    check_tasks(tasks)
    if odd := [name for name, task in tasks.items() if task.size != 2]:
        raise ConfigError(f"task {odd[0]!r} has other items than pairs: leave its size at 2")
    cells = cells_of(study)
    pairs: dict[str, list[Item]] = {}
    for name, task in tasks.items():
        found = items(task, "dev" if study.split == "dev" else "test")
        pairs[name] = [item for item in found if item.gold_G[0] != item.gold_G[1]]
    chunks = [
        (cell, pairs[cell.task][first : first + study.chunk])
        for cell in cells
        for first in range(0, len(pairs[cell.task]), study.chunk)
    ]

    def ask(shared: Engine, number: int) -> dict[str, Any]:
        cell, some = chunks[number]
        return asked(cells[cell].build(shared), some)

    kept = finished(study, folder, len(chunks), engine, next(iter(cells.values())).build_engine, ask)
    entries = [(cell, entry) for (cell, _), entry in zip(chunks, kept, strict=True)]
    rows = [
        {**vars(cell), **measures([entry for one, entry in entries if one == cell], study.resamples, study.seed)}
        for cell in cells
    ]
    return {"judge": str(study.judge.get("model", "embedded")), "split": study.split, "rows": rows}


def markdown(report: Mapping[str, Any]) -> str:
    """The table."""
    return "\n".join([f"Judge: `{report['judge']}`, {report['split']} split", "", *table(report["rows"]), ""])


def main() -> None:
    """Ask, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    folder = Path(args.out)
    report = run(VerdictStudy(**read_config(args.config, args.overrides)), folder)
    write_text(folder / "report.json", json.dumps(report, indent=2))
    write_text(folder / "report.md", markdown(report))
    print(markdown(report), flush=True)


if __name__ == "__main__":
    main()
