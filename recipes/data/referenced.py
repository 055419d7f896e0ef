"""Pairs of answers, one right and one wrong, to questions that have a reference answer: from files of two public sets.

===========  ======================================================  =========================================  ==========
set          file                                                    a pair                                     licence
===========  ======================================================  =========================================  ==========
truthful_qa  ``TruthfulQA.csv`` of sylinrl/TruthfulQA on GitHub      Reference: the best answer. Right: another  Apache-2.0
                                                                     of the correct ones. Wrong: one of the
                                                                     incorrect ones. All written by people.
gsm8k        ``example_model_solutions.jsonl`` of                    Reference: the worked answer, by a person.  MIT
             openai/grade-school-math on GitHub                      Right and wrong: solutions of two language
                                                                     models, by their final number.
===========  ======================================================  =========================================  ==========

Questions without such two answers give no pair. Which of several is taken, is drawn.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, Literal, TypeAlias

from mrjudge_reward.errors import InputError
from mrjudge_reward.training.items import Item, from_choice
from recipes.common.rows import read_rows

SetName: TypeAlias = Literal["truthful_qa", "gsm8k"]

_CALCULATED = re.compile(r"<<[^<>]*>>")
"""What a calculator put into the solutions, a second time, for their models."""


def referenced_pairs(name: SetName, path: str, seed: int = 0) -> list[Item]:
    """The pairs of a set, in random order; each group has its reference.

    Args:
        name: of the set.
        path: of its file.
        seed: of what is drawn.

    Raises:
        InputError: if there is no such file, or a row lacks a field.
    """
    read = _truthful_qa if name == "truthful_qa" else _gsm8k
    made: dict[str, Item] = {}
    for number, row in enumerate(_csv(path) if name == "truthful_qa" else read_rows(path), 1):
        try:
            question, reference, right, wrong = read(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}, row {number} is none of {name}: {type(error).__name__} {error}") from error
        draw = Random(f"{seed} {question}")
        if right and wrong and question not in made:
            options = [draw.choice(right), draw.choice(wrong)]
            gold = draw.randrange(2)
            item = from_choice(question, options if gold == 0 else options[::-1], gold, name)
            made[question] = replace(item, group=replace(item.group, reference=reference))
    found = list(made.values())
    Random(seed).shuffle(found)
    return found


def _csv(path: str) -> list[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no CSV file that can be read: {error}") from error


def _truthful_qa(row: Mapping[str, Any]) -> tuple[str, str, list[str], list[str]]:
    best = row["Best Answer"].strip()
    correct, wrong = (
        [answer for part in row[field].split(";") if (answer := part.strip())]
        for field in ("Correct Answers", "Incorrect Answers")
    )
    if "no comment" in best:  # counts as correct everywhere, and says nothing that an answer could agree with
        return row["Question"], best, [], wrong
    right = [answer for answer in correct if answer != best and "no comment" not in answer]
    return row["Question"].strip(), best, right, [answer for answer in wrong if answer not in correct]


def _gsm8k(row: Mapping[str, Any]) -> tuple[str, str, list[str], list[str]]:
    solved = [
        (one["is_correct"], _CALCULATED.sub("", one["solution"])) for one in row.values() if isinstance(one, dict)
    ]
    right, wrong = ([text for correct, text in solved if correct is wanted] for wanted in (True, False))
    return row["question"], _CALCULATED.sub("", row["ground_truth"]), right, wrong
