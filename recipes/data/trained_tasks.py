"""What a judge is trained on: problems of the tasks that are not held out, of which it is shown every text whole.

A text that is cut may hide the very difference that a label stands on, so a problem with one is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from mrjudge_reward.errors import ConfigError, InputError
from mrjudge_reward.judging.token_budget import shared_texts
from mrjudge_reward.prompting.sanitizing import Sanitizer
from mrjudge_reward.training.items import Item
from mrjudge_reward.training.tasks import Problem, Split

from .judge_data import TaskConfig, check_tasks, items, task_problems

Shown = TypeVar("Shown", bound=Problem | Item)


def trained(
    tasks: Mapping[str, TaskConfig], split: Split, guard: Callable[[Problem], Sanitizer]
) -> dict[str, list[Problem]]:
    """Task → its problems of a side, without those that would be cut.

    Args:
        tasks: name → task. Held-out ones are left out, and on the dev side those that have nothing there.
        split: the side.
        guard: what the texts of a problem pass through.

    Raises:
        ConfigError: if all tasks are held out, or none has items of the dev side.
        InputError: if the data cannot be had, or all problems of a task would be cut.
    """
    check_tasks(tasks)
    kept = {name: task for name, task in tasks.items() if task.held_out == "no"}
    if not kept:
        raise ConfigError("there is no task that is not held out, and so nothing to train on")
    if split == "dev":
        kept = {name: task for name, task in kept.items() if measured(name, task)}
        if not kept:
            raise ConfigError(
                "no task has items of the dev side: add one that has, or measure nothing (training.eval_strategy: no, "
                "patience: null)"
            )
    return {name: whole(name, task_problems(task, split), guard) for name, task in kept.items()}


def measured(name: str, task: TaskConfig) -> bool:
    """Whether a task has items to be measured on; those that a judge was tried on are all of the training side."""
    there = task.source != "items" or bool(items(task, "dev"))
    if not there:
        print(f"task {name} is not measured: {task.path} has no items of the dev side")
    return there


def whole(name: str, some: Sequence[Shown], guard: Callable[[Shown], Sanitizer]) -> list[Shown]:
    """Those of a task of which nothing is cut; how many are not is printed. Both orders of a pair have the same texts.

    Args:
        name: of the task.
        some: problems, of which all texts are shown; or items, of which the best candidate is written.
        guard: what the texts of each pass through.

    Raises:
        InputError: if none is left.
    """
    kept = [one for one in some if not _cut(one, guard(one))]
    if len(kept) < len(some):
        said = f"{len(some) - len(kept)} of {len(some)}"
        most = f"a text of more than {guard(some[0]).max_tokens} tokens, which would be cut (max_text_tokens)"
        if not kept:
            raise InputError(f"task {name}: {said} examples have {most}; raise it, or leave the task out")
        print(f"task {name}: {said} examples are left out, having {most}")
    return kept


def _cut(one: Problem | Item, guard: Sanitizer) -> bool:
    if isinstance(one, Item):
        texts: tuple[str, ...] = (best(one),)
        guard(texts[0])
    else:
        one.render(guard)
        texts = (*shared_texts(one.item.group), *(one.item.group.candidates[slot] for slot in one.slots))
    return any((text, guard.max_tokens) in guard.cut for text in texts)


def best(item: Item) -> str:
    """The first of an item's best candidates."""
    return item.group.candidates[item.gold_G.index(max(item.gold_G))]
