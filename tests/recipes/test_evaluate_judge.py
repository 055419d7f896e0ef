"""Measuring a judge: figures that are known in advance for judges whose faults are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine, shown_candidates
from mrjudge_reward.errors import ConfigError
from mrjudge_reward.types import EngineFailure, Request
from recipes.data.reviews import load_reviews
from recipes.evaluate.judge import EvaluationRecipe, evaluate
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

PAIRS = {"source": "film reviews", "judge": {"format": "choice"}, "eval_count": 40, "both_orders": True}

PICKS: dict[str, Any] = {"best": max, "worst": min}


@pytest.fixture
def ratings() -> dict[str, float]:
    return {review.text: review.rating for review in load_reviews()}


def evaluated(script: Callable[[Request], Any], task: Any = PAIRS, **recipe: Any) -> dict[str, Any]:
    settings = {
        "judge": {"model": "scripted", "verdict": "logprobs"},
        "tasks": {"task": task},
        "resamples": 200,
        **recipe,
    }
    report = evaluate(EvaluationRecipe(**settings), ScriptedEngine(script))
    return dict(report["tasks"]["task"])


def sure_of(best: Callable[[dict[str, str]], str], p: float = 0.9) -> Callable[[Request], dict[str, float]]:
    def script(request: Request) -> dict[str, float]:
        label = best(shown_candidates(request))
        return {other: p if other == label else (1 - p) / (len(request.labels) - 1) for other in request.labels}

    return script


def test_a_judge_that_knows_is_right_everywhere(ratings: dict[str, float]):
    row = evaluated(sure_of(lambda shown: max(shown, key=lambda label: ratings[shown[label]])))
    for name in ("accuracy", "both", "averaged", "consistency"):
        assert row[name] == (1.0, 1.0, 1.0), name
    assert (row["macro F1"], row["failed"], row["ties"], row["chance"]) == (1.0, 0.0, 0.0, 0.5)
    assert row["first slot"] == 0.5
    assert (row["items"], row["problems"]) == (40, 80)
    assert row["calibration"] == [{"sure": pytest.approx(0.9), "right": 1.0, "count": 80}]
    assert sum(point["count"] for point in row["gaps"]) == 80


def test_a_judge_that_always_takes_the_first_slot_is_right_half_the_time_and_never_in_both_orders():
    row = evaluated(sure_of(lambda shown: min(shown)))
    assert row["accuracy"][0] == 0.5
    assert row["accuracy"][1:] == (0.5, 0.5), "the two orders of a pair stand or fall together"
    assert row["both"][0] == row["consistency"][0] == row["averaged"][0] == 0.0
    assert row["first slot"] == 1.0
    assert row["macro F1"] == pytest.approx(1 / 3), "2/3 for the first label, 0 for the other"


ORDERS: dict[str, dict[str, Any]] = {
    "choice": {"format": "choice"},
    "numbers": {"format": "choice", "labels": ["1", "2", "3"]},
    "ties": {"format": "choice", "tie_label": "T"},
    "ranking": {"format": "ranking"},
    "grades": {"format": "pair_scores"},
    "few grades": {"format": "pair_scores", "grades": {"bad": 0, "fair": 1, "good": 2}},
}


def written(form: dict[str, Any], shown: dict[str, str], worth: Callable[[str], float]) -> str:
    """A verdict on what is shown, by what each is worth to the judge."""
    worths = {label: worth(text) for label, text in shown.items()}
    order = sorted(worths, key=lambda label: -worths[label])
    if form["format"] == "pair_scores":
        grades = list(form.get("grades", range(1, 11)))[::-1]
        ranks = sorted(set(worths.values()), reverse=True)
        return "".join(f"<answer>{grades[ranks.index(worths[label])]}</answer>" for label in shown)
    tied = len(set(worths.values())) == 1
    if form["format"] == "choice":
        return f"<answer>{'T' if tied else order[0]}</answer>"
    return f"<answer>{(' = ' if tied else ' > ').join(order)}</answer>"


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ORDERS)
def test_written_verdicts_are_consistent_where_they_find_the_same_candidate_the_best(
    name: str, size: int, ratings: dict[str, float]
):
    judge = {"model": "scripted", "verdict": "generate", "retries": 0, "max_failed_fraction": 1.0}
    task = PAIRS | {"judge": ORDERS[name], "size": size, "gap": 0.5, "eval_count": 12}

    def row_of(worth: Callable[[str, dict[str, str]], float]) -> dict[str, Any]:
        def script(request: Request) -> str:
            shown = shown_candidates(request)
            return written(ORDERS[name], shown, lambda text: worth(text, shown))

        return evaluated(script, task, judge=judge)

    knows = row_of(lambda text, _: ratings[text])
    assert [knows[share][0] for share in ("accuracy", "both", "consistency")] == [1.0, 1.0, 1.0]
    wrong = row_of(lambda text, _: -ratings[text])
    assert (wrong["both"][0], wrong["consistency"][0]) == (0.0, 1.0), "wrong alike"
    slot = row_of(lambda text, shown: -list(shown.values()).index(text))
    assert slot["consistency"][0] == 0.0
    assert all("averaged" not in row for row in (knows, wrong, slot)), "of verdicts that are written it repeats both"
    assert (slot.get("first slot"), knows.get("first slot")) in ((1.0, pytest.approx(1 / 2, abs=0.3)), (None, None))
    if name not in ("choice", "numbers"):
        even = row_of(lambda text, _: 0.0)
        assert (even["ties"], even["consistency"][0], even["both"][0]) == (1.0, 1.0, 0.0), "a tie both ways agrees"


@pytest.mark.parametrize("name", [name for name in ORDERS if ORDERS[name]["format"] != "choice"])
def test_votes_are_counted_of_choices_alone(name: str, ratings: dict[str, float]):
    def script(request: Request) -> str:
        return written(ORDERS[name], shown_candidates(request), lambda text: ratings[text])

    judge = {"model": "scripted", "verdict": "generate", "temperature": 1.0}
    row = evaluated(script, PAIRS | {"judge": ORDERS[name], "eval_count": 6}, judge=judge, votes=[1, 3])
    assert row["accuracy"][0] == 1.0
    assert not [measure for measure in row if " of " in measure]


def test_a_failure_in_one_order_is_inconsistent_in_every_format(ratings: dict[str, float]):
    for form in ORDERS.values():
        asked: list[int] = []

        def script(request: Request, form: dict[str, Any] = form, asked: list[int] = asked) -> str:
            shown = shown_candidates(request)
            first = list(shown.values())
            fails = ratings[first[0]] < ratings[first[1]]
            asked.append(fails)
            return "I cannot say." if fails else written(form, shown, lambda text: ratings[text])

        judge = {"model": "scripted", "verdict": "generate", "retries": 0, "max_failed_fraction": 1.0}
        row = evaluated(script, PAIRS | {"judge": form, "eval_count": 8}, judge=judge)
        assert (row["failed"], row["consistency"][0]) == (0.5, 0.0)
        assert any(asked)


def test_a_judge_that_fails_is_wrong_and_stays_in_every_denominator(ratings: dict[str, float]):
    knows = sure_of(lambda shown: max(shown, key=lambda label: ratings[shown[label]]))

    def script(request: Request) -> Any:
        first = min(shown_candidates(request).values())
        return EngineFailure("http 500", transient=False) if hash_of(first) % 2 else knows(request)

    row = evaluated(script, judge={"model": "scripted", "verdict": "logprobs", "max_failed_fraction": 1.0})
    assert 0.2 < row["failed"] < 0.8
    assert row["accuracy"][0] == pytest.approx(1 - row["failed"])
    assert row["both"][0] == row["consistency"][0] == row["averaged"][0] == pytest.approx(1 - row["failed"])
    assert row["macro F1"] < 1
    low, high = row["accuracy"][1:]
    assert low < row["accuracy"][0] < high


def hash_of(text: str) -> int:
    return sum(text.encode())


def test_grades_given_alone_are_compared_and_a_tie_is_wrong(ratings: dict[str, float]):
    task = {"source": "film reviews", "judge": {"format": "sentiment"}, "eval_count": 30}

    def grade(request: Request) -> dict[str, float]:
        (text,) = shown_candidates(request).values()
        p = 0.5 + ratings[text] / 10
        return {" negative": 1 - p, " positive": p}

    assert evaluated(grade, task)["order"] == (1.0, 1.0, 1.0)
    row = evaluated(lambda _: {" negative": 0.5, " positive": 0.5}, task)
    assert row["order"][0] == 0.0
    assert "both" not in row
    assert "consistency" not in row


def test_more_votes_make_a_noisy_judge_better(ratings: dict[str, float]):
    def script(request: Request) -> str:
        shown = shown_candidates(request)
        best = max(shown, key=lambda label: ratings[shown[label]])
        noise = hash_of(f"{request.seed}{shown[best]}") % 10
        said = best if noise < 7 else next(label for label in shown if label != best)
        return f"<answer>{said}</answer>" if noise else "I cannot say."

    recipe = {
        "votes": [1, 3, 9],
        "judge": {"model": "scripted", "verdict": "generate", "temperature": 1.0, "retries": 0},
    }
    row = evaluated(script, PAIRS | {"eval_count": 100}, **recipe)
    assert row["majority of 9"][0] > row["majority of 3"][0] > row["majority of 1"][0]
    assert row["majority of 1"][0] == row["accuracy"][0]
    assert row["average of 9"] == row["majority of 9"], "sampled verdicts are one-hot"


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        ({"format": "choice"}, "<answer>{best}</answer>"),
        ({"format": "choice", "labels": ["1", "2"]}, "<answer>{best}</answer>"),
        ({"format": "ranking"}, "<answer>{best} > {worst}</answer>"),
        ({"format": "ranking", "labels": ["X", "Y"]}, "<answer>{best} > {worst}</answer>"),
    ],
)
def test_a_task_is_asked_as_the_recipes_judge_says_where_it_does_not(
    asked: dict[str, Any], reply: str, ratings: dict[str, float]
):
    def script(request: Request) -> str:
        shown = shown_candidates(request)
        return reply.format(
            **{name: best(shown, key=lambda label: ratings[shown[label]]) for name, best in PICKS.items()}
        )

    task = {"source": "film reviews", "eval_count": 10}
    judge = {"model": "scripted", "verdict": "generate"}
    row = evaluated(script, task, judge=judge | asked)
    assert (row["accuracy"][0], row["failed"], row["chance"]) == (1.0, 0.0, 0.5)
    with pytest.raises(ConfigError, match="task 'task' names no format"):
        evaluated(script, task, judge=judge)


def test_only_dev_and_test_are_measured():
    with pytest.raises(ConfigError, match="dev or test"):
        evaluated(sure_of(min), split="train")


def test_the_embedded_judge_is_measured_from_the_command_line(smol_path: str, tmp_path: Path):
    command = ["-m", "recipes.evaluate.judge", "recipes/evaluate/eval_cpu.yaml", "--out", str(tmp_path)]
    for task in ("film_pairs", "film_alone", "amazon_pairs", "amazon_alone"):
        command += ["--set", f"tasks.{task}.eval_count=4"]
    command += ["--set", "resamples=50", "--set", f"judge.cache={tmp_path / 'replies.sqlite'}"]
    for _ in range(2):
        done = run_python(*command)
        assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["tasks"]) == ["film_pairs", "film_alone", "amazon_pairs", "amazon_alone"]
    assert report["tasks"]["film_pairs"]["failed"] == 0
    table = (tmp_path / "report.md").read_text()
    assert "| film_pairs | 8 | 4 |" in table
    for name in ("gaps", "calibration", "position"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
