"""Whether a judge looks at the pictures: the same problems with the picture blanked, and with another's in its place.

===========  ========================================================================================================
blanked      accuracy with every picture of the prompt painted over in one grey, its size kept. For the judge measured, this
             is the baseline of text alone: it reads all that can be read without seeing (a text model would refuse the
             problem). A judge that does well here has found something in the candidates' wording
swapped      accuracy with the pictures of other items of the task, drawn by a seed and never the item's own. A judge that
             follows what it sees is misled, to chance or below it
seen         accuracy less that of blanked, problem by problem, with an interval over items
===========  ========================================================================================================

Where the interval of ``seen`` reaches down to 0, nothing shows that the judge looks at the picture, and the report says
that it does not: its accuracy on such a task is no accuracy in judging pictures (MM-JudgeBias, arXiv 2604.18164, finds many
such judges).
Of candidates that are graded alone, pairs in the right order are what is compared, not accuracy (``judge.accuracies``).
Pictures in candidates are left as they are.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mrjudge_reward.errors import InputError, require
from mrjudge_reward.images import Picture, load_picture
from mrjudge_reward.messages import ImagePart, Message
from mrjudge_reward.training.tasks import Problem
from recipes.common.intervals import Interval

GREY = (128, 128, 128)


def shows_images(problems: Sequence[Problem]) -> bool:
    """Whether any prompt holds a picture."""
    return any(pictures_of(problem) for problem in problems)


def pictures_of(problem: Problem) -> list[Any]:
    """The pictures of its prompt, in order, as they were given."""
    return [part.image for turn in problem.item.group.prompt for part in turn.images]


def blanked(problems: Sequence[Problem]) -> list[Problem]:
    """The same with one grey over every picture; a picture that cannot be loaded stays, and fails as before."""
    return [_showing(problem, [_grey(image) for image in pictures_of(problem)]) for problem in problems]


def swapped(problems: Sequence[Problem], seed: int) -> list[Problem] | None:
    """The same with pictures of other items; both orders of an item show the same one.

    Returns:
        None if some item's pictures are all that there are.
    """
    known: dict[int, str] = {}  # a picture is loaded once, however many problems show it
    for problem in problems:
        for image in pictures_of(problem):
            if id(image) not in known:
                known[id(image)] = _key(image)
    all_ = {known[id(image)]: image for problem in problems for image in pictures_of(problem)}
    keys = sorted(all_)
    made = []
    for problem in problems:
        own = {known[id(image)] for image in pictures_of(problem)}
        if own and len(own) == len(keys):
            return None
        draw = random.Random(f"{seed} {problem.item.group.key}")
        others: list[Any] = []
        while len(others) < len(pictures_of(problem)):
            key = draw.choice(keys)
            others += [] if key in own else [all_[key]]
        made.append(_showing(problem, others))
    return made


def ablation(
    problems: Sequence[Problem],
    right: Sequence[Sequence[float]],
    ask: Callable[[Sequence[Problem]], Sequence[Sequence[float]]],
    share: Callable[[Sequence[Sequence[float]]], Interval],
    seed: int,
) -> dict[str, Interval]:
    """The rows of a report; see the module.

    Args:
        problems: of a task whose prompts hold pictures.
        right: how right the judge is on each item.
        ask: gives the same for problems, with the items in the same order.
        share: makes a mean with its interval of values by item.
        seed: of what is swapped.
    """
    without = ask(blanked(problems))
    row = {"blanked": share(without)}
    if (others := swapped(problems, seed)) is not None:
        row["swapped"] = share(ask(others))
    row["seen"] = share(
        [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(right, without, strict=True)]
    )
    return row


def blindness(row: Mapping[str, Any]) -> str:
    """What to say of a judge that was not shown to look at the picture; empty for one that was, or was not asked."""
    if "seen" not in row or row["seen"][1] > 0:
        return ""
    mean, low, high = row["seen"]
    return (
        "the judge does not look at the picture: its accuracy with it, less that without it, is "
        f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    )


def _showing(problem: Problem, images: Sequence[Any]) -> Problem:
    """With these pictures in the places of its own; the item keeps its key, so that the two can be compared."""
    rest = iter(images)
    prompt = tuple(
        Message(
            turn.role, tuple(ImagePart(next(rest)) if isinstance(part, ImagePart) else part for part in turn.content)
        )
        for turn in problem.item.group.prompt
    )
    return replace(problem, item=replace(problem.item, group=replace(problem.item.group, prompt=prompt)))


def _loaded(image: Any) -> Picture | None:
    try:
        return load_picture(image)
    except InputError:
        return None


def _key(image: Any) -> str:
    picture = _loaded(image)
    return picture.key if picture is not None else f"cannot be loaded: {image!r:.300}"


def _grey(image: Any) -> Any:
    picture = _loaded(image)
    if picture is None:
        return image
    buffer = io.BytesIO()
    require("PIL.Image", extra="images").new("RGB", (picture.width, picture.height), GREY).save(buffer, format="PNG")
    return buffer.getvalue()
