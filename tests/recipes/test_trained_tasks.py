"""What a judge learns from is shown whole: a label never stands on a difference that was cut out of the texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.errors import InputError
from mrjudge_reward.judge import JudgeConfig
from mrjudge_reward.messages import as_messages
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import Problem, split_of
from mrjudge_reward.types import Group
from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig
from recipes.data.trained_tasks import whole
from recipes.judge import train_rl, train_sft
from recipes.verl import judge_rl_data
from tests.support import ROOT

LONG = "Then a step is taken. " * 40
JUDGE: dict[str, Any] = {"format": "choice", "labels": ["A", "B"]}


def words(text: str) -> int:
    return len(text.split())


def item(prompt: Any = "Why?", candidates: tuple[str, ...] = ("a", "b", "c"), **more: str) -> Item:
    group = Group(prompt=as_messages(prompt), candidates=candidates, key="k", **more)
    return Item(group, tuple(float(place == 0) for place in range(len(candidates))), "d")


TURNS = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize(
    ("one", "slots", "judge", "cut"),
    [
        (item(), (0, 1), JUDGE, False),
        (item(candidates=(LONG, "b", "c")), (0, 1), JUDGE, True),
        (item(candidates=(LONG, "b", "c")), (1, 0), JUDGE, True),
        (item(candidates=("a", "b", LONG)), (0, 1), JUDGE, False),  # not shown
        (item(candidates=("a", "b", LONG)), (2,), {"format": "score"}, True),
        (item(candidates=("a", "b", LONG)), (1,), {"format": "score"}, False),
        (item(candidates=(f"{LONG}4{LONG}", f"{LONG}5{LONG}", "c")), (0, 1), JUDGE, True),
        (item(prompt=LONG), (0, 1), JUDGE, True),
        (item(prompt=TURNS), (0, 1), JUDGE, True),
        (item(reference=LONG), (0, 1), JUDGE, True),
        (item(rubric=LONG), (0, 1), JUDGE, True),
        (item(candidates=("x " * 100, "b", "c")), (0, 1), JUDGE, False),  # the bound itself
        (item(candidates=("x " * 101, "b", "c")), (0, 1), JUDGE, True),
    ],
)  # fmt: skip
def test_a_problem_is_left_out_if_a_text_that_it_shows_is_cut(
    one: Item, slots: tuple[int, ...], judge: dict[str, Any], cut: bool, capsys: pytest.CaptureFixture[str]
):
    guard = Sanitizer(words, 100)
    form = JudgeConfig(**judge).judge_format
    problem, short = Problem(one, slots, form), Problem(item(), slots, form)
    assert "cut here" in problem.render(Sanitizer(words, 100))[-1].text if cut else True
    assert whole("t", [short, problem], lambda _: guard) == ([short] if cut else [short, problem])
    said = "task t: 1 of 2 examples are left out, having a text of more than 100 tokens, which would be cut"
    assert capsys.readouterr().out == (f"{said} (max_text_tokens)\n" if cut else "")


@pytest.mark.parametrize(("candidates", "cut"), [((LONG, "b"), True), (("a", LONG), False), (("a", "b"), False)])
def test_a_description_is_learned_in_whole_or_not_at_all(candidates: tuple[str, ...], cut: bool):
    guard = Sanitizer(words, 100)
    assert len(whole("t", [item(), item(candidates=candidates)], lambda _: guard)) == 2 - cut
    if cut:
        with pytest.raises(
            InputError, match=r"task t: 1 of 1 examples have a text of more than 100 tokens, .* raise it"
        ):
            whole("t", [item(candidates=candidates)], lambda _: guard)


# -- in every training ------------------------------------------------------------------------------------------------

FIRST = [f"Prove {number}." for number in range(200)]
HIDDEN = f"17 + 25 = {{}}. {LONG * 2}"


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Ten pairs of the training side; the answers of five are long and differ in their middle alone. None is of dev."""
    asked = [question for question in FIRST if split_of(question) == "train"][:10]
    rows = [
        {"prompt": question, "candidates": [f"{LONG * 2}{HIDDEN.format(said)}" for said in (42, 45)], "gold": [1, 0]}
        if number % 2
        else {"prompt": question, "candidates": ["42", "45"], "gold": [1, 0]}
        for number, question in enumerate(asked)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    hard = {"source": "items", "path": str(tmp_path / "items.jsonl"), "judge": JUDGE, "both_orders": True}
    return {"hard": hard}


def of_warm_up(tasks: dict[str, Any], tokenizer: Any, most: int) -> list[str]:
    recipe = train_sft.SFTRecipe(tasks=tasks, max_text_tokens=most, training={})
    return [row["prompt"][-1]["content"] for row in train_sft.examples(recipe, "train", tokenizer)]


def of_reinforcement(tasks: dict[str, Any], tokenizer: Any, most: int) -> list[str]:
    recipe = train_rl.RLRecipe(tasks=tasks, max_text_tokens=most, training={})
    asked = train_rl.asked(recipe, "train", tokenizer)
    return [row["prompt"][-1]["content"] for row in train_rl.rows_of(asked, 0, tokenizer, recipe)]


def of_verl(tasks: dict[str, Any], tokenizer: Any, most: int) -> list[str]:
    made = {name: TaskConfig(**values) for name, values in tasks.items()}
    rows = judge_rl_data.verl_rows(made, "train", tokenizer, max_text_tokens=most)
    return [row["prompt"][-1]["content"] for row in rows]


@pytest.mark.parametrize("shown", [of_warm_up, of_reinforcement, of_verl])
def test_no_training_shows_two_answers_alike_that_its_label_tells_apart(
    shown: Callable[[dict[str, Any], Any, int], list[str]],
    pairs: dict[str, dict[str, Any]], smol_tokenizer: Any, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    prompts = shown(pairs, smol_tokenizer, 300)
    assert len(prompts) == 10
    assert all("42" in prompt and "45" in prompt and "cut here" not in prompt for prompt in prompts)
    assert "task hard: 10 of 20 examples are left out, having a text of more than 300 tokens" in capsys.readouterr().out
    assert len(shown(pairs, smol_tokenizer, 3000)) == 20
    assert "left out" not in capsys.readouterr().out
    with pytest.raises(InputError, match="task hard: 20 of 20 examples have a text of more than 2 tokens"):
        shown(pairs, smol_tokenizer, 2)


# -- verl -------------------------------------------------------------------------------------------------------------


def test_verls_files_are_both_written_or_neither_and_a_task_without_a_dev_side_is_not_measured(
    pairs: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    config, out = str(ROOT / "recipes/judge/rl_cpu.yaml"), tmp_path / "out"
    film = {"source": "film reviews", "judge": {"format": "score"}, "size": 1, "count": 9, "eval_count": 4}

    def command(tasks: dict[str, Any]) -> None:
        words = [
            "judge_rl_data",
            config,
            str(out),
            "--set",
            f"tasks={json.dumps(tasks)}",
            "--set",
            "max_text_tokens=300",
        ]
        monkeypatch.setattr(sys, "argv", words)
        judge_rl_data.main()

    assert "tasks" in read_config(config)
    with pytest.raises(Exception, match="no task has items of the dev side: add one that has"):
        command(pairs)
    assert list(out.glob("*")) == []
    command({**pairs, "film": film})
    said = capsys.readouterr().out
    assert "task hard is not measured" in said
    assert "task hard: 10 of 20 examples are left out, having a text of more than 300 tokens" in said
    assert f"20 rows in {out}/train.parquet" in said
    assert f"4 rows in {out}/dev.parquet" in said
