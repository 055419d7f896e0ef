"""Recipes run: a few steps of each, on real data."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.judge import Judge
from recipes.data.reviews import load_reviews, openings
from recipes.policy import demo, step_table
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")


def trained(out: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The log of a small run of the demo, and what it printed."""
    small = ("--num-generations", "4", "--prompts-per-step", "1", "--held-out", "3")
    done = run_python("-m", "recipes.policy.demo", *small, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    log = (out / "log.jsonl").read_text(encoding="utf-8")
    assert "NaN" not in log
    rows = [json.loads(line) for line in log.splitlines()]
    assert all(row["failed"] == 0 and row["spread"] > 0 for row in rows)
    assert all(row["generate_s"] > 0 and row["judge_s"] > 0 and row["update_s"] > 0 for row in rows)
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert re.search(r"before .*\n +after .*\n +verdict \[#|not one completion changed", done.stdout)
    assert re.search(r"prefers 'after' in \d+ of \d+", done.stdout)
    return rows, done.stdout


@pytest.mark.usefixtures("smol_path")
def test_the_demo_trains_on_the_judge_that_is_in_the_package(tmp_path: Path) -> None:
    rows, printed = trained(tmp_path, "--steps", "1")
    assert "trained to choose" in printed
    assert 0 <= rows[0]["consistency"] <= 1
    assert rows[0]["grade"] is None


@pytest.mark.usefixtures("smol_path")
def test_the_demo_trains_and_leaves_a_log_and_an_adapter(tmp_path: Path) -> None:
    rows, printed = trained(tmp_path, "--steps", "2", "--format", "sentiment", "--num-generations", "2")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 <= row["grade"] <= 1 and row["consistency"] is None for row in rows), "none is shown in two slots"
    assert re.search(r"mean grade before \d\.\d+; mean grade after", printed)


@pytest.mark.usefixtures("smol_path")
def test_the_demo_runs_with_a_judge_whose_schedule_mirrors_nothing(tmp_path: Path) -> None:
    config = tmp_path / "judge.yaml"
    config.write_text("format: choice\nschedule: ring\naudit: false\n", encoding="utf-8")
    five = ("--num-generations", "5")  # a ring of four meets across in both orders
    rows, printed = trained(tmp_path, "--steps", "1", "--config", str(config), *five)
    assert [(row["step"], row["grade"], row["consistency"]) for row in rows] == [(1, None, None)]
    assert re.search(r"^ +1 +[+-]\d\.\d+ +\d\.\d+ +- +- +0\.00 ", printed, re.MULTILINE)


def test_a_row_shows_a_dash_for_what_is_unknown() -> None:
    known = {
        "step": 3, "reward": 0.0, "spread": 0.25, "grade": 0.5, "consistency": 1.0, "failed": 0.0,
        "generate_s": 1.0, "judge_s": 2.0, "update_s": 3.0,
    }  # fmt: skip
    line = step_table.row_line(known)
    assert line.split() == ["3", "+0.000", "0.250", "0.500", "1.00", "0.00", "1.0", "2.0", "3.0"]
    for unknown in (None, math.nan):
        shown = step_table.row_line(known | dict.fromkeys(("reward", "spread", "grade", "consistency"), unknown))
        assert shown.split() == ["3", "-", "-", "-", "-", "0.00", "1.0", "2.0", "3.0"]
        assert len(shown) == len(line)


def test_completions_are_shown_without_their_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    judge = Judge(ScriptedEngine.by_utility(len), schedule="all_pairs")
    demo.show(judge, ["The \x1b[2Jfilm", "Same"], ["was\x9b2J", "x"], ["was \u202egreat\x07", "x"])
    printed = capsys.readouterr().out
    assert not {*"\x1b\x9b\x07\u202e"} & {*printed}
    assert "The �[2Jfilm ..." in printed
    assert "prefers 'after' in 1 of 1" in printed


def test_a_judge_that_only_fails_is_shown_as_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    demo.show(Judge(ScriptedEngine(lambda request: "?")), ["The film"], ["was bad"], ["was good"])
    assert "before unknown" in capsys.readouterr().out


def test_reviews_are_read_whole_with_their_ratings() -> None:
    reviews = load_reviews()
    assert len(reviews) == 10605
    assert all(review.text and -4 <= review.rating <= 4 for review in reviews)
    prompts = openings()
    assert len(prompts) == len(set(prompts)) > 8000
    assert all(len(prompt.split()) == 6 for prompt in prompts)
