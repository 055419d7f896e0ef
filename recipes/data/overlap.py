"""Questions that a benchmark asks too: what a judge is trained on must not be what it is tested on.

Two questions are the same if they differ in case, spaces and how letters are encoded alone; with pictures, if they also show
the same one. A question that was reworded is not found.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mrjudge_reward.errors import InputError
from mrjudge_reward.images import bare, load_picture
from mrjudge_reward.messages import as_messages
from mrjudge_reward.training.items import Item
from recipes.common.rows import placed_rows

_QUESTIONS = ("prompt", "query", "question", "instruction", "Text", "context")
_IMAGES = ("images", "image", "Image")


def apart(items: Sequence[Item], benchmarks: Mapping[str, str]) -> list[Item]:
    """Items whose question no benchmark asks; how many are left out for which one is printed.

    Args:
        items: all of them.
        benchmarks: file or name of a hub data set → its split.

    Raises:
        InputError: if a benchmark cannot be read, or has no column with a question.
    """
    kept = list(items)
    for path, split in benchmarks.items():
        asked = _questions(path, split)
        others = [item for item in kept if not _is_asked(item, asked)]
        if len(others) < len(kept):
            print(f"{len(kept) - len(others)} of {len(kept)} items are left out, which {path} asks too")
        kept = others
    return kept


def _questions(path: str, split: str) -> dict[str, list[list[Any]]]:
    """Questions → the images of each row that asks them."""
    found: dict[str, list[list[Any]]] = defaultdict(list)
    for _, row in placed_rows(path, split):
        question = next((row[name] for name in _QUESTIONS if row.get(name)), None)
        if question is not None:
            images: Any = next((row[name] for name in _IMAGES if row.get(name)), [])
            found[_plain(question)].append(images if isinstance(images, list) else [images])
    if not found:
        raise InputError(f"{path} has no question in a column {', '.join(_QUESTIONS)}")
    return found


def _plain(question: Any) -> str:
    text = "\n".join(turn.text for turn in as_messages(question) if turn.role == "user").replace("<image>", " ")
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_asked(item: Item, asked: Mapping[str, list[list[Any]]]) -> bool:
    rows = asked.get(_plain(item.group.prompt), [])
    mine = {_key(part.image) for turn in item.group.prompt for part in turn.images} if rows else set()
    return any(not mine or not images or mine & {_key(bare(image)) for image in images} for images in rows)


def _key(image: Any) -> Any:
    try:
        return load_picture(image).key
    except InputError:
        return image if isinstance(image, str) else id(image)  # it cannot be shown, and is refused where it would be
