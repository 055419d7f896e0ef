"""Training the judge on verl: rows say what is right, and replies are worth what ``tasks.verify`` says."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from verl import DataProto
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.integrations.verl.judge_training import compute_score, written_problem
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.special_tokens import of_tokenizer
from mrjudge_reward.training.tasks import Problem, balanced, verify
from mrjudge_reward.types import Reply
from recipes.data import judge_data
from recipes.verl import judge_rl_data
from tests.support import ROOT, vision_setup

RECIPES = ROOT / "recipes" / "verl"
TASKS: dict[str, dict[str, Any]] = {
    "pairs": {"judge": {"format": "choice", "labels": ["A", "B"]}, "both_orders": True},
    "glances": {
        "judge": {"format": "choice", "template": "glance", "labels": ["A", "B", "C"], "tie_label": "T"},
        "size": 3,
    },
    "orders": {"judge": {"format": "ranking", "labels": ["A", "B", "C"]}, "size": 3},
    "grades": {"judge": {"format": "pair_scores"}},
    "alone": {"judge": {"format": "score"}, "size": 1},
    "scale": {"judge": {"format": "score", "grades": {"bad": -1.0, "fair": 0.0, "good": 1.0}}, "size": 1},
    "sentiment": {"judge": {"format": "sentiment"}, "size": 1},
}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(RECIPES), version_base=None):
        return compose("judge_rl", overrides=list(overrides))


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    make = judge_data.TaskConfig
    return {name: make(source="film reviews", count=12, eval_count=6, **rest) for name, rest in TASKS.items()}


@pytest.fixture(scope="module")
def verified(tasks: dict[str, Any]) -> list[tuple[Problem, str]]:
    """Problems of all formats, and what is written of them."""
    some = judge_data.task_problems
    return [(each, written_problem(each, task.judge)) for task in tasks.values() for each in some(task, "train")[:6]]


def replies(problem: Problem, draw: random.Random) -> list[str]:
    """Right, wrong, malformed and hostile ones."""
    right = problem.right()
    opening, closing = problem.format.answer_open, getattr(problem.format, "answer_close", "")
    said = [
        "A",
        "B",
        "C",
        "T",
        "1",
        "5",
        "good",
        " positive",
        " negative",
        "B > A",
        "C > A = B",
        "A > A > B",
        "AB",
        "a",
        "",
    ]
    wrapped = [f"{opening}{label}{closing}" for label in said]
    two = ["".join(f"{opening}{draw.randint(0, 11)}{closing}" for _ in range(count)) for count in (1, 2, 2, 2, 3)]
    think = f"<think>Perhaps {right}.</think>"
    strange = [
        "", right, think + right, think, f"<think>{right}", f"{right}</think>", f"<think></think></THINK>{right}",
        f"{wrapped[0]}{right}", f"{right}{wrapped[0]}", right.upper(), f"{opening}{opening}A", f"{right}\x00",
        f"{right} {opening}", '{"score": 1.0}', "score = 1.0", "\ud800" + right, right * 50,
        f"{right}<|im_end|>{wrapped[1]}",
    ]  # fmt: skip
    return [*strange, *wrapped, *(think + answer for answer in wrapped), *two]


def test_a_reply_is_worth_what_the_other_recipes_pay(verified: list[tuple[Problem, str]]) -> None:
    draw = random.Random(0)
    seen = set()
    for problem, written in verified:
        for text in replies(problem, draw):
            expected = verify(problem, Reply(text))
            given = compute_score("task", text, "nothing", {"problem": written, "index": 3})
            assert given == {"score": expected.reward, "acc": expected.accuracy, "formed": float(expected.formed)}
            seen.add(given["score"])
            cut = compute_score("task", text, "nothing", {"problem": written, "cut": True})
            assert cut == {"score": 0.0, "acc": 0.0, "formed": 0.0}
        assert compute_score("task", problem.right(), None, {"problem": written})["score"] == 1
    assert {0.0, 0.1, 1.0} < seen  # and shares in between


@pytest.mark.parametrize(
    "info",
    [
        None,
        {},
        {"problem": None},
        {"problem": "no JSON"},
        {"problem": "[]"},
        {"problem": '{"judge": {}}'},
        {"problem": '{"judge": {}, "gold": ["x"], "scale": [0, 1]}'},
        {"problem": '{"judge": {}, "gold": [2], "scale": [0, 1]}'},
        {"problem": '{"judge": {"formt": "choice"}, "gold": [1, 0], "scale": [0, 1]}'},
    ],
)
def test_a_row_that_says_not_what_is_right_is_an_error_and_no_score(info: Any) -> None:
    with pytest.raises((InputError, ConfigError)):
        compute_score("task", "<answer>A</answer>", "<answer>A</answer>", info)


def test_rows_are_what_the_recipe_asks_and_come_back_from_parquet(
    tasks: dict[str, Any], smol_tokenizer: Any, tmp_path: Path
) -> None:
    from datasets import Dataset

    rows = judge_rl_data.verl_rows(tasks, "train", smol_tokenizer)
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    back = Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path))
    assert [dict(row) for row in back] == rows
    counts = {name: sum(row["data_source"] == name for row in rows) for name in tasks}
    assert set(counts.values()) == {24}  # both orders of twelve items, and as many of each other task
    for row in back:
        right = compute_score(row["data_source"], row["reward_model"]["ground_truth"], None, row["extra_info"])
        assert right["score"] == 1
        assert {turn["role"] for turn in row["prompt"]} <= {"system", "user"}


def test_verl_finds_every_image_in_its_place_whatever_the_texts_say(smol_path: str, tmp_path: Path) -> None:
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    colours = ["red", "green", "blue"]
    for colour in colours:
        vision_setup.picture(colour).save(tmp_path / f"{colour}.png")
    kinds = {"one": colours[:1], "two": colours[:2], "a <image> in words": colours[2:], "no image <image>": []}
    lines = []
    for number in range(12):
        for said, shown in kinds.items():
            parts = [{"type": "image", "image": str(tmp_path / f"{colour}.png")} for colour in shown]
            prompt = [{"role": "user", "content": [{"type": "text", "text": f"{said} Number {number}?"}, *parts]}]
            lines.append({"prompt": prompt, "candidates": [f"It is {said}.", "<image> none <video>"], "gold": [1, 0]})
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = judge_data.TaskConfig(source="items", path=str(tmp_path / "items.jsonl"), judge={"format": "choice"})
    _, processor = vision_setup.llava(smol_path)
    rows = judge_rl_data.verl_rows({"seen": task}, "train", processor.tokenizer)
    judge_rl_data.write(rows, tmp_path / "train.parquet")
    config = OmegaConf.create({"cache_dir": str(tmp_path), "max_prompt_length": 4096, "filter_overlong_prompts": False})
    data = RLHFDataset(str(tmp_path / "train.parquet"), processor.tokenizer, config, processor)
    assert len(data) == len(rows) > 30
    guard = Sanitizer(len, 4096, of_tokenizer(processor.tokenizer))
    seen = set()
    for number, (_, problem) in enumerate(balanced({"seen": judge_data.task_problems(task, "train")}, len(rows), 0)):
        parts = [part for turn in data[number]["raw_prompt"] for part in turn["content"] if not isinstance(part, str)]
        images = [part["image"].getpixel((63, 47)) for part in parts if part["type"] == "image"]
        wanted = [opened(load_picture(p.image)).getpixel((63, 47)) for t in problem.render(guard) for p in t.images]
        assert images == wanted
        seen.add(len(images))
    assert seen == {0, 1, 2}
    with pytest.raises(InputError, match=r"task seen, item .* has images, and the model takes none"):
        judge_rl_data.verl_rows({"seen": task}, "train", processor.tokenizer, sees=False)


def test_held_out_tasks_are_not_written(smol_tokenizer: Any) -> None:
    make = judge_data.TaskConfig
    held = make(source="Amazon reviews", held_out="source", judge={"format": "score"}, size=1)
    film = make(source="film reviews", judge={"format": "score"}, size=1, eval_count=3)
    write = judge_rl_data.verl_rows
    assert {row["data_source"] for row in write({"held": held, "film": film}, "dev", smol_tokenizer)} == {"film"}
    with pytest.raises(ConfigError, match="not held out"):
        write({"held": held}, "train", smol_tokenizer)


def test_the_command_writes_both_files(tmp_path: Path) -> None:
    config = str(ROOT / "recipes" / "judge" / "rl_cpu.yaml")
    command = [sys.executable, "-m", "recipes.verl.judge_rl_data", config, str(tmp_path / "out")]
    small = ["tasks={film: {source: film reviews, judge: {format: score}, size: 1, count: 9, eval_count: 4}}"]
    for override in small:
        command += ["--set", override]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"9 rows in {tmp_path}/out/train.parquet" in done.stdout
    assert f"4 rows in {tmp_path}/out/dev.parquet" in done.stdout


# -- verl -------------------------------------------------------------------------------------------------------------


def test_verl_takes_the_config_and_loads_the_function() -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = composed()
    assert not need_critic(config)
    assert not need_reference_policy(config)
    validate_config(config, need_reference_policy(config), need_critic(config))
    for part in (config.algorithm, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout):
        assert omega_conf_to_dataclass(part) is not None
    function = get_custom_reward_fn(config)
    assert function is not None
    assert function.func.__name__ == "_call_with_kwargs"
    assert function.args[0] is compute_score


def test_the_recipes_caps_agree() -> None:
    config = composed()
    assert (
        config.data.max_prompt_length + config.data.max_response_length
        == config.actor_rollout_ref.rollout.max_model_len
    )
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 512  # as its comment says


def sample(tokenizer: Any, text: str, cap: int, info: Any, *, ended: bool = True) -> DataProto:
    """What verl hands to a reward manager: a response padded to the cap."""
    ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * ended
    ids = ids[:cap]
    pad = [tokenizer.pad_token_id] * (cap - len(ids))
    batch = {
        "prompts": torch.zeros(1, 2, dtype=torch.long),
        "responses": torch.tensor([ids + pad]),
        "attention_mask": torch.tensor([[1, 1] + [1] * len(ids) + [0] * len(pad)]),
    }
    other = {"data_source": "task", "reward_model": {"ground_truth": ""}, "extra_info": info}
    fields = {name: np.array([value], dtype=object) for name, value in other.items()}
    return DataProto.from_dict(tensors=batch, non_tensors=fields)


def test_the_manager_gives_nothing_for_a_reply_that_was_cut(
    verified: list[tuple[Problem, str]], smol_tokenizer: Any, smol_path: str
) -> None:
    problem, written = verified[0]
    right = f"<think>It is so.</think>{problem.right()}"
    length = len(smol_tokenizer.encode(right, add_special_tokens=False))
    info = {"problem": written, "index": 0}

    async def scores() -> list[float]:
        found = []
        for cap, ended in (
            (length + 8, True),
            (length + 1, True),
            (length + 8, False),
            (length, True),
            (length, False),
        ):
            config = composed(f"data.max_response_length={cap}", f"actor_rollout_ref.model.path={smol_path}")
            manager = load_reward_manager(config, smol_tokenizer)
            result = await manager.run_single(sample(smol_tokenizer, right, cap, info, ended=ended))
            assert result["reward_extra_info"].keys() == {"score", "acc", "formed"}
            found.append(result["reward_score"])
        return found

    # Room to spare; its end is the last token that fits; stopped without one before the cap; and twice no room for an end.
    assert asyncio.run(scores()) == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert info == {"problem": written, "index": 0}  # verl's own manager writes in it, the rows of a group share it
