"""Items that judges are trained and tested on: a question, candidates, and how good each of them is.

Adapters for what people have: preference sets (see ``layouts``), multiple choice, ratings. Prompts may hold images. An
item's key is a hash of its content, the same on every machine.

>>> from_choice("What does more resistance do to the current?", ["It rises.", "It falls."], gold=1).gold_G
(0.0, 1.0)
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from mrjudge_reward.completions import unshown
from mrjudge_reward.errors import InputError
from mrjudge_reward.images import bare, given_as
from mrjudge_reward.messages import ImagePart, Message, UnshownPart, as_messages
from mrjudge_reward.types import Group

from .layouts import compared


@dataclass(frozen=True)
class Item:
    """A question with candidates and their worth.

    Attributes:
        group: prompt and candidates; its key names the item.
        gold_G: worth of each candidate, higher is better.
        domain: where it comes from, e.g. ``"film reviews"``.
        scale: least and greatest worth that there can be. Formats that grade lay their own scale over it; all others
            look at the order alone.
    """

    group: Group
    gold_G: tuple[float, ...]
    domain: str
    scale: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{self.domain}: a scale needs a least and a greater worth; got {self.scale}")
        if len(self.gold_G) != len(self.group.candidates) or not self.gold_G:
            raise InputError(
                f"{self.domain}: {len(self.gold_G)} gold values for {len(self.group.candidates)} candidates"
            )
        if not all(low <= worth <= high for worth in self.gold_G):
            raise InputError(f"{self.domain}: gold values must lie within {low}..{high}; got {self.gold_G}")
        asked = (part.kind for turn in self.group.prompt for part in turn.content if isinstance(part, UnshownPart))
        if kind := next(asked, unshown(self.group.candidates)):
            raise InputError(
                f"{self.domain}: an item holds a part of type {kind!r}, and a judge is shown text and images alone"
            )


def from_preference(row: Mapping[str, Any], domain: str = "preferences") -> Item:
    """An item of a preference set: an answer that is better than another, or several with ratings or ranks.

    Args:
        row: in any layout of ``layouts``: TRL's (``prompt``, ``chosen``, ``rejected``) and those of public sets; with the
            prompt's images, if any, in ``images`` or ``image``. Reasoning before an answer is dropped.
        domain: of the item.

    Raises:
        InputError: if the row is in none of them, is a tie, or has an answer that is empty; with the field.
    """
    found = compared(row)
    prompt = with_images(found.prompt, found.images)
    return Item(_keyed(prompt, found.answers_G), found.gold_G, domain, found.scale)


def from_choice(question: Any, options: Sequence[str], gold: int, domain: str = "multiple choice") -> Item:
    """An item of a multiple-choice set: the option with index ``gold`` is right, the others are not.

    Raises:
        InputError: if there is no such option, or the right one also stands among the wrong ones.
    """
    if not 0 <= gold < len(options):
        raise InputError(f"the right option is number {gold} of {len(options)}")
    if list(options).count(options[gold]) > 1:
        raise InputError(f"the right option is also a wrong one: {options[gold]!r:.200}")
    return Item(_keyed(question, options), tuple(float(index == gold) for index in range(len(options))), domain)


def from_ratings(
    question: Any,
    texts: Sequence[str],
    ratings: Sequence[float],
    domain: str = "ratings",
    *,
    scale: tuple[float, float],
) -> Item:
    """An item of rated responses, on a scale from its least to its greatest rating."""
    return Item(_keyed(question, texts), tuple(map(float, ratings)), domain, scale)


def with_images(prompt: Any, images: Sequence[Any]) -> tuple[Message, ...]:
    """A prompt with the images that stand beside it in a data set.

    Args:
        prompt: text or messages; images go where these say ``{"type": "image"}``, else before the first user turn.
        images: PIL images, bytes, paths or URLs, or mappings with ``bytes`` or ``path`` (an undecoded image column).

    Raises:
        InputError: if the prompt is neither text nor messages, or has another number of places for images.
    """
    if not isinstance(prompt, str | list | tuple):
        raise InputError(f"a prompt must be text or messages; got {prompt!r:.200}")
    shown = [ImagePart(bare(image)) for image in images]
    messages = as_messages(prompt)
    places = sum(part.image is None for message in messages for part in message.images)
    if places not in (0, len(shown)):
        raise InputError(f"{len(shown)} images for {places} places in the prompt")
    if shown and places:
        rest = iter(shown)
        messages = tuple(
            Message(m.role, tuple(next(rest) if isinstance(p, ImagePart) and p.image is None else p for p in m.content))
            for m in messages
        )
    elif shown:
        first = next((index for index, message in enumerate(messages) if message.role == "user"), None)
        if first is None:
            raise InputError("a prompt with images needs a user turn to put them in")
        turn = Message("user", (*shown, *messages[first].content))
        messages = (*messages[:first], turn, *messages[first + 1 :])
    return messages


def _keyed(prompt: Any, candidates: Sequence[str]) -> Group:
    group = Group.of(with_images(prompt, ()), candidates)
    content: list[Any] = [group.candidates]
    for message in group.prompt:
        content += [message.role, message.text, *(given_as(part.image) for part in message.images)]
    key = hashlib.blake2b(repr(content).encode(errors="surrogatepass"), digest_size=8).hexdigest()
    return replace(group, key=key)


def rated_groups(
    rated: Sequence[tuple[str, float]],
    question: str,
    *,
    size: int,
    count: int,
    gap: float,
    domain: str,
    scale: tuple[float, float],
    seed: int = 0,
) -> list[Item]:
    """Random groups of different rated texts, any two of which differ by at least a gap; all such groups are as likely.

    Args:
        rated: texts with ratings, all of one split.
        question: that they answer.
        size: of a group.
        count: of groups; no two hold the same texts.
        gap: least difference of two ratings.
        domain: of the items.
        scale: least and greatest rating that there can be.
        seed: of the draw. The first of a longer draw are the shorter one.

    Raises:
        InputError: if that many such groups are not found.
    """
    draw = random.Random(seed)
    texts = [" ".join(text.split()) for text, _ in rated]
    items: dict[frozenset[str], Item] = {}
    for _ in range(200 * count if len(rated) >= size else 0):
        if len(items) == count:
            break
        chosen = draw.sample(range(len(rated)), size)
        ratings = sorted(rated[index][1] for index in chosen)
        same = frozenset(texts[index] for index in chosen)
        # Rounding: means of integers that are exactly a gap apart must not fall out by their last bit.
        if len(same) == size and all(upper - lower >= gap - 1e-9 for lower, upper in pairwise(ratings)):
            group = [rated[index] for index in chosen]
            texts_G, ratings_G = zip(*group, strict=True)
            items.setdefault(same, from_ratings(question, texts_G, ratings_G, domain, scale=scale))
    if len(items) < count:
        raise InputError(
            f"{domain}: only {len(items)} groups of {size} texts with a gap of {gap} were found among {len(rated)}, "
            f"{count} were asked for; lower count, size or gap"
        )
    return list(items.values())
