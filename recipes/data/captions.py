"""Items of captioned pictures: which of several captions is the right one.

A file of JSON lines, each with ``image`` (a path, from the file's own folder where it is not absolute), ``caption`` and
``category``; ``captioned_images.py`` makes one. A picture and its caption are on one side, by a hash of the caption, and so
are the wrong captions that it is shown with: no item of one side shows a caption of another.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mrjudge_reward import json_lines
from mrjudge_reward.errors import InputError
from mrjudge_reward.images import placed
from mrjudge_reward.training.items import Item, from_choice
from mrjudge_reward.training.tasks import Split, split_of

WHICH = "What does the picture show?"
"""What captions are shown as answers to, and what a judge is taught to describe a picture by."""


@dataclass(frozen=True)
class Captioned:
    """A picture, what it shows, and of which kind that is."""

    image: str
    caption: str
    category: str


def read_captions(path: str, categories: Sequence[str] = (), without: Sequence[str] = ()) -> list[Captioned]:
    """The rows of a file, images as absolute paths.

    Args:
        path: of the file.
        categories: only these; empty for all.
        without: not these.

    Raises:
        InputError: if there is no such file, a line is no captioned image, or a category is in none.
    """
    folder = Path(path).parent
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}; python -m recipes.data.captioned_images makes one")
    found = []
    for number, row in json_lines.read(path):
        texts = [row.get("image"), row.get("caption"), row.get("category")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise InputError(f"{path}, line {number}: image, caption and category must be texts; got {texts!r:.200}")
        image, caption, category = map(str, texts)
        found.append(Captioned(placed(image, folder), caption.strip(), category))
    if unknown := {*categories, *without} - {row.category for row in found}:
        raise InputError(f"{path} has no category {', '.join(sorted(unknown))}")
    return [row for row in found if (not categories or row.category in categories) and row.category not in without]


def same(text: str) -> str:
    """Captions of which this is the same are one: case and spaces make no difference, as to the splits."""
    return " ".join(text.casefold().split())


def caption_items(
    rows: Sequence[Captioned],
    sides: Collection[Split],
    question: str,
    *,
    size: int,
    distractors: Literal["near", "any"],
    rounds: int,
    seed: int,
) -> list[Item]:
    """Items of one side.

    Args:
        rows: of the categories that are asked about.
        sides: splits that the captions may be of.
        question: asked about the picture.
        size: captions of an item, the right one included.
        distractors: ``"near"`` draws the wrong ones from the picture's category as long as there are some.
        rounds: times that each picture comes, each time with other captions.
        seed: of the draw.

    Raises:
        InputError: if there are not enough captions to choose among.
    """
    mine = [row for row in rows if split_of(row.caption) in sides]
    of_image: dict[str, set[str]] = {}
    for row in mine:
        of_image.setdefault(row.image, set()).add(same(row.caption))
    everything = list({same(row.caption): row for row in mine}.values())  # each caption once
    near: dict[str, list[Captioned]] = {}
    for row in everything:
        near.setdefault(row.category, []).append(row)
    items: dict[str, Item] = {}
    for round_ in range(rounds):
        for row in mine:
            draw = random.Random(f"{seed} {round_} {row.image} {row.caption}")
            right = of_image[row.image]
            first = near.get(row.category, []) if distractors == "near" else everything
            chosen = _drawn(draw, first, size - 1, right)
            chosen += _drawn(draw, everything, size - 1 - len(chosen), right | {same(one.caption) for one in chosen})
            if len(chosen) < size - 1:
                continue
            options = [row.caption, *(other.caption for other in chosen)]
            draw.shuffle(options)
            shown = [{"type": "image", "image": row.image}, {"type": "text", "text": question}]
            item = from_choice(
                [{"role": "user", "content": shown}], options, options.index(row.caption), f"captions {row.category}"
            )
            items.setdefault(item.group.key, item)
    if not items:
        raise InputError(
            f"{len(mine)} captioned images in {', '.join(sorted(sides))} give no item of {size} captions; lower size, "
            "or take more categories"
        )
    return list(items.values())


def _drawn(draw: random.Random, pool: Sequence[Captioned], count: int, without: Collection[str]) -> list[Captioned]:
    """So many of a pool, or as many as there are, none of which says one of these."""
    sample = draw.sample(pool, min(len(pool), count + len(without)))
    return [row for row in sample if same(row.caption) not in without][:count]
