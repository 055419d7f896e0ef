"""Write judging problems as verl's data sets: ``train.parquet`` and ``dev.parquet`` (see ``judge_rl.yaml``).

    python -m recipes.verl.judge_rl_data recipes/judge/rl_7b.yaml ~/data/judge
    python -m recipes.verl.judge_rl_data recipes/judge/rl_7b.yaml ~/data/judge --set tasks.science.count=100

Tasks and model are those of a config of ``judge/train_rl.py``, whose other settings are verl's business here. The training
set is a mixture by the tasks' weights in which each task comes whole; the dev set has all dev problems.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import InputError, require
from mrjudge_reward.integrations.verl.judge_training import written_problem
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.special_tokens import of_tokenizer
from mrjudge_reward.training.tasks import Problem, Split, balanced
from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig, check_tasks, task_problems

MAX_TEXT_TOKENS = 2048


def verl_rows(tasks: dict[str, TaskConfig], split: Split, tokenizer: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a split as verl reads them.

    Args:
        tasks: name → task. Held-out ones are left out.
        split: training gives a mixture, the others all problems.
        tokenizer: of the judge that is trained; its own markers cannot be spoken by a text.
        seed: of the mixture.

    Raises:
        InputError: if nothing is left, or for an item with images, which these rows cannot hold.
    """
    check_tasks(tasks)
    tasks = {name: task for name, task in tasks.items() if task.held_out == "no"}
    made = {name: task_problems(task, split) for name, task in tasks.items()}
    if not made:
        raise InputError("there is no task that is not held out")
    shown: list[tuple[str, Problem]] = [(name, problem) for name, some in made.items() for problem in some]
    if split == "train":
        weights = {name: task.weight for name, task in tasks.items()}
        count = round(max(len(made[name]) / weight for name, weight in weights.items()) * sum(weights.values()))
        shown = balanced(made, count, seed, weights)

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    guard = Sanitizer(length, MAX_TEXT_TOKENS, of_tokenizer(tokenizer))
    rows = []
    for index, (name, problem) in enumerate(shown):
        if any(turn.images for turn in problem.item.group.prompt):
            raise InputError(f"item {problem.item.group.key} has images, and these rows hold text alone")
        written = written_problem(problem, tasks[name].judge)
        rows.append(
            {
                "data_source": name,
                "prompt": [{"role": turn.role, "content": turn.text} for turn in problem.render(guard)],
                "ability": "judging",
                "reward_model": {"style": "rule", "ground_truth": problem.right()},
                "extra_info": {"split": split, "index": index, "problem": written},
            }
        )
    return rows


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    args = parser.parse_args()
    recipe = read_config(args.config, args.overrides)

    from transformers import AutoTokenizer

    model = recipe.get("model", "embedded")
    tokenizer = AutoTokenizer.from_pretrained(str(embedded_model_path()) if model == "embedded" else model)
    tasks = {name: TaskConfig(**values) for name, values in recipe.get("tasks", {}).items()}
    dataset = require("datasets", extra="trl").Dataset
    args.out.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("train", "dev")
    for split in splits:
        rows = verl_rows(tasks, split, tokenizer)
        dataset.from_list(rows).to_parquet(args.out / f"{split}.parquet")
        print(f"{len(rows)} rows in {args.out / split}.parquet")


if __name__ == "__main__":
    main()
