"""Write judging problems as verl's data sets: ``train.parquet`` and ``dev.parquet`` (see ``judge_rl.yaml``).

    python -m recipes.verl.judge_rl_data recipes/judge/rl_7b.yaml ~/data/judge
    python -m recipes.verl.judge_rl_data recipes/judge/rl_7b.yaml ~/data/judge --set tasks.science.count=100

Tasks, model and ``max_text_tokens`` are those of a config of ``judge/train_rl.py``, whose other settings are verl's business
here. The training set is a mixture by the tasks' weights in which each task comes whole; the dev set has all dev problems. A
problem with a text that would be cut is left out, and counted.

An image of an item stands as ``<image>`` in its turn and in the column ``images``, as verl has it. What verl would take for
a place in a text of such a row is defused as a marker is. Prompts that are too long verl leaves out itself
(``data.filter_overlong_prompts``), and says how many are left.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import InputError, require
from mrjudge_reward.images import load_picture
from mrjudge_reward.integrations.verl.judge_training import written_problem
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.special_tokens import of_tokenizer
from mrjudge_reward.training.tasks import Problem, Split, balanced
from recipes.common.config import read_config
from recipes.data.judge_data import TaskConfig, Trait, asked_tasks, mixture_weights, shows_images
from recipes.data.trained_tasks import trained

MAX_TEXT_TOKENS = 2048
PLACES = frozenset({"<image>", "<video>", "<audio>"})
"""What verl cuts a text at, in a row that shows something."""


def verl_rows(
    tasks: dict[str, TaskConfig],
    split: Split,
    tokenizer: Any,
    seed: int = 0,
    sees: bool = True,
    balance: Sequence[Trait] = (),
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> list[dict[str, Any]]:
    """Rows of a split as verl reads them.

    Args:
        tasks: name → task. Held-out ones are left out.
        split: training gives a mixture, the others all problems.
        tokenizer: of the judge that is trained; its own markers cannot be spoken by a text.
        seed: of the mixture.
        sees: whether that judge takes images.
        balance: of the mixture, as in ``judge/train_rl.py``.
        max_text_tokens: bound of each text of a problem; one with a longer text is left out, and counted.

    Raises:
        ConfigError: if all tasks are held out, or none has items of the dev side.
        InputError: if all of a task would be cut, for an item with images where the judge sees none, or with one that is
            none.
    """

    def length(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    reserved = of_tokenizer(tokenizer)
    beside_text, beside_images = (Sanitizer(length, max_text_tokens, more) for more in (reserved, reserved | PLACES))

    def guard(problem: Problem) -> Sanitizer:
        return beside_images if shows_images(problem) else beside_text

    made = trained(tasks, split, guard)
    shown: list[tuple[str, Problem]] = [(name, problem) for name, some in made.items() for problem in some]
    if split == "train":
        sees_any = {name: any(map(shows_images, some[:1])) for name, some in made.items()}
        weights = mixture_weights({name: tasks[name] for name in made}, sees_any, balance)
        count = round(max(len(made[name]) / weight for name, weight in weights.items()) * sum(weights.values()))
        shown = balanced(made, count, seed, weights)
    pictured = [shows_images(problem) for _, problem in shown]
    rows = []
    for index, ((name, problem), with_images) in enumerate(zip(shown, pictured, strict=True)):
        item = f"task {name}, item {problem.item.group.key}"
        if with_images and not sees:
            raise InputError(f"{item} has images, and the model takes none")
        written = written_problem(problem, tasks[name].judge)
        turns = problem.render(guard(problem))
        try:
            images = [load_picture(part.image).data for turn in turns for part in turn.images]
        except InputError as error:
            raise InputError(f"{item}: {error}") from error
        rows.append(
            {
                "data_source": name,
                "prompt": [{"role": turn.role, "content": marked_text(turn)} for turn in turns],
                "ability": "judging",
                "reward_model": {"style": "rule", "ground_truth": problem.right()},
                "extra_info": {"split": split, "index": index, "problem": written},
                # In every row if in one, or the file would have columns of two kinds.
                **({"images": [{"bytes": data, "path": None} for data in images]} if any(pictured) else {}),
            }
        )
    return rows


def marked_text(turn: Message) -> str:
    """A turn's text with ``<image>`` where an image stands."""
    if not turn.images:
        return turn.text
    return "".join(part.text if isinstance(part, TextPart) else "<image>" for part in turn.content)


def write(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Write rows as Parquet; verl gets images as images."""
    datasets = require("datasets", extra="trl")
    made = datasets.Dataset.from_list(list(rows))
    if "images" in rows[0]:
        made = made.cast_column("images", datasets.List(datasets.Image()))
    made.to_parquet(file)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="overrides")
    args = parser.parse_args()
    recipe = read_config(args.config, args.overrides)

    from transformers import AutoTokenizer, PretrainedConfig

    model = recipe.get("model", "embedded")
    model = str(embedded_model_path()) if model == "embedded" else model
    tokenizer = AutoTokenizer.from_pretrained(model)
    sees = "vision_config" in PretrainedConfig.get_config_dict(model)[0]
    tasks = asked_tasks(recipe.get("tasks", {}))
    most = recipe.get("max_text_tokens", MAX_TEXT_TOKENS)
    args.out.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("train", "dev")
    same = {"sees": sees, "balance": recipe.get("balance", ()), "max_text_tokens": most}
    for split, rows in [(split, verl_rows(tasks, split, tokenizer, **same)) for split in splits]:  # both, or neither
        write(rows, args.out / f"{split}.parquet")
        print(f"{len(rows)} rows in {args.out / split}.parquet")


if __name__ == "__main__":
    main()
