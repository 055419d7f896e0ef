"""Judged traces: what a judge wrote comes back right from the curation, and how hard each item is for it is measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.scripted import ScriptedEngine
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.prompting.formats import Choice, PairScores, Ranking, Score
from mrjudge_reward.types import EngineFailure, NoVerdict, Request
from recipes.common.config import read_config
from recipes.data.curate_traces import CurationRecipe, curate
from recipes.data.judge_data import TaskConfig, items
from recipes.evaluate.judged_traces import TracesRecipe, judged_traces, said
from recipes.judge import train_sft
from tests.support import ROOT
from tests.support.vision_setup import encoded, picture

THOUGHT = "First I look at what is asked, and then at each of the answers, before I decide. "
PAIR = {"format": "choice", "labels": ["A", "B"]}


def preferences(folder: Path, count: int = 12, image: str | None = None) -> str:
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"}
        | ({"images": [image]} if image else {})
        for n in range(count)
    ]
    (folder / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "preferences.jsonl")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def run(out: Path, script: Any, tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    judge = {"model": "scripted", "max_failed_fraction": 1.0, "retries": 0}
    recipe = TracesRecipe(judge=judge, tasks=tasks, **{"samples": 1, **more})
    report: dict[str, Any] = judged_traces(recipe, out, ScriptedEngine(script))
    return report


def best(request: Request) -> str:
    """The label of the good answer."""
    text = request.messages[-1].text
    if "bad " not in text:
        return "A"  # what a judge is tried with before it is asked
    return "A" if text.index("good ") < text.index("bad ") else "B"


def number_of(request: Request) -> int:
    """Of the question."""
    found = re.search(r"Question (\d+)\?", request.messages[-1].text)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (Choice(labels=("A", "B")), "<answer>B</answer>", "B"),
        (Choice(), "<answer> d </answer>", "D"),
        (Choice(tie_label="T"), "<answer>T</answer>", "T"),
        (Ranking(), "<answer>B > A = C</answer>", "B > A = C"),
        (Ranking(labels=("X", "Y", "Z")), "<answer>Z > Y > X</answer>", "Z > Y > X"),
        (Score(), "<answer>4</answer>", "4"),
        (Score(grades=(("bad", 0.0), ("good", 1.0))), "<answer>good</answer>", "good"),
        (PairScores(), "<answer>3</answer><answer>10</answer>", ["3", "10"]),
        (PairScores(), "<answer>7</answer><answer>7</answer>", ["7", "7"]),
        (Choice(labels=("A", "B")), "I cannot say.", None),
    ],
)
def test_a_verdict_is_written_as_the_curation_reads_it(form: Any, text: str, expected: Any):
    slots = {Score: 1, PairScores: 2, Ranking: 3}.get(type(form), len(getattr(form, "labels", "AB")))
    outcome = form.parse(text, slots)
    assert isinstance(outcome, NoVerdict) == (expected is None)
    assert said(outcome, form) == expected


def test_right_traces_become_examples_and_wrong_ones_hard_items(tmp_path: Path):
    def script(request: Request) -> str:
        right, number = best(request), number_of(request)
        wrong = "B" if right == "A" else "A"
        return f"<think>{THOUGHT}{number}</think><answer>{right if number % 2 else wrong}</answer>"

    task = {"source": "preferences", "path": preferences(tmp_path), "judge": PAIR, "both_orders": True}
    report = run(tmp_path / "traces", script, {"pairs": task}, samples=2)
    traces, hard = lines(tmp_path / "traces/traces.jsonl"), lines(tmp_path / "traces/items.jsonl")
    trained = items(TaskConfig(**task), "train")
    assert report["tasks"]["pairs"] == {"replies": len(trained) * 4, "traces": len(trained) * 4}
    assert len(traces) == len(trained) * 4
    assert {row["key"] for row in hard} == {item.group.key for item in trained}
    for row in hard:
        assert row["accuracy"] == int(row["prompt"][-1]["content"].split()[1].strip("?")) % 2
    recipe = CurationRecipe(source=str(tmp_path / "traces/traces.jsonl"), floor={"pair": 5})
    kept = curate(recipe, tmp_path / "curated")
    odd = sum(row["accuracy"] == 1 for row in hard)
    assert kept["kept"] == odd, "one of each prompt's right traces"
    rows = train_sft.written_rows(str(tmp_path / "curated/examples.jsonl"))
    assert all(row["completion"][0]["content"].startswith(f"<think>{THOUGHT.strip()}") for row in rows)
    chosen = {"source": "items", "path": str(tmp_path / "traces/items.jsonl"), "judge": PAIR}
    for bounds, count in (([0.0, 0.75], len(hard) - odd), ([1.0, 1.0], odd), ([0.0, 1.0], len(hard))):
        assert len(items(TaskConfig(**chosen, accuracy=bounds), "train")) == count
    assert len(items(TaskConfig(**chosen), "train")) == len(hard)


def test_grades_and_orders_come_back_from_the_curation_by_the_judges_own_labels(tmp_path: Path):
    def script(request: Request) -> str:
        grades = ("10", "1") if best(request) == "A" else ("1", "10")
        return f"<think>{THOUGHT}{number_of(request)}</think>" + "".join(f"<answer>{g}</answer>" for g in grades)

    task = {"source": "preferences", "path": preferences(tmp_path)}
    run(tmp_path, script, {"pair": {**task, "judge": {"format": "pair_scores"}}})
    traces = lines(tmp_path / "traces.jsonl")
    assert all(row["verdict"] == row["gold"] for row in traces)
    assert {tuple(row["gold"]) for row in traces} == {("10", "1"), ("1", "10")}
    kept = curate(CurationRecipe(source=str(tmp_path / "traces.jsonl"), floor={"pair": 1}), tmp_path / "out")
    assert kept["by kind"] == {"pair": len(traces)}


@pytest.mark.parametrize(
    "task",
    [
        {"source": "quartz"},
        {"source": "quartz", "both_orders": True},
        {"source": "social_iqa", "size": 3},
        {"source": "mmlu", "size": 4, "judge": {"format": "ranking"}},
        {"source": "emotional", "size": 4},
        {"source": "reasoning_gym", "generators": ["chain_sum"], "count": 20},
        {"source": "film reviews"},
        {"source": "tweets", "judge": {"format": "score"}},
        {"source": "Amazon reviews", "size": 3, "judge": {"format": "pair_scores"}},
    ],
)
def test_items_that_a_judge_was_tried_on_are_all_of_the_training_side(task: dict[str, Any], tmp_path: Path):
    task = {"judge": {"format": "choice"}, "count": 60, **task}
    report = run(tmp_path, lambda _: "I cannot say.", {"task": task})
    tried = TaskConfig(source="items", path=str(tmp_path / "items.jsonl"), size=4, count=999)
    found = {split: items(tried, split) for split in ("train", "dev", "test")}
    assert (len(found["train"]), found["dev"], found["test"]) == (report["items"], [], [])
    assert {item.group.key for item in found["train"]} == {
        item.group.key for item in items(TaskConfig(**task), "train")
    }


@pytest.mark.parametrize(
    ("tasks", "written"),
    [
        ({"alone": {"size": 1}}, 0),
        ({"alone": {"size": 1}, "pairs": {}}, 6),
        ({"equal": {"source": "editorials", "gap": 0.0, "count": 300}}, None),
        ({"equal": {"source": "Amazon reviews", "gap": 0.0, "count": 300, "seed": 1}, "pairs": {}}, None),
        ({"equal": {"gap": 0.0, "count": 300, "size": 3}, "alone": {"size": 1}}, None),
    ],
)
def test_items_without_a_better_candidate_are_left_out_and_counted(
    tasks: dict[str, Any], written: int | None, tmp_path: Path
):
    base = {"source": "film reviews", "judge": {"format": "score"}, "count": 6}
    report = run(tmp_path, lambda _: "I cannot say.", {name: base | task for name, task in tasks.items()})
    made = {i.group.key: i for task in tasks.values() for i in items(TaskConfig(**base | task), "train")}
    better = [item for item in made.values() if len(set(item.gold_G)) > 1]
    assert report["items"] == len(better) == len(lines(tmp_path / "items.jsonl"))
    assert report["items without a better candidate"] == len(made) - len(better) > 0
    assert written in (None, len(better))
    if better:
        assert len(items(TaskConfig(source="items", path=str(tmp_path / "items.jsonl"), size=3), "train")) == len(
            better
        )


@pytest.mark.parametrize(
    ("reply", "counted", "traced", "tried"),
    [
        ("<think>So.</think><answer>A</answer>", {}, True, True),
        ("<answer>A</answer>", {}, False, True),  # a verdict without reasoning teaches none
        ("<think>So.</think>I cannot say.", {"no verdict"}, False, True),
        ("<think>So.</think><answer>Q</answer>", {"off-menu label"}, False, True),
        (EngineFailure("timeout"), set(), False, False),
    ],
)
def test_what_is_no_trace_is_counted_and_what_was_not_answered_says_nothing(
    reply: Any, counted: set[str], traced: bool, tried: bool, tmp_path: Path
):
    task = {"source": "preferences", "path": preferences(tmp_path, 6), "judge": PAIR}
    if not tried:
        with pytest.raises(InputError, match="no request was answered"):
            run(tmp_path, lambda _: reply, {"pairs": task})
        return
    report = run(tmp_path, lambda _: reply, {"pairs": task})
    assert {*report["tasks"]["pairs"]} == {"replies", "traces", *counted}
    assert bool(lines(tmp_path / "traces.jsonl")) == traced
    assert len(lines(tmp_path / "items.jsonl")) == report["tasks"]["pairs"]["replies"]


def test_pictures_go_from_the_items_through_traces_and_curation_to_the_warm_up(tmp_path: Path):
    (tmp_path / "red.png").write_bytes(encoded(picture()))
    task = {"source": "preferences", "path": preferences(tmp_path, 6, str(tmp_path / "red.png")), "judge": PAIR}
    shown: list[int] = []

    def script(request: Request) -> str:
        if "bad " in request.messages[-1].text:
            shown.append(sum(len(turn.images) for turn in request.messages))
        return f"<think>{THOUGHT}{number_of(request)}</think><answer>{best(request)}</answer>"

    run(tmp_path, script, {"pairs": task})
    assert set(shown) == {1}
    source, floor = str(tmp_path / "traces.jsonl"), {"pair": 5}
    assert curate(CurationRecipe(source=source, floor=floor), tmp_path / "text")["dropped"] == {"images": len(shown)}
    curate(CurationRecipe(source=source, floor=floor, pictures=True), tmp_path / "seen")
    rows = train_sft.written_rows(str(tmp_path / "seen/examples.jsonl"))
    assert [len(row["images"]) for row in rows] == [1] * len(shown)
    assert len(items(TaskConfig(source="items", path=str(tmp_path / "items.jsonl")), "train")) == len(shown)


def test_a_format_that_no_row_can_hold_is_refused(tmp_path: Path):
    task = {"source": "film reviews", "judge": {"format": "checklist"}, "count": 2}
    with pytest.raises(ConfigError):
        run(tmp_path, lambda _: "", {"a": task})


@pytest.mark.parametrize("name", ["traces_flex"])
def test_the_shipped_configs_are_read_and_lead_to_each_other(name: str):
    traces = TracesRecipe(**read_config(str(ROOT / f"recipes/evaluate/{name}.yaml"), []))
    assert {TaskConfig(**values).build_format().max_slots == 1 for values in traces.tasks.values()} == {True, False}
    values = read_config(str(ROOT / "recipes/data/curate.yaml"), [])
    assert values.pop("mode") == "curate"
    assert CurationRecipe(**values).source == "runs/traces/traces.jsonl"
    warm_up = train_sft.SFTRecipe(**read_config(str(ROOT / "recipes/judge/sft_vl_7b.yaml"), []))
    assert warm_up.examples == "runs/curated/examples.jsonl"
