"""Which of two captions a picture makes likelier: a model that describes pictures, as a judge of captions.

    python -m recipes.studies.judge_by_writing recipes/evaluate/eval_seeing_cpu.yaml --out runs/eval-seeing
    python -m recipes.studies.judge_by_writing CONFIG --set judge.adapter=ADAPTER --against runs/eval-seeing --out DIR

A small model that has learned to describe pictures need not be able to say which of two captions fits. What it would
write says it: a caption's grade is its log-likelihood under the picture less that under a grey one, so that a caption gains
nothing by being common or short. No verdict is asked for, and captions are not shown, so their order cannot matter.

===========  ========================================================================================================
order        share of items in which the right caption has the highest grade (chance: one in so many as there are)
blanked      the same by the log-likelihood under the grey picture alone: what can be told without seeing
swapped      with the picture of the item that comes next
===========  ========================================================================================================

Each with a 95 % interval from a bootstrap over items. Writes ``report.json`` and ``report.md``. ``--against`` another report
of the same config adds how much more often this judge is right, paired by item, for each task and for all items together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence

from mrjudge_reward.errors import ConfigError, InputError, require
from mrjudge_reward.images import load_picture, opened
from mrjudge_reward.training.items import Item
from recipes.common.config import command_line, read_config
from recipes.common.intervals import Interval, interval, written
from recipes.data.judge_data import TaskConfig, check_tasks, items
from recipes.evaluate.image_ablation import GREY
from recipes.evaluate.judge import EvaluationRecipe, write_report
from recipes.judge.chat_rows import guard_of
from recipes.judge.seeing_model import IMAGE, merged
from recipes.judge.vision_tower import SIDE


def judge_of(base: str, adapter: str | None) -> tuple[Any, Any]:
    """Model, in eval mode, and processor.

    Raises:
        InputError: if there is no such model or adapter.
    """
    if adapter is not None:
        model, processor = merged(base, adapter)
        return model.eval(), processor
    import transformers

    try:
        model = transformers.LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
        return model.eval(), transformers.AutoProcessor.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise InputError(f"{base} holds no model that sees: {error}") from error


@torch.no_grad()  # type: ignore[untyped-decorator]
def seen_as(model: Any, processor: Any, pictures: Sequence[Any]) -> list[torch.Tensor]:
    """What stands for each picture in a prompt, each of shape (tokens, width)."""
    found: list[torch.Tensor] = []
    for first in range(0, len(pictures), 16):
        pixels = processor.image_processor(images=list(pictures[first : first + 16]), return_tensors="pt")[
            "pixel_values"
        ]
        found += model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)
    return found


@torch.no_grad()  # type: ignore[untyped-decorator]
def likelihoods(model: Any, processor: Any, question: str, asked: Sequence[tuple[torch.Tensor, str]]) -> list[float]:
    """Log-likelihoods, in nats, of captions as the answer to a question about pictures, the end of the turn included."""
    tokenizer = processor.tokenizer
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in prompt.split(IMAGE))
    table = model.get_input_embeddings()
    rows, answers = [], []
    for picture, caption in asked:
        answer = torch.tensor(tokenizer(f"{caption}<|im_end|>", add_special_tokens=False)["input_ids"])
        words = [table(torch.tensor(before)), picture, table(torch.tensor(after)), table(answer[:-1])]
        rows.append(torch.cat(words))
        answers.append(answer)
    hidden = model.model.language_model(inputs_embeds=pad_sequence(rows, batch_first=True)).last_hidden_state
    found = []
    for row, answer, states in zip(rows, answers, hidden, strict=True):  # padding stands behind, where nothing looks
        logits = model.lm_head(states[len(row) - len(answer) : len(row)])
        found.append(float(logits.log_softmax(-1).gather(1, answer[:, None]).sum()))
    return found


def measured(model: Any, processor: Any, found: Sequence[Item], recipe: EvaluationRecipe) -> dict[str, Any]:
    """The row of one task.

    Raises:
        InputError: if an item does not show one picture and ask about it, or its picture is none.
    """
    shown = [[part for turn in item.group.prompt for part in turn.images] for item in found]
    if odd := [item.group.key for item, images in zip(found, shown, strict=True) if len(images) != 1]:
        raise InputError(f"item {odd[0]} does not show one picture")
    pictures = seen_as(model, processor, [opened(load_picture(images[0].image)) for images in shown])
    (grey,) = seen_as(model, processor, [require("PIL.Image", extra="images").new("RGB", (SIDE, SIDE), GREY)])
    guard = guard_of(processor.tokenizer, 2048)
    rows: dict[str, list[list[float]]] = {"order": [], "blanked": [], "swapped": []}
    for number, item in enumerate(track(found, "Pictures")):
        captions = [guard(text) for text in item.group.candidates]
        question = "".join(turn.text for turn in item.group.prompt)
        looks = (pictures[number], grey, pictures[(number + 1) % len(found)])
        values = likelihoods(model, processor, question, [(look, caption) for look in looks for caption in captions])
        own, blank, other = (values[start : start + len(captions)] for start in range(0, len(values), len(captions)))
        for name, grades in (
            ("order", [a - b for a, b in zip(own, blank, strict=True)]),
            ("blanked", blank),
            ("swapped", [a - b for a, b in zip(other, blank, strict=True)]),
        ):
            best = [place for place, grade in enumerate(grades) if grade == max(grades)]
            rows[name].append([float(len(best) == 1 and item.gold_G[best[0]] == max(item.gold_G))])
    chance = sum(item.gold_G.count(max(item.gold_G)) / len(item.gold_G) for item in found) / len(found)
    if len(found) == 1:
        del rows["swapped"]  # there is no other picture
    shares = {name: interval(values, recipe.resamples, recipe.seed) for name, values in rows.items()}
    accuracies = {item.group.key: accuracy for item, (accuracy,) in zip(found, rows["order"], strict=True)}
    return {"items": len(found), "chance": chance, **shares, "per_item": accuracies}


def gains(report: Mapping[str, Any], before: Mapping[str, Any], resamples: int, seed: int) -> dict[str, Interval]:
    """How much more often a judge is right than another on the same items, by task, and on ``all`` of them.

    Raises:
        InputError: if the reports are not on the same items.
    """
    found: dict[str, list[list[float]]] = {}
    for name, row in report["tasks"].items():
        accuracies, others = row["per_item"], before["tasks"].get(name, {}).get("per_item", {})
        if accuracies.keys() != others.keys():
            both = len(accuracies.keys() & others.keys())
            raise InputError(
                f"of the {len(accuracies)} items of {name} {both} are among the {len(others)} of the other report"
            )
        found[name] = [[accuracy - others[key]] for key, accuracy in accuracies.items()]
    found["all"] = [row for rows in found.values() for row in rows]
    return {name: interval(rows, resamples, seed) for name, rows in found.items()}


def evaluate(recipe: EvaluationRecipe) -> dict[str, Any]:
    """The report on all tasks.

    Raises:
        ConfigError: if the settings contradict each other.
        InputError: see :func:`measured`.
    """
    if recipe.split not in ("dev", "test"):
        raise ConfigError(f"a judge is measured on dev or test; got {recipe.split!r}")
    tasks = {name: TaskConfig(**values) for name, values in recipe.tasks.items()}
    check_tasks(tasks)
    base, adapter = recipe.judge["model"], recipe.judge.get("adapter")
    model, processor = judge_of(base, adapter)
    report: dict[str, Any] = {"judge": f"{base} + {adapter}", "split": recipe.split, "tasks": {}}
    for name, task in tasks.items():
        row = measured(model, processor, items(task, recipe.split), recipe)  # type: ignore[arg-type]
        report["tasks"][name] = row
        print(
            f"{name}: " + ", ".join(f"{key} {written(value)}" for key, value in row.items() if key != "per_item"),
            flush=True,
        )
    return report


def main() -> None:
    """Measure, print, write."""
    parser = command_line(__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--against", metavar="DIR", help="folder of another judge's report on the same items")
    args = parser.parse_args()
    recipe = EvaluationRecipe(**read_config(args.config, args.overrides))
    before = None if args.against is None else json.loads((Path(args.against) / "report.json").read_text("utf-8"))
    report = evaluate(recipe)
    if before is not None:
        report["gains"] = gains(report, before, recipe.resamples, recipe.seed)
        print("gains: " + ", ".join(f"{name} {written(value)}" for name, value in report["gains"].items()))
    write_report(report, Path(args.out))


if __name__ == "__main__":
    main()
