"""Warm a judge up: supervised fine-tuning on verdicts, with or without reasoning (MR. Judge, stage 1; Flex-Judge).

    python -m recipes.judge.train_sft recipes/judge/sft_cpu.yaml                           # one process
    torchrun --nproc_per_node 8 -m recipes.judge.train_sft recipes/judge/sft_7b.yaml   # or DeepSpeed, see the config
    python -m recipes.judge.train_sft CONFIG --set training.max_steps=2 --set training.output_dir=runs/try    # any setting

The config names the model, the tasks (``judge_data.TaskConfig``) or a file of examples (``data/synthesize.py`` writes them),
LoRA or full, and every field of TRL's ``SFTConfig`` as it stands there. Examples are rendered by the formats that later
judge; the loss is on the judge's turn alone. Interrupted, the same command goes on from the last checkpoint
(``recipes/common/training_folder.py``).

Tasks whose prompts hold images need a model with a processor (``seeing_model.py``, Qwen2.5-VL, ...); TRL's own collator
makes pixel values of them. LoRA on names that the language model alone has leaves the vision tower as it is; a connector is
trained in whole by naming it in ``lora.modules_to_save``.

Differences from the papers: LoRA by default (both train fully); tasks over several formats in one run are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from mrjudge_reward import json_lines
from mrjudge_reward.engines.embedded import embedded_model_path
from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.messages import Message, TextPart
from mrjudge_reward.prompting.sanitizing import neutralise
from mrjudge_reward.settings import Settings
from mrjudge_reward.special_tokens import Reserved, of_tokenizer
from mrjudge_reward.training.items import Item, with_images
from mrjudge_reward.training.tasks import Problem, Split, balanced
from recipes.common.config import command_line, read_config
from recipes.common.training_folder import TrainingFolder
from recipes.data.judge_data import (
    Trait,
    asked_tasks,
    items,
    mixture_weights,
    reasoning,
    shows_images,
    task_problems,
)
from recipes.data.trained_tasks import best, whole

from .chat_rows import alike, check_modalities, data_set, fitting, guard_of, processing_class, save_processor, shown
from .seeing_model import make_known


class SFTRecipe(Settings):
    """What is trained, on what.

    Args:
        model: hub name, path, or ``"embedded"``.
        tasks: name → fields of ``TaskConfig``; mixed by their weights, so that each comes whole at least once.
        balance: what kinds of tasks have the same share: by ``format``, by ``modality``, or both (``mixture_weights``).
        examples: JSON lines of ``messages``, ``answer`` (the judge's turn) and ``task``, instead of or beside tasks.
        example_tasks: the tasks whose examples are learned from; empty for all of the file.
        lora: fields of PEFT's ``LoraConfig``; None trains all weights.
        training: fields of TRL's ``SFTConfig``.
        max_text_tokens: bound of each text of a task's example; one with a longer text is left out, and counted.

    Raises:
        ConfigError: on construction, for tasks of examples without a file of them.
    """

    model: str = "embedded"
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    balance: list[Trait] = Field(default_factory=list)
    examples: str | None = None
    example_tasks: list[str] = Field(default_factory=list)
    lora: dict[str, Any] | None = None
    training: dict[str, Any]
    max_text_tokens: int = 2048

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.example_tasks and self.examples is None:
            raise ConfigError("example_tasks names tasks of a file of examples: name the file in examples")


def rows_of(
    asked: Sequence[tuple[str, Problem | Item]],
    tokenizer: Any,
    max_text_tokens: int,
    reasoned: frozenset[str] = frozenset(),
) -> list[dict[str, Any]]:
    """Examples in TRL's prompt-completion layout, with ``images`` where there are some.

    Args:
        asked: problems, with the names of their tasks; or items of which the best candidate is to be written.
        tokenizer: of the judge.
        max_text_tokens: bound of each text.
        reasoned: tasks in which the verdict comes after reasoning.

    Raises:
        InputError: for an image that is none.
    """
    guard = guard_of(tokenizer, max_text_tokens)
    rows = []
    for name, one in asked:
        item = one if isinstance(one, Item) else one.item
        if isinstance(one, Item):
            turns: Sequence[Message] = one.group.prompt
            answer = guard(best(one))
        else:
            turns = one.render(guard)
            answer = (reasoning(one) if name in reasoned else "") + one.right(space_in(one, tokenizer))
        place = f"task {name}, item {item.group.key}"
        prompt, images = shown(turns, place)
        completion = [{"role": "assistant", "content": answer}]
        rows.append({"prompt": prompt, "completion": completion, "task": name, "images": images, "item": place})
    return rows


def space_in(problem: Problem, tokenizer: Any) -> str:
    """What keeps the opening marker a piece of its own: nothing, or a space where a tokenizer would join a label to it.

    Of ``<answer>A`` Qwen's makes ``<``, ``answer``, ``>A``. A judge that is read has ``<answer>`` before it, and would be
    asked for a token that it never learned to write there.
    """
    opened, whole = (
        tokenizer.encode(text, add_special_tokens=False) for text in (problem.format.answer_open, problem.right())
    )
    return "" if whole[: len(opened)] == opened else " "


def kept_apart(answer: str, tokenizer: Any) -> str:
    """An answer with spaces around the verdicts that a tokenizer would join to ``<answer>``; see ``space_in``."""

    def apart(found: re.Match[str]) -> str:
        opened, whole = (
            tokenizer.encode(text, add_special_tokens=False) for text in ("<answer>", f"<answer>{found[1]}")
        )
        return found[0] if whole[: len(opened)] == opened else f"<answer> {found[1]} </answer>"

    return re.sub(r"<answer>([^<\s][^<]*)</answer>", apart, answer)


def written_rows(path: str, reserved: Reserved = frozenset(), tokenizer: Any = None) -> list[dict[str, Any]]:
    """Examples from a file; images stand in their messages, or in ``images`` for the places there.

    Those that say of themselves that they are of the dev or test side (``split``) are left out, and counted.

    Args:
        path: the file.
        reserved: tokens of the judge that no text of a prompt may speak; whoever wrote the file may have had others.
        tokenizer: of the judge, which may join verdicts to their marker; None leaves answers as they stand.

    Raises:
        InputError: naming the first line that is none, or that has an image which cannot be shown.
    """
    rows, others = [], 0
    for number, row in json_lines.read(path):
        place = f"{path}, line {number}"
        with json_lines.placed(place):
            if row.get("split", "train") != "train":
                others += 1
                continue
            turns = with_images(row["messages"], row.get("images") or ())
            prompt, images = shown([defused(turn, reserved) for turn in turns], place)
            written = row["answer"] if tokenizer is None else kept_apart(row["answer"], tokenizer)
            answer = [{"role": "assistant", "content": written}]
            task = row.get("task", "file")
            rows.append({"prompt": prompt, "completion": answer, "task": task, "images": images, "item": place})
    if others:
        print(f"{path}: {others} of {len(rows) + others} examples are left out, being of the dev and test sides")
    return rows


def of_tasks(rows: list[dict[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these tasks, or all where none is named.

    Raises:
        ConfigError: naming a task that no row is of.
    """
    found = dict.fromkeys(row["task"] for row in rows)
    if unknown := [task for task in tasks if task not in found]:
        raise ConfigError(
            f"example_tasks: no example is of {', '.join(unknown)}; there are {', '.join(found) or 'none'}"
        )
    return [row for row in rows if not tasks or row["task"] in tasks]


def defused(turn: Message, reserved: Reserved) -> Message:
    """A turn whose texts speak none of these tokens."""
    parts = [TextPart(neutralise(p.text, reserved)) if isinstance(p, TextPart) else p for p in turn.content]
    return Message(turn.role, tuple(parts))


def examples(recipe: SFTRecipe, split: Split, tokenizer: Any) -> list[dict[str, Any]]:
    """All examples of a split, in random order; those of tasks of which a text would be cut are left out, and counted.

    Raises:
        ConfigError: if the tasks contradict each other, or ``example_tasks`` names one that is not there.
        InputError: if there is nothing to learn from, or all of a task would be cut.
    """
    tasks = asked_tasks(recipe.tasks)
    guard = guard_of(tokenizer, recipe.max_text_tokens)
    made: dict[str, list[Problem | Item]] = {}
    for name, task in tasks.items():
        some: list[Problem | Item] = list(items(task, split) if task.describe else task_problems(task, split))
        made[name] = whole(name, some, lambda _: guard)
    rows: list[dict[str, Any]] = []
    if made:
        pictured = {name: any(map(shows_images, some[:1])) for name, some in made.items()}
        weights = mixture_weights(tasks, pictured, recipe.balance)
        count = round(max(len(made[name]) / weight for name, weight in weights.items()) * sum(weights.values()))
        mixture = balanced(made, count, int(recipe.training.get("seed", 42)), weights)
        reasoned = frozenset(name for name, task in tasks.items() if task.reasoning != "none")
        rows = rows_of(mixture, tokenizer, recipe.max_text_tokens, reasoned)
    if recipe.examples and split == "train":
        rows += of_tasks(written_rows(recipe.examples, of_tokenizer(tokenizer), tokenizer), recipe.example_tasks)
    if not rows:
        raise InputError("the config names neither tasks nor a file of examples")
    return alike(rows)


def trainer_class() -> Any:
    """TRL's trainer; without a GPU one that computes logits only where an answer stands.

    TRL's own does so with a GPU; elsewhere it scores all positions of prompts too (``trl/trainer/utils.py``,
    ``add_fused_lm_head``), which for a small model with a large vocabulary takes as long as all its layers.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from trl import SFTTrainer

    if torch.cuda.is_available():
        return SFTTrainer

    class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
        """The same loss, from fewer logits."""

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs["labels"][:, 1:]
            kept = (labels != -100).any(dim=0).nonzero().squeeze(-1)
            given = {name: value for name, value in inputs.items() if name not in ("labels", "use_cache")}
            output = model(**given, logits_to_keep=kept, use_cache=False)
            logits, wanted = output.logits.float().flatten(0, 1), labels[:, kept].flatten()
            total = cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
            if num_items_in_batch is None:
                loss = total / (wanted != -100).sum().clamp(min=1)
            else:  # of all ranks, whose gradients are averaged
                ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
                loss = total * ranks / num_items_in_batch
            return (loss, output) if return_outputs else loss

    return AnswerTrainer


def check_sampling(rows: Sequence[dict[str, Any]], strategy: str) -> None:
    """Raise ConfigError where rows are to be grouped by a length that is known only once their images are tokens."""
    if strategy == "group_by_length" and any(row.get("images") for row in rows):
        raise ConfigError(
            "images become tokens batch by batch, so rows with them cannot be grouped by length: set "
            "training.train_sampling_strategy to random"
        )


def train(recipe: SFTRecipe) -> None:
    """Train and save.

    Raises:
        ConfigError: if ``training.output_dir`` holds a run with other settings.
        InputError: if there is nothing to learn from, or something that the model cannot be shown.
    """
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig

    folder = TrainingFolder(recipe)
    if folder.finished:
        return
    model = str(embedded_model_path()) if recipe.model == "embedded" else recipe.model
    make_known(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    settings = SFTConfig(**{"completion_only_loss": True, "report_to": "none", **recipe.training})
    rows = examples(recipe, "train", tokenizer)
    processing = processing_class(model, tokenizer, rows)
    rows = fitting(rows, processing, settings.max_length)  # the trainer would cut the verdict off
    check_modalities(rows)
    check_sampling(rows, settings.train_sampling_strategy)
    trainer = trainer_class()(
        model=model,
        args=settings,
        train_dataset=data_set(rows),
        processing_class=processing,
        peft_config=None if recipe.lora is None else LoraConfig(task_type="CAUSAL_LM", **recipe.lora),
    )
    # The losses count tokens of the whole batch; transformers believes that vision-language models cannot.
    trainer.model_accepts_loss_kwargs = True
    folder.train(trainer)
    trainer.save_model(str(folder.path))
    if trainer.is_world_process_zero():
        save_processor(model, tokenizer, folder.path)
        folder.finish()
        print(f"{len(rows)} examples; saved to {folder.path}")


def main() -> None:
    """Read the config and train."""
    parser = command_line(__doc__)
    args = parser.parse_args()
    train(SFTRecipe(**read_config(args.config, args.overrides)))


if __name__ == "__main__":
    main()
