"""Questions of a benchmark are found among the items of training, whatever column they stand in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.training.items import Item, from_choice, with_images
from recipes.data.judge_data import TaskConfig, items
from recipes.data.overlap import apart
from tests.support.vision_setup import encoded, picture


def benchmark(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "benchmark.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / "benchmark.jsonl")


def asking(question: Any, *images: Any) -> Item:
    return from_choice(with_images(question, images), ["good", "bad"], 0)


@pytest.mark.parametrize(
    ("row", "question", "same"),
    [
        ({"prompt": "Why is it so?"}, "Why is it so?", True),
        ({"question": "why  is it\nso?"}, "Why is it so?", True),  # case and spaces
        ({"prompt": "\uff37hy is it so?"}, "Why is it so?", True),  # a letter in another encoding
        ({"prompt": [{"role": "user", "content": "Why is it so?"}]}, "Why is it so?", True),
        ({"Text": "Why is it so?", "Image": None}, "Why is it so?", True),
        ({"instruction": "Why is it so?"}, [{"role": "user", "content": "Why is it so?"}], True),
        ({"prompt": "Why is it so?"},
         [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why is it so?"}], True),
        ({"prompt": "Why is it so?"}, "Why is it not so?", False),
        ({"prompt": "Why is it so? Say more."}, "Why is it so?", False),
        ({"query": "<image>\nWhy is it so?"}, "Why is it so?", True),
    ],
)  # fmt: skip
def test_a_question_is_the_same_whatever_its_case_and_spaces(row: Any, question: Any, same: bool, tmp_path: Path):
    kept = apart([asking(question), asking("Another one?")], {benchmark(tmp_path, row): "test"})
    assert len(kept) == 2 - same


@pytest.mark.parametrize(
    ("theirs", "mine", "same"),
    [("red", "red", True), ("red", "blue", False), (None, "red", True), ("red", None, True), ("gone", "red", False)],
)
def test_the_same_words_about_another_picture_are_another_question(theirs: Any, mine: Any, same: bool, tmp_path: Path):
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(encoded(picture(colour)))
    row = {"query": "Describe the image."} | ({"image": str(tmp_path / f"{theirs}.png")} if theirs else {})
    images = [encoded(picture(mine))] if mine else []
    assert len(apart([asking("Describe the image.", *images)], {benchmark(tmp_path, row): "test"})) == 1 - same


def test_a_task_leaves_them_out_and_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "preferences.jsonl"
    rows = [{"prompt": f"Question {n}?", "chosen": "good", "rejected": "bad"} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    test = benchmark(tmp_path, *({"prompt": f"question {n}?"} for n in range(5)))
    task = TaskConfig(source="preferences", path=str(path), held_out="source", without={test: "test"})
    asked = {item.group.prompt[0].text for item in items(task, "test")}
    assert asked == {f"Question {n}?" for n in range(5, 20)}
    assert f"5 of 20 items are left out, which {test} asks too" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [[], [{"id": 1, "said": "Why?"}], [{"prompt": ""}]])
def test_a_benchmark_without_questions_is_an_error(rows: list[Any], tmp_path: Path):
    with pytest.raises(InputError):
        apart([asking("Why?")], {benchmark(tmp_path, *rows): "test"})
