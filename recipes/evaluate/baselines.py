"""What a judge of rated texts is to be measured against: people, and methods that need no judge.

    python -m recipes.evaluate.baselines recipes/evaluate/eval_cpu.yaml --train recipes/judge/sft_cpu.yaml --out DIR

For every task of the first config that asks about several rated texts at once:

=============  ======================================================================================================
single rater   one person's ratings of the texts, against the mean of the others (``reviews.rater_agreement``): what one
               human would get, ties decided by a coin
panel of 5     the same with the mean of five people: how sure the gold itself is
longer         the longer text is the better one; equal lengths are half right
TF-IDF         logistic regression on the difference of two texts' TF-IDF vectors (words and pairs of words), trained on
               the pairs of all tasks of the second config on texts of the training split
=============  ======================================================================================================

None of them depends on an order, so what is right is right in both. Intervals as in ``judge.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrjudge_reward.errors import InputError, require
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import Split
from recipes.common.config import read_config
from recipes.common.intervals import interval, written
from recipes.data.judge_data import TaskConfig, check_tasks, items
from recipes.data.reviews import DOMAINS, rater_agreement, ratings_of
from recipes.judge.train_sft import SFTRecipe

from .judge import EvaluationRecipe

Grader = Callable[[Sequence[str]], list[float]]
"""A number for each text, higher is better."""


def rated(tasks: Mapping[str, TaskConfig]) -> dict[str, TaskConfig]:
    """Tasks that compare rated texts."""
    return {name: task for name, task in tasks.items() if task.source in DOMAINS and task.size > 1}


def share_right(found: Sequence[Item], grade: Grader) -> list[list[float]]:
    """Per item, whether the best text has the highest grade; one of several that share it counts its part."""
    rows = []
    for item in found:
        grades = grade(item.group.candidates)
        best = [place for place, value in enumerate(grades) if value == max(grades)]
        rows.append([sum(item.gold_G[place] == max(item.gold_G) for place in best) / len(best)])
    return rows


def tfidf(trained_on: Sequence[Item]) -> Grader:
    """A pair classifier: linear, without intercept, so that it grades each text by itself.

    Raises:
        InputError: if there is no pair.
    """
    pairs = [(item.group.candidates, item.gold_G) for item in trained_on if len(item.gold_G) == 2]
    if not pairs:
        raise InputError("the training config has no pairs of rated texts")
    text, linear, sparse = (
        require(module, extra="dev")
        for module in ("sklearn.feature_extraction.text", "sklearn.linear_model", "scipy.sparse")
    )
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+(?:'\w+)?\b|[!?]")
    vectors.fit([one for texts, _ in pairs for one in texts])
    first, second = (vectors.transform([texts[place] for texts, _ in pairs]) for place in (0, 1))
    wins = np.array([gold[0] > gold[1] for _, gold in pairs])
    model = linear.LogisticRegression(C=10.0, fit_intercept=False, max_iter=1000)
    model.fit(sparse.vstack([first - second, second - first]), np.concatenate([wins, ~wins]))
    return lambda texts: [float(value) for value in vectors.transform(texts) @ model.coef_[0]]


def baselines(evaluation: EvaluationRecipe, training: SFTRecipe) -> dict[str, dict[str, Any]]:
    """Task → baseline → accuracy with its interval."""
    tasks = {name: TaskConfig(**values) for name, values in evaluation.tasks.items()}
    learned = {name: TaskConfig(**values) for name, values in training.tasks.items()}
    check_tasks(tasks | {f"training {name}": task for name, task in learned.items()})
    split: Split = "dev" if evaluation.split == "dev" else "test"
    grader = tfidf([item for task in rated(learned).values() for item in items(task, "train")])
    report: dict[str, dict[str, Any]] = {}
    for name, task in rated(tasks).items():
        found, raters = items(task, split), ratings_of(task.source)
        row: dict[str, Any] = {"items": len(found)}
        for who, panel in (("single rater", 1), ("panel of 5", 5)):
            row[who] = rater_agreement(found, raters, panel=panel).chosen
        for who, grade in (("longer", lambda texts: [float(len(text)) for text in texts]), ("TF-IDF", grader)):
            row[who] = interval(share_right(found, grade), evaluation.resamples, evaluation.seed)
        report[name] = row
        print(f"{name}: " + ", ".join(f"{key} {written(value)}" for key, value in row.items()), flush=True)
    return report


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="as of recipes.evaluate.judge")
    parser.add_argument("--train", required=True, help="config of recipes.judge.train_sft")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    evaluation = EvaluationRecipe(**read_config(args.config, args.overrides))
    report = baselines(evaluation, SFTRecipe(**read_config(args.train)))
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
