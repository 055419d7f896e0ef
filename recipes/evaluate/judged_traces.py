"""Let a judge reason about training items, several times each: traces to learn from, and how hard each item is for it.

    python -m recipes.evaluate.judged_traces recipes/evaluate/traces_flex.yaml --out runs/traces

================  ===================================================================================================
file in ``--out``  what
================  ===================================================================================================
``traces.jsonl``  a line per reply: ``messages``, ``trace``, ``verdict``, ``gold``, ``format``, ``slots``, ``judge``,
                  ``task``, ``accuracy``: for ``mode: curate`` of ``data/synthesize.py``, which keeps the right ones
``items.jsonl``   a line per item: ``prompt``, ``candidates``, ``gold``, ``domain``, ``accuracy`` (mean over its replies),
                  ``split``: for RL, as task source ``items``; its ``accuracy: [0, 0.75]`` takes what the judge got wrong
                  or is unsure of. Items without a better candidate, single texts among them, are left out and counted
================  ===================================================================================================

So a warm-up learns from right traces (rejection sampling), and RL from what is hard for the judge, as in UnifiedReward-Think
(arXiv 2505.03318) and R1-Reward (arXiv 2505.02835). A reply without a verdict is no trace, and counts as wrong. A request
that failed says nothing about its item: it is in neither file, and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field, PositiveInt

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice, PairScores, Ranking, Score
from mrjudge_reward.reasoning import THINK_CLOSE, THINK_OPEN
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import Grades, NoVerdict, Outcome, Preference, RankOrder, Tie, Verdict
from recipes.common.config import command_line, read_config
from recipes.common.resumable import write_lines, write_text
from recipes.data.judge_data import TaskConfig, asked_tasks, task_problems
from recipes.data.synthesis_rows import plain_messages
from recipes.judge.seeing_model import make_known

from .judge import ask


class TracesRecipe(Settings):
    """Who reasons, about what.

    Args:
        judge: settings of ``JudgeConfig``: the model, how it writes, and how it is asked where a task does not say.
        tasks: name → settings of ``TaskConfig``; of their training side.
        samples: replies to each problem.
    """

    judge: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = Field(min_length=1)
    samples: PositiveInt = 4


KINDS: dict[type, str] = {Choice: "choice", Ranking: "ranking", PairScores: "pair_scores", Score: "score"}
"""Formats that a trace's row can hold."""


def said(outcome: Outcome, form: Any) -> str | list[str] | None:
    """A verdict as it stands in a trace's row; None where there is none."""
    match outcome:
        case Preference(probabilities_K):
            return str(form.labels[probabilities_K.index(max(probabilities_K))].strip())
        case RankOrder(tiers):
            return " > ".join(" = ".join(form.labels[slot].strip() for slot in tier) for tier in tiers)
        case Grades(values_K):
            near = [min(form.grades, key=lambda grade: abs(grade[1] - value))[0].strip() for value in values_K]
            return near[0] if isinstance(form, Score) else near
        case Tie() if getattr(form, "tie_label", ""):
            return str(form.tie_label.strip())
    return None


def trace_row(judge: Judge, problem: Problem, verdict: Verdict, name: str, task: TaskConfig, images: Path) -> Any:
    """A line of ``traces.jsonl``, or None where the reply holds no reasoning or no verdict of its own."""
    form, slots = problem.format, len(problem.slots)
    thought, closed, _ = verdict.rationale.rpartition(THINK_CLOSE)
    reached, right = said(verdict.outcome, form), said(form.parse(problem.right(), slots), form)
    if not closed or verdict.opened or reached is None:
        return None
    return {
        "messages": plain_messages(judge.render(problem.item.group, problem.slots), images),
        "trace": thought.strip().removeprefix(THINK_OPEN).strip(),
        "verdict": reached, "gold": right, "format": KINDS[type(form)], "slots": slots, "judge": task.judge, "task": name,
        "accuracy": problem.accuracy(verdict.outcome),
    }  # fmt: skip


def item_row(item: Item, accuracies: Sequence[float], images: Path) -> dict[str, Any]:
    """A line of ``items.jsonl``; worths are laid on a scale from 0 to 1, and the side is the one that was asked about."""
    low, high = item.scale
    return {
        "key": item.group.key,
        "prompt": plain_messages(item.group.prompt, images),
        "candidates": list(item.group.candidates),
        "gold": [(worth - low) / (high - low) for worth in item.gold_G],
        "domain": item.domain,
        "accuracy": fmean(accuracies),
        "split": "train",
    }


def judged_traces(recipe: TracesRecipe, out: Path, engine: Engine | None = None) -> dict[str, Any]:
    """Ask, and write both files.

    Returns:
        How many replies and traces there are of each task, and how many replies were none for which reason; how many items
        are written, and how many left out.

    Raises:
        ConfigError: if the settings contradict each other, or a task names no format, or one that no row can hold.
        InputError: if no request was answered.
    """
    tasks = asked_tasks(recipe.tasks, recipe.judge)
    for name, task in tasks.items():
        if type(task.build_format()) not in KINDS:
            raise ConfigError(
                f"task {name!r}: traces are of {', '.join(KINDS.values())}; got {task.judge.get('format')!r}"
            )
    configs = {name: JudgeConfig(**{**recipe.judge, **task.judge}) for name, task in tasks.items()}
    base = JudgeConfig(**recipe.judge)
    make_known(base.model)
    shared = engine if engine is not None else base.build_engine()
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"judge": shared.identity, "tasks": {}}
    traces: list[Any] = []
    items: dict[str, tuple[Item, list[float]]] = {}
    try:
        for name, task in tasks.items():
            judge = configs[name].build(shared)
            counts: Counter[str] = Counter()
            before = len(traces)
            for one in ask(judge, task_problems(task, "train"), recipe.samples):
                for verdict in one.verdicts:
                    outcome = verdict.outcome
                    counts["replies"] += 1
                    if isinstance(outcome, NoVerdict):
                        counts[outcome.reason] += 1
                        if not verdict.rationale.strip():  # not served, or with nothing
                            continue
                    item = one.problem.item
                    items.setdefault(item.group.key, (item, []))[1].append(one.problem.accuracy(outcome))
                    row = trace_row(judge, one.problem, verdict, name, task, out / "images")
                    traces += [] if row is None else [row]
            report["tasks"][name] = {**counts, "traces": len(traces) - before}
            print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in report["tasks"][name].items()), flush=True)
            if judge.cache is not None:
                judge.cache.close()
    finally:
        if engine is None:
            shared.close()
    if not items:
        raise InputError(f"no request was answered: {report['tasks']}")
    kept = [(item, accuracies) for item, accuracies in items.values() if len(set(item.gold_G)) > 1]
    report |= {"items": len(kept), "items without a better candidate": len(items) - len(kept)}
    print(f"items {len(kept)}, and left out without a better candidate {len(items) - len(kept)}")
    write_lines(out / "traces.jsonl", traces)
    write_lines(out / "items.jsonl", [item_row(item, accuracies, out / "images") for item, accuracies in kept])
    write_text(out / "report.json", json.dumps(report, indent=2))
    return report


def main() -> None:
    """Read the config, ask and write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    args = parser.parse_args()
    judged_traces(TracesRecipe(**read_config(args.config, args.overrides)), args.out)


if __name__ == "__main__":
    main()
