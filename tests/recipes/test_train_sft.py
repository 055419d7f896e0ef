"""The judge's warm-up: the loss is on the verdict alone, a run goes on where it was interrupted, bad input is named."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mrjudge_reward.engines.label_tokens import first_label_tokens
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.prompting.formats import SENTIMENT, Choice, Format, PairScores, Ranking, Score
from mrjudge_reward.training.items import Item, from_choice, from_ratings
from mrjudge_reward.training.tasks import Problem
from mrjudge_reward.types import Request
from recipes.common.config import read_config
from recipes.judge import train_sft
from tests.support import ROOT
from tests.support.interrupted import interrupted
from tests.support.joining_tokenizer import joining_tokenizer
from tests.support.small_models import small_text_model
from tests.support.warm_python import run_python

pytestmark = pytest.mark.usefixtures("vllm_hidden")

CONFIG = ROOT / "recipes/judge/sft_cpu.yaml"
SMALL = [
    f"tasks.{name}.count={count}"
    for name, count in {"film_pairs": 20, "tweet_pairs": 4, "editorial_pairs": 3, "film_alone": 5}.items()
]


def loaded(overrides: list[str]) -> train_sft.SFTRecipe:
    return train_sft.SFTRecipe(**read_config(str(CONFIG), overrides))


@pytest.fixture(scope="module")
def tokenizer(smol_tokenizer: Any) -> Any:
    return smol_tokenizer


@pytest.fixture(scope="module")
def small(smol_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_text_model(smol_tokenizer, tmp_path_factory.mktemp("small"))


def train(model: str, out: Path, *overrides: str, run: Any = run_python) -> subprocess.CompletedProcess[str]:
    settings = [*SMALL, f"model={model}", "lora.layers_to_transform=[1]", f"training.output_dir={out}",
                "training.per_device_train_batch_size=2", "training.save_steps=1", "training.logging_steps=1",
                *overrides]  # fmt: skip
    return run("-m", "recipes.judge.train_sft", CONFIG, *(word for setting in settings for word in ("--set", setting)))


def test_examples_end_in_the_right_verdict_and_show_both_orders(tokenizer: Any):
    recipe = loaded(SMALL)
    rows = train_sft.examples(recipe, "train", tokenizer)
    # Weights 4, 1, 1, 1: the largest task comes once whole, the others again and again.
    assert Counter(row["task"] for row in rows) == {
        "film_pairs": 40, "tweet_pairs": 10, "editorial_pairs": 10, "film_alone": 10
    }  # fmt: skip
    answers = [row["completion"][0]["content"] for row in rows if row["task"] == "film_pairs"]
    assert sorted(answers) == ["<answer>A</answer>"] * 20 + ["<answer>B</answer>"] * 20
    assert all(Choice(labels=("A", "B")).parse(answer, 2) for answer in answers)


def test_reasoning_stands_before_the_verdict_of_the_tasks_that_want_it(tokenizer: Any):
    recipe = loaded([*SMALL, "tasks.film_pairs.reasoning=ratings"])
    rows = train_sft.examples(recipe, "train", tokenizer)
    for row in rows:
        answer = row["completion"][0]["content"]
        assert answer.startswith("<think>A: ") == (row["task"] == "film_pairs")
    pairs = [row["completion"][0]["content"] for row in rows if row["task"] == "film_pairs"]
    for answer in pairs:
        first, second = (float(part.split(": ")[1]) for part in answer[7:].split("</think>")[0].split(", "))
        assert answer.endswith("<answer>A</answer>" if first > second else "<answer>B</answer>")


ALONE = from_ratings("Write.", ["fine"], [4.0], scale=(-4.0, 4.0))
PAIRED = from_choice("Which?", ["good", "bad"], gold=1)


@pytest.mark.parametrize(
    ("item", "form", "answer"),
    [
        (PAIRED, Choice(labels=("A", "B")), "<answer> B </answer>"),  # `>B` would be one token
        (PAIRED, Choice(labels=("A", "X")), "<answer>X</answer>"),
        (PAIRED, Choice(labels=("X", "Y")), "<answer>Y</answer>"),
        (PAIRED, Choice(labels=("1", "2")), "<answer>2</answer>"),
        (PAIRED, Choice(labels=("X", "Y"), tie_label="C"), "<answer>Y</answer>"),
        (PAIRED, Choice(labels=("A", "B"), answer_open="[[", answer_close="]]"), "[[B]]"),
        (PAIRED, Ranking(), "<answer> B > A </answer>"),
        (PAIRED, Ranking(labels=("X", "Y")), "<answer>Y > X</answer>"),
        (ALONE, Score(), "<answer>5</answer>"),
        (ALONE, Score(grades=(("A", 2.0), ("D", 1.0))), "<answer> A </answer>"),
        (ALONE, SENTIMENT, "Sentiment: positive"),
        (PAIRED, PairScores(), "<answer>1</answer><answer>10</answer>"),
    ],
)  # fmt: skip
def test_a_read_judge_learns_the_label_where_reading_looks_for_it(
    item: Item, form: Format, answer: str, tokenizer: Any
):
    problem = Problem(item, tuple(range(len(item.gold_G))), form)
    for tokens, wanted in ((joining_tokenizer(), answer), (tokenizer, problem.right())):
        (row,) = train_sft.rows_of([("a", problem)], tokens, 100)
        written = row["completion"][0]["content"]
        assert written == wanted
        assert form.parse(written, len(problem.slots)) == form.parse(problem.right(), len(problem.slots))

        def encoded(text: str, tokens: Any = tokens) -> list[int]:
            return tokens.encode(text, add_special_tokens=False)  # type: ignore[no-any-return]

        opened = encoded(form.answer_open)
        assert encoded(written)[: len(opened)] == opened
        if form.readable and form is not SENTIMENT:
            labels = form.read_labels(len(problem.slots))
            found = first_label_tokens(encoded, Request((), prefill=form.answer_open, labels=labels))
            said = labels.index(answer.removeprefix(form.answer_open).split(form.answer_close)[0].strip())
            assert encoded(written)[len(opened)] in found[said]


@pytest.mark.parametrize(
    ("written", "apart"),
    [
        ("<think>x</think><answer>A</answer>", "<think>x</think><answer> A </answer>"),
        ("<answer> A </answer>", "<answer> A </answer>"),
        ("<answer>A</answer><answer>A</answer>", "<answer> A </answer><answer> A </answer>"),
        ("<answer>A", "<answer>A"),
        ("A", "A"),
        ("<answer></answer>", "<answer></answer>"),
        ("say <answer> or <answer>A</answer>", "say <answer> or <answer> A </answer>"),
    ],
)
def test_verdicts_of_a_file_are_kept_apart_from_their_marker_where_a_tokenizer_joins_them(
    tokenizer: Any, tmp_path: Path, written: str, apart: str
):
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Which?"}], "answer": written}) + "\n")
    for tokens, wanted in ((joining_tokenizer(), apart), (tokenizer, written), (None, written)):
        (row,) = train_sft.written_rows(str(path), tokenizer=tokens)
        assert row["completion"][0]["content"] == wanted


def test_examples_from_a_file_are_taken_and_a_bad_line_is_named(tokenizer: Any, tmp_path: Path):
    good = {"messages": [{"role": "user", "content": "Which?"}], "answer": "<think>x</think><answer>A</answer>"}
    path = tmp_path / "examples.jsonl"
    path.write_text(json.dumps(good) + "\n")
    recipe = train_sft.SFTRecipe(examples=str(path), training={})
    assert train_sft.examples(recipe, "train", tokenizer) == [
        {"prompt": good["messages"], "completion": [{"role": "assistant", "content": good["answer"]}], "task": "file"}
    ]
    path.write_text(json.dumps(good) + "\n" + json.dumps({"messages": []}) + "\n")
    with pytest.raises(InputError, match="line 2"):
        train_sft.examples(recipe, "train", tokenizer)


@pytest.fixture
def red(tmp_path: Path) -> str:
    from tests.support.vision_setup import encoded, picture

    (tmp_path / "red.png").write_bytes(encoded(picture()))
    return str(tmp_path / "red.png")


def image_of(given: str, path: str) -> dict[str, Any]:
    """A part of a message that shows a picture, in the ways that data sets write it."""
    url = "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
    return {
        "path": {"type": "image", "image": path}, "url": {"type": "image_url", "image_url": {"url": url}},
        "plain url": {"type": "image_url", "image_url": url}, "place": {"type": "image"},
    }[given]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "beside", "expected"),
    [
        (["path", "text"], None, ["image", "text"]),
        (["text", "path"], None, ["text", "image"]),  # in its place
        (["path", "path", "text"], None, ["image", "image", "text"]),
        (["url", "text"], None, ["image", "text"]),
        (["plain url", "text"], None, ["image", "text"]),
        (["place", "text"], 1, ["image", "text"]),  # as TRL has it, images beside the messages
        (["text", "place", "place"], 2, ["text", "image", "image"]),
        (["text"], 1, ["image", "text"]),  # no place: before the first user turn's text
        (["text"], 2, ["image", "image", "text"]),
        (["text"], 0, None),
    ],
)
def test_a_picture_in_a_file_of_examples_stays_in_its_place(
    parts: list[str], beside: int | None, expected: list[str] | None, red: str, tmp_path: Path
):
    said = [{"type": "text", "text": "Which?"} if part == "text" else image_of(part, red) for part in parts]
    row: dict[str, Any] = {"messages": [{"role": "user", "content": said}], "answer": "<answer>A</answer>"}
    row |= {} if beside is None else {"images": [red] * beside}
    (tmp_path / "examples.jsonl").write_text(json.dumps(row))
    (made,) = train_sft.written_rows(str(tmp_path / "examples.jsonl"))
    if expected is None:
        assert (made["prompt"], made["images"]) == ([{"role": "user", "content": "Which?"}], [])
        return
    assert [part["type"] for part in made["prompt"][0]["content"]] == expected
    assert made["images"] == [{"bytes": Path(red).read_bytes(), "path": None}] * expected.count("image")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},  # a place, and nothing to put there
        {"type": "image", "image": "none.png"},
        {"type": "image", "image": "https://example.org/a.png"},
        {"type": "image", "image": "data:image/png;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ],
)
def test_an_example_whose_picture_cannot_be_shown_is_refused_with_its_line(part: Any, tmp_path: Path):
    rows = [{"messages": [{"role": "user", "content": content}], "answer": "A"} for content in ("Why?", [part])]
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=f"{path}, line 2"):
        train_sft.written_rows(str(path))


TOLD_APART = [("quartz", 0), ("gym", 1), ("quartz", 2), (None, 3)]


@pytest.mark.parametrize(
    ("tasks", "numbers"),
    [([], [0, 1, 2, 3]), (["quartz"], [0, 2]), (["gym"], [1]), (["file"], [3]), (["gym", "quartz"], [0, 1, 2])],
)
def test_of_a_file_of_examples_some_tasks_are_learned(
    tasks: list[str], numbers: list[int], smol_tokenizer: Any, tmp_path: Path
):
    path = tmp_path / "examples.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"{n}"}], "answer": "A", "task": task} for task, n in TOLD_APART]
    path.write_text("\n".join(json.dumps({key: value for key, value in row.items() if value}) for row in rows))
    recipe = train_sft.SFTRecipe(training={}, examples=str(path), example_tasks=tasks)
    learned = train_sft.examples(recipe, "train", smol_tokenizer)
    assert sorted(int(row["prompt"][0]["content"]) for row in learned) == numbers
    with pytest.raises(ConfigError, match="no example is of Quartz; there are quartz, gym, file"):
        train_sft.examples(recipe.model_copy(update={"example_tasks": ["gym", "Quartz"]}), "train", smol_tokenizer)
    with pytest.raises(ConfigError, match="name the file in examples"):
        train_sft.SFTRecipe(training={}, example_tasks=["quartz"])


def test_what_all_weights_are_left_in_is_a_judge_that_sees(smol_path: str, red: str, tmp_path: Path):
    from transformers import AutoTokenizer

    from mrjudge_reward.engines.local.engine import TransformersEngine
    from mrjudge_reward.messages import as_messages
    from mrjudge_reward.types import Reply, Request
    from recipes.judge.chat_rows import save_processor
    from tests.support.vision_setup import llava, saved

    folder = saved(llava(smol_path), tmp_path / "model")
    llava(smol_path)[0].save_pretrained(tmp_path / "trained")
    save_processor(folder, AutoTokenizer.from_pretrained(folder), tmp_path / "trained")
    chat = as_messages([{"role": "user", "content": [image_of("path", red), {"type": "text", "text": "Which?"}]}])
    engine = TransformersEngine(str(tmp_path / "trained"), device="cpu")
    (reply,) = engine.label_logprobs([Request(chat, prefill="<answer>", labels=("A", "B"))])
    assert isinstance(reply, Reply)
    assert reply.usage.prompt_tokens > 4, "an image is four tokens"


@pytest.mark.parametrize(
    ("strategy", "images", "refused"),
    [("group_by_length", [b""], True), ("group_by_length", [], False), ("random", [b""], False), ("random", [], False)],
)
def test_rows_with_pictures_have_no_length_to_be_grouped_by(strategy: str, images: list[bytes], refused: bool):
    rows = [{"images": []}, {"images": images}, {}]
    if refused:
        with pytest.raises(ConfigError, match="cannot be grouped by length"):
            train_sft.check_sampling(rows, strategy)
    else:
        train_sft.check_sampling(rows, strategy)


def test_no_text_of_a_file_speaks_for_the_chat_or_for_a_picture(red: str, smol_path: str, tmp_path: Path):
    from tests.support.vision_setup import llava

    _, processor = llava(smol_path)
    said = "See <image> here.<|im_end|>"  # two special tokens of this model, whose writer had others
    row = {
        "messages": [{"role": "user", "content": [image_of("path", red), {"type": "text", "text": said}]}],
        "answer": "A",
    }
    (tmp_path / "examples.jsonl").write_text(json.dumps(row))
    recipe = train_sft.SFTRecipe(examples=str(tmp_path / "examples.jsonl"), training={})
    (made,) = train_sft.examples(recipe, "train", processor.tokenizer)
    text = processor.apply_chat_template(made["prompt"], tokenize=False)
    assert (text.count("<image>"), text.count("<|im_end|>")) == (1, 1)


def test_text_and_pictures_come_in_rows_of_one_layout(red: str, smol_tokenizer: Any, tmp_path: Path):
    rows = [{"messages": [{"role": "user", "content": content}], "answer": "A"}
            for content in ("Why?", [image_of("path", red), {"type": "text", "text": "Which?"}])]  # fmt: skip
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = train_sft.SFTRecipe(examples=str(tmp_path / "examples.jsonl"), training={})
    made = train_sft.examples(recipe, "train", smol_tokenizer)
    text, pictured = train_sft.data_set(made)
    assert text["images"] == []
    assert text["prompt"] == [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    assert [image.size for image in pictured["images"]] == [(64, 48)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks.film_pairs.cuont=3"], "cuont"),
        (["modle=x"], "did you mean 'model'"),
        (["tasks"], "name=value"),
        (["model.x=1"], "no settings"),
        (["tasks.film_pairs=null", "tasks.tweet_pairs.weight=0"], "weight"),
    ],
)
def test_a_wrong_setting_is_named(tokenizer: Any, overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        train_sft.examples(loaded(overrides), "train", tokenizer)


def test_a_run_without_anything_to_learn_from_is_refused(tokenizer: Any):
    with pytest.raises(InputError, match="neither tasks nor a file"):
        train_sft.examples(train_sft.SFTRecipe(training={}), "train", tokenizer)


def test_it_trains_an_adapter_and_goes_on_where_it_was_interrupted(small: str, tmp_path: Path):
    first = train(small, tmp_path, "training.max_steps=2", run=partial(run_python, python=sys.executable))
    assert first.returncode == 0, first.stderr[-3000:]
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    again = train(small, tmp_path, "training.max_steps=2")
    assert (again.returncode, "it is finished: nothing is trained" in again.stdout) == (0, True), again.stderr[-3000:]
    other = train(small, tmp_path, "training.max_steps=3")
    assert "changed: training.max_steps)" in other.stderr
    for steps in (2, 1):  # before the end is written down; before the last step
        interrupted(tmp_path, steps)
        second = train(small, tmp_path, "training.max_steps=2")
        assert second.returncode == 0, second.stderr[-3000:]
        state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
        assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2]
        assert not (tmp_path / "checkpoint-3").exists()
        assert (tmp_path / "adapter_model.safetensors").read_bytes() == weights
        assert json.loads((tmp_path / "recipe.json").read_text())["training"]["max_steps"] == 2

    from mrjudge_reward.engines.local.engine import TransformersEngine
    from mrjudge_reward.messages import as_messages
    from mrjudge_reward.types import Reply, Request

    engine = TransformersEngine(small, adapter=str(tmp_path), device="cpu")
    reply = engine.label_logprobs([Request(as_messages("Which?"), prefill="<answer>", labels=("A", "B"))])[0]
    assert isinstance(reply, Reply)


def test_the_loss_is_trls_and_on_the_judges_turn_alone(tokenizer: Any, small: str, tmp_path: Path):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    recipe = loaded(SMALL)
    rows = train_sft.examples(recipe, "train", tokenizer)[:6]
    found = []
    for kind in (SFTTrainer, train_sft.trainer_class()):
        torch.manual_seed(0)
        trainer = kind(
            model=small,
            args=SFTConfig(output_dir=str(tmp_path), completion_only_loss=True, report_to="none", use_cpu=True, bf16=False,
                           per_device_train_batch_size=6, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(rows).remove_columns("task"),
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False),
        )  # fmt: skip
        torch.manual_seed(0)
        batch = next(iter(trainer.get_train_dataloader()))
        losses = []
        for count in (None, torch.tensor(100)):
            trainer.model.zero_grad()
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
            loss.backward()
            losses.append(loss.item())
        found.append((losses, [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
    (theirs, their_grads), (ours, our_grads) = found
    assert ours == pytest.approx(theirs, rel=1e-4)
    for mine, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3 * float(other.abs().max()), rtol=1e-2)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = tokenizer.decode(ids[labels != -100]).strip().removesuffix("<|im_end|>")
        assert learned in {"<answer>A</answer>", "<answer>B</answer>", "Sentiment: positive", "Sentiment: negative"}
