"""Measure a judge: how often it is right, in one order and in both, how steady, how calibrated; failures count as wrong.

    python -m recipes.evaluate.judge recipes/evaluate/eval_cpu.yaml --out runs/eval
    python -m recipes.evaluate.judge CONFIG --set judge.adapter=runs/judge-sft --out runs/eval-sft

Writes ``report.json``, ``report.md`` and, with matplotlib, plots. With ``judge.cache`` set, an interrupted run goes on where
it was. Every share has a 95 % interval from a bootstrap over items, because the two orders of a pair stand or fall together.

==============  =====================================================================================================
accuracy        mean accuracy over all problems (``mrjudge_reward.training.tasks``); a failed verdict is worth 0
chance          the same for a judge that guesses
both            share of selections that are right in every order shown
averaged        right when the soft verdicts of all orders are averaged (read verdicts of ``choice``, and no others)
consistency     share of selections whose orders find the same candidates the best; a failure is inconsistent
order           share of an item's pairs in the right order when its candidates are graded alone; a tie is wrong
macro F1        over the labels, of ``choice`` and of ``score`` with two grades
failed, ties    share of verdicts
blanked,        of tasks whose prompts hold pictures: accuracy (or order) with each painted over, with another item's, and
swapped, seen   itself less blanked; a judge for which that is not above 0 is said not to look (``image_ablation.py``)
tokens          written for a verdict, reasoning included, on average; where a judge writes
votes k         accuracy of the majority, and of the averaged verdict, of the first k of several samples of ``choice``
==============  =====================================================================================================
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from mrjudge_reward.engines.contract import Engine
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.judge import Judge, JudgeConfig
from mrjudge_reward.prompting.formats import Choice, Score
from mrjudge_reward.scoring.stats import is_tie
from mrjudge_reward.scoring.tally import favoured
from mrjudge_reward.settings import Settings
from mrjudge_reward.training.tasks import Problem, Split
from mrjudge_reward.types import Comparison, Grades, JudgedComparison, NoVerdict, Outcome, Preference, Verdict
from recipes.common.config import command_line, read_config
from recipes.common.intervals import Interval, interval, written
from recipes.data.judge_data import asked_tasks, task_problems
from recipes.judge.seeing_model import make_known

from .image_ablation import ablation, blindness, shows_images


class EvaluationRecipe(Settings):
    """What is measured, on what.

    Args:
        judge: settings of ``JudgeConfig``: the model, how verdicts are taken, and how it is asked where a task does
            not say.
        tasks: name → settings of ``TaskConfig``.
        split: ``dev`` to choose, ``test`` to report.
        votes: numbers of votes to report; more than one needs verdicts that are sampled.
        image_ablation: ask what shows pictures also with them blanked and swapped, which takes three times as long.
        resamples: of the bootstrap.
        seed: of the bootstrap, and of the pictures that are swapped.
    """

    judge: dict[str, Any] = Field(default_factory=dict)
    tasks: dict[str, dict[str, Any]]
    split: str = "test"
    votes: list[PositiveInt] = Field(default_factory=lambda: [1])
    image_ablation: bool = True
    resamples: PositiveInt = 2000
    seed: int = 0


@dataclass(frozen=True)
class Answered:
    """A problem and the judge's verdicts on it, one per vote."""

    problem: Problem
    verdicts: tuple[Verdict, ...]

    @property
    def outcome(self) -> Outcome:
        """Of the first vote."""
        return self.verdicts[0].outcome


def ask(judge: Judge, problems: Sequence[Problem], votes: int) -> list[Answered]:
    """The judge's verdicts, all in one batch."""
    verdicts = judge.compare([(e.item.group, Comparison(e.slots, vote)) for e in problems for vote in range(votes)])
    return [Answered(e, tuple(verdicts[i * votes : (i + 1) * votes])) for i, e in enumerate(problems)]


def accuracies(answered: Sequence[Answered]) -> list[list[float]]:
    """How right first votes are, by item: accuracy, or the pairs in the right order where candidates are graded alone."""
    if answered[0].problem.format.max_slots == 1 and (in_order := pairs_in_order(answered)):
        return in_order
    return by_item(answered, lambda one: one.problem.accuracy(one.outcome))


# -- measures ---------------------------------------------------------------------------------------------------------


def by_item(answered: Sequence[Answered], value: Callable[[Answered], float]) -> list[list[float]]:
    """Values grouped by item."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in answered:
        found[one.problem.item.group.key].append(value(one))
    return list(found.values())


def named(one: Answered) -> frozenset[int] | None:
    """The candidates that a verdict finds the best, whatever their slots: none where all are tied; None for a failure."""
    if isinstance(one.outcome, NoVerdict):
        return None
    return frozenset(one.problem.slots[slot] for slot in favoured(one.outcome))


def twin_sets(answered: Sequence[Answered]) -> list[list[Answered]]:
    """Selections that were shown in several orders."""
    found: dict[Any, list[Answered]] = defaultdict(list)
    for one in answered:
        found[one.problem.twins].append(one)
    return [twins for twins in found.values() if len(twins) > 1 and len(twins[0].problem.slots) > 1]


def averaged_is_right(twins: Sequence[Answered]) -> float:
    """Whether the candidate with the highest mean probability over the orders is a best one."""
    total: Counter[int] = Counter()
    for one in twins:
        if not isinstance(one.outcome, Preference):
            return 0.0
        for slot, value in zip(one.problem.slots, one.outcome.probabilities_K, strict=True):
            total[slot] += value  # type: ignore[assignment]
    gold = twins[0].problem.item.gold_G
    best = [slot for slot, value in total.items() if value == max(total.values())]
    return float(len(best) == 1 and gold[best[0]] == max(gold[slot] for slot in total))


def pairs_in_order(answered: Sequence[Answered]) -> list[list[float]]:
    """Per item, for each pair of candidates of different worth that were graded alone, whether their grades agree."""
    graded: dict[str, list[tuple[float, float | None]]] = defaultdict(list)
    for one in answered:
        outcome = one.outcome
        value = outcome.values_K[0] if isinstance(outcome, Grades) else None
        graded[one.problem.item.group.key].append((one.problem.gold_K[0], value))
    rows = []
    for grades in graded.values():
        pairs = [(a, b) for i, a in enumerate(grades) for b in grades[i + 1 :] if a[0] != b[0]]
        rows.append([float(x is not None and y is not None and (x - y) * (v - w) > 0) for (v, x), (w, y) in pairs])
    return [row for row in rows if row]


def macro_f1(answered: Sequence[Answered]) -> float | None:
    """Over the labels that are right somewhere; None where a verdict is no single label."""
    form = answered[0].problem.format
    if not (isinstance(form, Choice) or (isinstance(form, Score) and len(form.grades) == 2)):
        return None
    truth, said = [one.problem.right() for one in answered], [label_of(one) for one in answered]
    scores = []
    for label in sorted(set(truth)):
        hits = sum(t == s == label for t, s in zip(truth, said, strict=True))
        scores.append(2 * hits / (truth.count(label) + said.count(label)))
    return fmean(scores)


def label_of(one: Answered) -> str:
    """The verdict as the judge would write it; empty for none."""
    form, outcome = one.problem.format, one.outcome
    if isinstance(outcome, Preference) and isinstance(form, Choice):
        text = form.labels[int(np.argmax(outcome.probabilities_K))]
    elif isinstance(outcome, Grades) and isinstance(form, Score):
        text = min(form.grades, key=lambda grade: abs(grade[1] - outcome.values_K[0]))[0]
    else:
        return ""
    return f"{form.answer_open}{text}{form.answer_close}"


def voted(one: Answered, count: int, averaged: bool) -> float:
    """Accuracy of the first votes together; a failed vote is none, and no vote at all is wrong."""
    found = [v.outcome.probabilities_K for v in one.verdicts[:count] if isinstance(v.outcome, Preference)]
    if not found:
        return 0.0
    votes = np.array(found)
    if not averaged:
        votes = (votes == votes.max(axis=1, keepdims=True)).astype(float)
    return one.problem.accuracy(Preference(tuple(float(value) for value in votes.mean(axis=0)), soft=True))


def measures(answered: Sequence[Answered], votes: Sequence[int], resamples: int, seed: int) -> dict[str, Any]:
    """All measures of a task; those that do not apply are left out."""

    def share(values: Sequence[Sequence[float]]) -> Interval:
        return interval(values, resamples, seed)

    row: dict[str, Any] = {
        "problems": len(answered),
        "items": len({one.problem.item.group.key for one in answered}),
        "accuracy": share(by_item(answered, lambda one: one.problem.accuracy(one.outcome))),
        "chance": fmean(one.problem.chance for one in answered),
        "failed": fmean(isinstance(one.outcome, NoVerdict) for one in answered),
        "ties": fmean(is_tie(JudgedComparison(Comparison(one.problem.slots), one.verdicts[0])) for one in answered),
    }
    spent = [count for one in answered if (count := one.verdicts[0].usage.completion_tokens)]  # none where not served
    if max(spent, default=0) > 1:  # one is a label that was read
        row["tokens"] = fmean(spent)
    twins = twin_sets(answered)
    if twins:
        row["both"] = share([[float(all(o.problem.accuracy(o.outcome) == 1 for o in pair))] for pair in twins])
        winners = [{named(one) for one in pair} for pair in twins]
        row["consistency"] = share([[float(None not in w and len(w) == 1)] for w in winners])
        if all(isinstance(one.outcome, Preference | NoVerdict) for one in answered):
            if any(isinstance(one.outcome, Preference) and one.outcome.soft for one in answered):
                row["averaged"] = share([[averaged_is_right(pair)] for pair in twins])
            first = [
                one.problem.slots[0] in best for pair in twins for one in pair if len(best := named(one) or ()) == 1
            ]
            row["first slot"] = fmean(first) if first else None
    if answered[0].problem.format.max_slots == 1 and (in_order := pairs_in_order(answered)):
        row["order"] = share(in_order)
    if (f1 := macro_f1(answered)) is not None:
        row["macro F1"] = f1
    if len(answered[0].verdicts) > 1 and isinstance(answered[0].problem.format, Choice):
        for count in votes:
            row[f"majority of {count}"] = share(by_item(answered, lambda one, k=count: voted(one, k, False)))  # type: ignore[misc]
            row[f"average of {count}"] = share(by_item(answered, lambda one, k=count: voted(one, k, True)))  # type: ignore[misc]
    return row


# -- what plots need ----------------------------------------------------------------------------------------------------


def calibration(answered: Sequence[Answered], bins: int = 10) -> list[dict[str, float]]:
    """Of soft choices: how sure, how often right, how many, by how sure."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in answered:
        if isinstance(one.outcome, Preference) and one.outcome.soft:
            sure = max(one.outcome.probabilities_K)
            found[min(bins - 1, int(sure * bins))].append((sure, one.problem.accuracy(one.outcome)))
    return [
        {"sure": fmean(s for s, _ in pairs), "right": fmean(r for _, r in pairs), "count": len(pairs)}
        for _, pairs in sorted(found.items())
    ]


def by_gap(answered: Sequence[Answered], bins: int = 5) -> list[dict[str, float]]:
    """Accuracy of choices by how far the best candidate is ahead of the next."""
    rows = []
    for one in answered:
        worth = sorted(one.problem.gold_K)
        if len(worth) > 1:
            rows.append((worth[-1] - worth[-2], one.problem.accuracy(one.outcome)))
    rows.sort()
    parts = [rows[i * len(rows) // bins : (i + 1) * len(rows) // bins] for i in range(bins)]
    return [{"gap": fmean(g for g, _ in p), "right": fmean(r for _, r in p), "count": len(p)} for p in parts if p]


def plot(report: Mapping[str, Any], folder: Path) -> None:
    """Three pictures, each over all tasks that have it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, x, title in (
        ("gaps", "gap", "right by rating gap"),
        ("calibration", "sure", "right by how sure"),
    ):
        figure, axes = pyplot.subplots(figsize=(5, 4))
        for task, row in report["tasks"].items():
            if row[name]:
                axes.plot(
                    [point[x] for point in row[name]], [point["right"] for point in row[name]], marker="o", label=task
                )
        if name == "calibration":
            axes.plot([0.4, 1], [0.4, 1], linestyle=":", color="grey")
        axes.set(xlabel=x, ylabel="share right", title=title, ylim=(0, 1.02))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)
    first = {task: row["first slot"] for task, row in report["tasks"].items() if row.get("first slot") is not None}
    figure, axes = pyplot.subplots(figsize=(5, 4))
    axes.barh(list(first), list(first.values()))
    axes.axvline(0.5, linestyle=":", color="grey")
    axes.set(xlabel="share of choices for the first slot (two slots: .5 is fair)", title="position bias", xlim=(0, 1))
    figure.tight_layout()
    figure.savefig(folder / "position.png", dpi=120)
    pyplot.close(figure)


# -- reports ----------------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """One row per task."""
    hidden = {"gaps", "calibration", "per_item"}
    names = list(dict.fromkeys(name for row in report["tasks"].values() for name in row if name not in hidden))
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {task} | {' | '.join(written(row.get(name)) for name in names)} |" for task, row in report["tasks"].items()
    ]
    blind = [f"* **{task}**: {said}." for task, row in report["tasks"].items() if (said := blindness(row))]
    return "\n".join(
        [f"Judge: `{report['judge']}`, {report['split']} split", "", *lines, "", *([*blind, ""] if blind else [])]
    )


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.json``, in which null stands for what is no number, and ``report.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    finite = json.loads(json.dumps(report), parse_constant=lambda _: None)
    (folder / "report.json").write_text(json.dumps(finite, indent=2), encoding="utf-8")
    (folder / "report.md").write_text(markdown(report), encoding="utf-8")


def evaluate(recipe: EvaluationRecipe, engine: Engine | None = None) -> dict[str, Any]:
    """Measure a judge on all tasks.

    Raises:
        ConfigError: if the settings contradict each other, or nobody names the format of a task.
    """
    if recipe.split not in ("dev", "test"):
        raise ConfigError(f"a judge is measured on dev or test; got {recipe.split!r}")
    split: Split = "dev" if recipe.split == "dev" else "test"
    tasks = asked_tasks(recipe.tasks, recipe.judge)
    configs = {name: JudgeConfig(**{**recipe.judge, **task.judge}) for name, task in tasks.items()}
    base = JudgeConfig(**recipe.judge)
    make_known(base.model)
    shared = engine if engine is not None else base.build_engine()
    report: dict[str, Any] = {"judge": shared.identity, "split": split, "tasks": {}}
    try:
        for name, task in tasks.items():
            judge = configs[name].build(shared)
            asked = task_problems(task, split)
            answered = ask(judge, asked, max(recipe.votes))
            row = measures(answered, recipe.votes, recipe.resamples, recipe.seed)
            if recipe.image_ablation and shows_images(asked):
                row |= ablation(
                    asked,
                    accuracies(answered),
                    lambda others, judge=judge: accuracies(ask(judge, others, 1)),  # type: ignore[misc]
                    lambda values: interval(values, recipe.resamples, recipe.seed),
                    recipe.seed,
                )
            report["tasks"][name] = row | {"gaps": by_gap(answered), "calibration": calibration(answered)}
            if judge.cache is not None:
                judge.cache.close()
            print(f"{name}: " + ", ".join(f"{key} {written(value)}" for key, value in row.items()), flush=True)
            if said := blindness(row):
                print(f"{name}: {said}", flush=True)
    finally:
        if engine is None:
            shared.close()
    return report


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    report = evaluate(EvaluationRecipe(**read_config(args.config, args.overrides)))
    folder = Path(args.out)
    write_report(report, folder)
    try:
        plot(report, folder)
    except ImportError:
        print("no plots: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    main()
