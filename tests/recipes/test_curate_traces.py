"""Curation of judged traces: right ones, long ones first, of every kind, none twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import ConfigError, InputError
from recipes.data import curate_traces
from recipes.judge import train_sft


def judged(name: str, words: int, **fields: Any) -> dict[str, Any]:
    row = {"messages": [{"role": "user", "content": f"Question {name}"}], "trace": f"{name} " + "word " * (words - 1),
           "verdict": "A", "gold": "A", "format": "choice"}  # fmt: skip
    return row | fields


def curated(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, list[dict[str, Any]]]:
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {"floor": {"single": 5, "pair": 5, "batch": 5}, **settings}
    report = curate_traces.curate(curate_traces.CurationRecipe(source=str(path), **settings), folder / "out")
    assert report["rows"] == report["kept"] + sum(report["dropped"].values())
    text = (folder / "out" / "examples.jsonl").read_text(encoding="utf-8")
    return report, [json.loads(line) for line in text.splitlines()]


def test_the_longest_right_traces_of_each_kind_are_chosen_up_to_its_quota(tmp_path: Path):
    rows = [judged(f"p{n}", n) for n in (10, 40, 20, 30)]
    rows += [judged(f"s{n}", n, format="score", verdict=4, gold=4) for n in (10, 30, 20)]
    rows += [judged(f"b{n}", n, format="pair_scores", verdict=[1, 9, 5], gold=["1", "9", "5"]) for n in (10, 20)]
    quota = {"single": 2, "pair": 3, "batch": 1}
    report, made = curated(tmp_path, rows, quota=quota)
    assert [row["provenance"]["length"] for row in made] == [40, 20, 30, 30, 20, 20]
    assert report["by kind"] == quota
    assert Counter(row["provenance"]["kind"] for row in made) == quota
    assert report["dropped"] == {"beyond the quota": 3}
    assert made[-1]["answer"].endswith("</think><answer>1</answer><answer>9</answer><answer>5</answer>")
    rows_read = train_sft.written_rows(str(tmp_path / "out" / "examples.jsonl"))
    assert [row["completion"][0]["content"] for row in rows_read] == [row["answer"] for row in made]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"verdict": "B"}, "wrong verdict"),
        ({"verdict": "Z"}, "verdict: off-menu label"),
        ({"gold": "Z"}, "gold: off-menu label"),
        ({"format": "ranking", "verdict": "A > B", "gold": "B > A"}, "wrong verdict"),
        ({"format": "ranking", "verdict": "A > B", "gold": "A", "slots": 2}, "gold: wrong count"),
        ({"format": "pair_scores", "verdict": [5, 3], "gold": [3, 6]}, "wrong verdict"),
        ({"format": "pair_scores", "verdict": [4, 4], "gold": [3, 6]}, "wrong verdict"),
        ({"format": "pair_scores", "verdict": [3, 6], "gold": [4, 4]}, "wrong verdict"),
        ({"format": "pair_scores", "verdict": [9, 5, 6], "gold": [9, 8, 1]}, "wrong verdict"),
        ({"format": "ranking", "verdict": "A = B > C", "gold": "A > B > C", "slots": 3}, "wrong verdict"),
        ({"format": "score", "verdict": 4, "gold": 5}, "wrong verdict"),
        ({"format": "pair_scores", "verdict": [3], "gold": [3, 6]}, "verdict: wrong count"),
        ({"format": "score", "verdict": 9, "gold": 9}, "gold: off-menu label"),
        ({"trace": "four words, no more"}, "too short"),
        ({"trace": "Now <answer>A</answer> is what I would say here."}, "markers"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}, "images"),
        ({"trace": None}, "malformed"),
        ({"format": "essay"}, "malformed"),
        ({"format": "score", "slots": 2}, "malformed"),
    ],
)
def test_what_is_not_chosen_is_counted_by_its_reason(tmp_path: Path, fields: Any, reason: str):
    report, made = curated(tmp_path, [judged("good", 10), judged("other", 10, **fields)])
    assert report["dropped"] == {reason: 1}
    assert [row["provenance"]["row"] for row in made] == [1]


@pytest.mark.parametrize(
    ("verdict", "gold"),
    [
        ([9, 8], [9, 8]),
        ([8, 7], [9, 8]),
        ([10, 1], [9, 8]),
        ([9, 8], [10, 1]),
        ([2, 3], [1, 10]),
        ([6, 6], [7, 7]),
        ([9, 8, 1], [9, 5, 4]),
        ([9, 8, 1], [6, 6, 2]),  # nothing is asked of equals
        ([1, 2, 3, 4], [7, 8, 9, 10]),
        ("B > A > C", "B > A > C"),
        ("B > A > C", "A = B > C"),
        ("A = B = C", "A = B = C"),
    ],
)
def test_grades_and_orders_of_several_are_right_in_the_right_order(tmp_path: Path, verdict: Any, gold: Any):
    form = {"format": "ranking", "slots": 3} if isinstance(gold, str) else {"format": "pair_scores"}
    row = judged("one", 10, verdict=verdict, gold=gold, **form)
    report, (made,) = curated(tmp_path, [row], quota={"pair": 1, "batch": 1})
    assert (report["kept"], report["dropped"]) == (1, {})
    said = verdict if isinstance(verdict, list) else [verdict]
    assert made["answer"].endswith("</think>" + "".join(f"<answer>{one}</answer>" for one in said))


def test_of_traces_of_one_prompt_and_of_equal_traces_the_longest_stays(tmp_path: Path):
    same = [judged("one", 10), judged("one", 20), judged("two", 15, trace="one " + "WORD " * 19)]
    report, made = curated(tmp_path, [*same, judged("three", 12)])
    assert report["dropped"] == {"duplicate": 2}
    assert [row["provenance"]["row"] for row in made] == [2, 4]


@pytest.mark.parametrize(
    ("said", "slots", "kept"),
    [
        ("AAAB", 2, "AB"),
        ("AABB", 2, "AABB"),
        ("BBBAA", 2, "BBAA"),
        ("AAA", 2, ""),  # what names one slot alone teaches nothing else
        ("B", 2, ""),
        ("aA", 2, ""),  # one slot, however it is spelled
        ("aABb", 2, "aABb"),
        ("AB", 2, "AB"),
        ("AABCC", 3, "ABC"),
        ("ABAB", 3, ""),
        ("CBA", 3, "CBA"),
        ("ABCDAD", 4, "ABCD"),
    ],
)
def test_of_right_choices_as_many_are_kept_for_each_label(tmp_path: Path, said: str, slots: int, kept: str):
    def rows(task: str, labels: str) -> list[dict[str, Any]]:
        return [
            judged(f"{task}{n}", 50 - n, verdict=label, gold=label, slots=slots, task=task)
            for n, label in enumerate(labels)
        ]

    other = "ABCD"[:slots]
    mixed = [*rows("a", said), *rows("b", other), judged("s", 9, format="score", verdict=4, gold=4, task="a")]
    report, made = curated(tmp_path, mixed, even_verdicts=True, quota={"single": 9, "pair": 9, "batch": 12})
    found = [(row["task"], row["answer"].split("<answer>")[1][0]) for row in made]
    assert found == [*(("a", label) for label in kept), *(("b", label) for label in other), ("a", "4")]
    assert report["dropped"].get("more of a verdict than of another", 0) == len(said) - len(kept)
    plain, _ = curated(tmp_path, mixed, quota={"single": 9, "pair": 9, "batch": 12})
    assert plain["kept"] == len(mixed)


def test_think_tags_around_a_trace_are_not_doubled(tmp_path: Path):
    _, made = curated(tmp_path, [judged("one", 10, trace="<think>\na b c d e f\n</think>")])
    assert made[0]["answer"] == "<think>a b c d e f</think><answer>A</answer>"


def test_grades_and_lengths_are_those_that_the_config_names(tmp_path: Path):
    row = judged("long", 3, format="score", verdict="8", gold=8, trace="incomprehensibilities are words")
    _, made = curated(tmp_path, [row], grades={"single": [str(n) for n in range(1, 11)]}, tokenizer="embedded")
    assert made[0]["provenance"]["length"] > 5  # tokens
    with pytest.raises(ConfigError, match="grades must be numbers"):
        curated(tmp_path, [row], grades={"single": ["good", "bad"]})


def test_a_source_without_traces_and_an_unknown_kind_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="line 1: a judged trace needs"):
        curated(tmp_path, [{"text": "x"}])
    with pytest.raises(ConfigError, match="quota"):
        curate_traces.CurationRecipe(source="x", quota={"triple": 3})
